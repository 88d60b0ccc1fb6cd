"""How large the parts of `gpu_check.py` are, and the data, SAEs and clock that they share."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import synthetic_rows
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.start import epoch_orders, seeded_sae

LR = 1e-3


class Sizes(NamedTuple):
    """How large everything is."""

    device: str
    n_rows: int  # of a cell: training and validation
    input_dim: int
    latent_dims: tuple[int, ...]
    k_values: tuple[int, ...]
    batch_size: int
    epochs: int
    textbook_epochs: int
    cells_of_a_stack: int
    cells_of_the_script: int
    layers: int  # of the language model
    heads: int
    vocabulary: int
    question_batches: tuple[int, ...]
    repeats: int
    workers: tuple[int, ...]


PUBLISHED = Sizes(
    *("cuda", 7473, 2048, (512, 1024, 2048), (5, 10, 20, 100), 256, 25, 2, 8, 24),
    *(16, 32, 128_256, (16, 64), 20, (1, 3)),
)
REHEARSED = Sizes("cpu", 120, 32, (32, 48), (2, 4), 32, 3, 1, 2, 1, 2, 4, 64, (2, 3), 1, (1,))


class Report(NamedTuple):
    """What a part found."""

    figures: dict[str, Any]
    checks: dict[str, bool]


def wait_for(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], sizes: Sizes) -> float:
    """Of one call, after a first one that is not counted."""
    work()
    wait_for(sizes.device)
    started = time.perf_counter()
    for _ in range(sizes.repeats):
        work()
    wait_for(sizes.device)
    return (time.perf_counter() - started) / sizes.repeats


def rows_of(sizes: Sizes, n_cells: int = 1) -> tuple[Tensor, Tensor]:
    """Training and validation rows of each cell, (n_cells, n, input_dim), on the device."""
    x = torch.from_numpy(synthetic_rows(sizes.n_rows, sizes.input_dim)).to(sizes.device)
    cells = torch.stack([x.roll(cell, dims=1) for cell in range(n_cells)])
    n_train = round(0.8 * sizes.n_rows)
    return cells[:, :n_train], cells[:, n_train:]


def saes_of(sizes: Sizes, latent_dim: int, n_cells: int = 1) -> tuple[list[SparseAutoencoder], list[int]]:
    """Untrained SAEs of every k and cell, and the cell of each, by ascending k."""
    members = [(k, cell) for k in sizes.k_values for cell in range(n_cells)]
    saes = [seeded_sae(sizes.input_dim, SaeKey(Cell(0, cell), latent_dim, k), 0) for k, cell in members]
    return saes, [cell for _, cell in members]


def orders_of(sizes: Sizes, n_rows: int, epochs: int, n_cells: int = 1) -> Iterator[np.ndarray]:
    return map(np.stack, zip(*(epoch_orders(n_rows, epochs, 0, Cell(0, cell)) for cell in range(n_cells)), strict=True))
