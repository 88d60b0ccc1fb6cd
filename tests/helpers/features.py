"""Small caches with questions of known concepts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.activations.cell import Cell, cell_path

FIRST = Cell(0, 0)


def write_cache(folder: Path, values: np.ndarray, examples: Sequence[dict[str, Any]], cell: Cell = FIRST) -> Path:
    """A folder with one cell of activations `values` (n_rows, input_dim), and its examples."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(cell_path(folder, cell), values.astype(np.float32))
    lines = [json.dumps(example) + "\n" for example in examples]
    (folder / "examples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
