"""The rows of cells as a training sees them, and what the files say of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.text import without_path


def load_cells(cache: ActivationCache, cells: Sequence[Cell], device: torch.device) -> tuple[Tensor, Tensor]:
    """The training and the validation rows of every cell, (n_cells, n, input_dim) each, in float32.

    A file is read once, from its start to its end, and takes no memory beside the rows.
    """
    loaded = [torch.empty(len(cells), len(rows), cache.input_dim, device=device) for rows in cache.split]
    places = [np.full(cache.n_examples, -1) for _ in cache.split]  # where a row of the file goes
    for place, rows in zip(places, cache.split, strict=True):
        place[rows] = np.arange(len(rows))
    for index, cell in enumerate(cells):
        for start, block in cache.blocks(cell):
            for x, place in zip(loaded, places, strict=True):
                to = place[start : start + len(block)]
                wanted = to >= 0
                x[index, torch.from_numpy(to[wanted]).to(device)] = torch.from_numpy(block[wanted]).to(device).float()
    return loaded[0], loaded[1]


def about_rows(cache: ActivationCache) -> dict[str, Any]:
    """What a file says of the rows that its SAEs are of."""
    return {
        "n_train": len(cache.split.train),
        "n_val": len(cache.split.validation),
        "input_dim": cache.input_dim,
        "position_0": cache.position_0,
        **origin(cache),
    }


def origin(cache: ActivationCache) -> dict[str, Any]:
    """What the activations are of, as far as their extraction recorded it; of an absolute path the last name."""
    names = ("model", "dataset", "dataset_split", "thought_projection")
    said = {name: cache.metadata[name] for name in names if name in cache.metadata}
    return said | {name: without_path(said[name]) for name in ("model", "dataset") if name in said}
