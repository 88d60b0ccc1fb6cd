"""What is timed: SAEs of given sizes on synthetic rows or on those of a real cell."""

import itertools
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError

GROWTH_FACTORS = (0.25, 0.5, 1, 2)


class Case(NamedTuple):
    """One configuration on one set of activations."""

    rows: int
    input_dim: int
    latent_dim: int
    k: int


TINY = Case(4, 32, 32, 2)


class Job(NamedTuple):
    method: str  # of METHODS or PEERS
    case: Case


class Measured(NamedTuple):
    seconds_per_epoch: float  # of one SAE
    peak_mib: float  # beyond the data
    dead_share: float | None  # ours only: of the features, those that fire on no training row at the end


class Data:
    """The rows of every case: synthetic, or a real cell's first rows and dimensions."""

    def __init__(self, cell: np.ndarray | None, rows: int, input_dims: tuple[int, ...]) -> None:
        self.cell = cell
        self.input_dims = input_dims if cell is None else cell.shape[1:]
        self.rows = rows if cell is None else min(rows, len(cell))
        self.largest = (sys.maxsize, sys.maxsize) if cell is None else cell.shape  # rows and input_dim there are

    def cases(self, latent_dims: tuple[int, ...], k_values: tuple[int, ...]) -> list[Case]:
        return [Case(self.rows, *rest) for rest in itertools.product(self.input_dims, latent_dims, k_values)]

    def of(self, case: Case) -> Tensor:
        """(rows, input_dim) in float32."""
        if self.cell is None:
            return torch.from_numpy(synthetic_rows(case.rows, case.input_dim))
        return torch.from_numpy(np.ascontiguousarray(self.cell[: case.rows, : case.input_dim]))


@lru_cache(maxsize=2)
def synthetic_rows(n_rows: int, input_dim: int) -> np.ndarray:
    """Rows (n_rows, input_dim) like activations: low rank, a decaying spectrum, a mean large against the spread.

    Because of that mean most features of an SAE die, as on real activations. At an input_dim of a few dozen the
    mean is small.
    """
    generator = np.random.default_rng(0)
    rank = min(input_dim, 300)
    scales = 10 * np.arange(1, rank + 1) ** -0.8
    directions = generator.standard_normal((rank, input_dim), np.float32) / np.sqrt(input_dim)
    rows = (generator.standard_normal((n_rows, rank), np.float32) * scales) @ directions
    rows += 0.5 * generator.standard_normal(input_dim)
    rows += 0.02 * generator.standard_normal((n_rows, input_dim), np.float32)
    return rows.astype(np.float32)


def cell_rows(folder: Path, layer: int, position: int) -> np.ndarray:
    """The training rows of one cell. Raises InputError if it is not there."""
    cache = ActivationCache(folder)
    if Cell(layer, position) not in cache.cells:
        raise InputError(f"no layer {layer}, position {position} in {folder}; it has layers {cache.layers}")
    return cache.cell(Cell(layer, position))[cache.split.train].astype(np.float32, copy=False)


def growth(base: Case, largest: tuple[int, ...]) -> dict[str, list[Case]]:
    """For each axis of a Case, those that differ from `base` along it alone; `largest`: (rows, input_dim) there are."""
    grown = {}
    for axis in Case._fields:
        cases = (base._replace(**{axis: int(getattr(base, axis) * factor)}) for factor in GROWTH_FACTORS)
        grown[axis] = [
            c for c in cases if min(c) >= 1 and c.k <= c.latent_dim and c[0] <= largest[0] and c[1] <= largest[1]
        ]
    return grown
