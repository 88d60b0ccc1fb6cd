"""The rows of cells as a training sees them, and what the files say of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.saes.moments import CHUNK_ROWS


def load_cells(cache: ActivationCache, cells: Sequence[Cell], device: torch.device) -> tuple[Tensor, Tensor]:
    """The training and the validation rows of every cell, (n_cells, n, input_dim) each, in float32."""
    loaded = [torch.empty(len(cells), len(rows), cache.input_dim, device=device) for rows in cache.split]
    for index, cell in enumerate(cells):
        array = cache.cell(cell)
        for x, rows in zip(loaded, cache.split, strict=True):
            for start in range(0, len(rows), CHUNK_ROWS):  # no second copy of all rows
                chunk = array[rows[start : start + CHUNK_ROWS]]
                x[index, start : start + CHUNK_ROWS] = torch.from_numpy(chunk)
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
    """What the activations are of, as far as their extraction recorded it."""
    names = ("model", "dataset", "dataset_split", "thought_projection")
    return {name: cache.metadata[name] for name in names if name in cache.metadata}
