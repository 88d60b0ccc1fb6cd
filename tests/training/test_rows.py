"""The rows that a training sees, read from files once from start to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.results import correlated_rows
from thought_saes.activations.cache import ROWS_AT_A_TIME, ActivationCache
from thought_saes.activations.cell import Cell, cell_path
from thought_saes.training.rows import load_cells

CELLS = (Cell(0, 0), Cell(2, 1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_come_in_the_order_of_the_split(order: str, tmp_path: Path) -> None:
    n_rows = 2 * ROWS_AT_A_TIME + 7
    arrays = [correlated_rows(n_rows, 6, seed=seed).astype(np.float16) for seed in range(2)]
    for cell, array in zip(CELLS, arrays, strict=True):
        np.save(cell_path(tmp_path, cell), np.asarray(array, order=order))  # type: ignore[call-overload]
    rows = np.random.default_rng(1).permutation(n_rows)
    train, validation = rows[:1500], rows[1500:-3]  # three rows are in neither
    (tmp_path / "split.json").write_text(json.dumps({"train": train.tolist(), "validation": validation.tolist()}))
    cache = ActivationCache(tmp_path)
    x_train, x_validation = load_cells(cache, CELLS, torch.device("cpu"))
    for x, wanted in ((x_train, train), (x_validation, validation)):
        assert x.dtype == torch.float32
        expected = np.stack([array[wanted] for array in arrays]).astype(np.float32)
        assert torch.equal(x, torch.from_numpy(expected))


def test_blocks_are_the_rows_in_order(tmp_path: Path) -> None:
    array = correlated_rows(ROWS_AT_A_TIME + 5, 4)
    np.save(cell_path(tmp_path, Cell(0, 0)), array)
    blocks = list(ActivationCache(tmp_path).blocks(Cell(0, 0)))
    assert [start for start, _ in blocks] == [0, ROWS_AT_A_TIME]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), array)
