"""Small caches with questions of known concepts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.training.start import seeded_sae

FIRST = Cell(0, 0)


def write_cache(folder: Path, values: np.ndarray, examples: Sequence[dict[str, Any]], cell: Cell = FIRST) -> Path:
    """A folder with one cell of activations `values` (n_rows, input_dim), and its examples."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(cell_path(folder, cell), values.astype(np.float32))
    lines = [json.dumps({"id": row} | example) + "\n" for row, example in enumerate(examples)]
    (folder / "examples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_planted_grid(folder: Path, hostile: Sequence[str] = (), n_rows: int = 300) -> tuple[Path, Path]:
    """(activations, results): two cells and one SAE shape, in which feature 3 fires exactly where the colour is red.

    The first questions are those of `hostile`.
    """
    generator = np.random.default_rng(0)
    colours = generator.choice(["red", "blue", "green"], size=n_rows)
    examples = [
        {
            "question": f"Question {row} about {colour} things",
            "answer": f"1 + {row % 3} = {1 + row % 3}",
            "colour": colour,
        }
        for row, colour in enumerate(colours)
    ]
    for example, text in zip(examples, hostile, strict=False):
        example["question"] = text
    activations, results = folder / "activations", folder / "results"
    results.mkdir(parents=True)
    for cell in (Cell(0, 1), Cell(0, 2)):
        values = generator.normal(size=(n_rows, 8))
        values[:, 5] = np.where(colours == "red", generator.uniform(6, 9, n_rows), 0)
        write_cache(activations, values, examples, cell)
        key = SaeKey(cell, 16, 2)
        sae = seeded_sae(8, key, 0)
        with torch.no_grad():
            sae.encoder.weight[3] = torch.eye(8)[5]
            sae.encoder.bias[3] = 0
        sae.metrics = {"fvu": 0.5, "feature_death_rate": 0.0}
        sae.save(checkpoint_path(results, key))
    return activations, results
