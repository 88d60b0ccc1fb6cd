"""What is written is a cache, of the size foretold."""

from pathlib import Path

import numpy as np
import pytest

from thought_saes.activations.writer import activation_bytes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n_rows", "input_dim"), [(1, 1), (7, 33), (123_456, 8)])
def test_the_bytes_of_activations_are_exact(dtype: str, n_rows: int, input_dim: int, tmp_path: Path) -> None:
    np.save(tmp_path / "cell.npy", np.zeros((n_rows, input_dim), dtype))
    assert activation_bytes(n_rows, input_dim, 3, dtype) == 3 * (tmp_path / "cell.npy").stat().st_size
