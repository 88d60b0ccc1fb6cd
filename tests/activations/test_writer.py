"""What is written is a cache, of the size foretold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thought_saes.activations.writer import CacheWriter, activation_bytes
from thought_saes.common.errors import InputError


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n_rows", "input_dim"), [(1, 1), (7, 33), (123_456, 8)])
def test_the_bytes_of_activations_are_exact(dtype: str, n_rows: int, input_dim: int, tmp_path: Path) -> None:
    np.save(tmp_path / "cell.npy", np.zeros((n_rows, input_dim), dtype))
    assert activation_bytes(n_rows, input_dim, 3, dtype) == 3 * (tmp_path / "cell.npy").stat().st_size


def make_writer(folder: Path) -> CacheWriter:
    return CacheWriter(
        folder,
        layers=[0],
        positions=[1],
        examples=[{"id": row, "question": f"{row}?", "answer": None} for row in range(10)],
        input_dim=3,
        dtype="float32",
        description={"model": "m"},
        record={},
    )


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("pos1_layer0.npy", lambda content: content.replace(b"(10, 3)", b"(-1, 3)"), "absent or damaged"),
        ("pos1_layer0.npy", lambda content: content[:-1], "absent or damaged"),
        ("split.json", lambda content: b"", r"split\.json is empty"),
        ("split.json", lambda content: content.replace(b"[", b"[-1,", 1), "train.0 is -1"),
    ],
)
def test_a_damaged_file_is_not_extracted_into(
    name: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    writer = make_writer(tmp_path)
    writer.write(range(10), np.ones((10, 1, 1, 3), np.float32))
    writer.commit(10)
    assert make_writer(tmp_path).rows_done == 10
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(InputError, match=message):
        make_writer(tmp_path)
