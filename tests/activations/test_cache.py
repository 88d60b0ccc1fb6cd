"""A cache is read only if it is what it says."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.json_damage import DAMAGE
from thought_saes.activations.cache import ActivationCache, map_table
from thought_saes.activations.cell import Cell
from thought_saes.activations.writer import CacheWriter
from thought_saes.common.errors import DamagedFile, InputError

EXAMPLES = [{"id": row, "question": f"{row} + 1?", "answer": str(row + 1)} for row in range(10)]


def open_writer(folder: Path) -> CacheWriter:
    folder.mkdir(exist_ok=True)
    names = {"examples": EXAMPLES, "input_dim": 3, "dtype": "float32"}
    return CacheWriter(folder, layers=[0], positions=[0, 1], description={"model": "m"}, record={}, **names)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = open_writer(tmp_path / "activations")
    writer.write(range(10), np.arange(60, dtype=np.float32).reshape(10, 2, 1, 3))
    writer.commit(10)
    return tmp_path / "activations"


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_cache_is_read(folder: Path) -> None:
    cache = ActivationCache(folder)
    assert cache.cell(Cell(0, 1))[2].tolist() == [15, 16, 17]  # row 2 begins at 12, its position 1 at 15
    assert len(cache.split.train) == 8
    assert cache.rows_left_out == 0


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": [0, 1, 2], "validation": [2, 3]}, "in train and in validation, so metrics would lie: 2"),
        ({"train": [0, 1, 1], "validation": [3]}, "train names rows more than once: 1"),
        ({"train": [0, 1], "validation": [3, 3]}, "validation names rows more than once: 3"),
        ({"train": [0, -1], "validation": [3]}, "train.1 is -1, not a whole number of 0 or more"),
        ({"train": [0, 10], "validation": [3]}, "train names row 10; there are rows 0 to 9"),
        ({"train": [0, 10**25], "validation": [3]}, "not a whole number below"),
        ({"train": [], "validation": [3]}, "too few"),
        ({"train": [3], "validation": []}, "too few"),
    ],
)
def test_a_split_that_would_give_false_metrics_is_refused(split: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError) as problem:
        ActivationCache(folder)
    assert message in str(problem.value)


def test_a_split_of_the_users_own_may_leave_rows_out_and_is_another_experiment(folder: Path) -> None:
    before = ActivationCache(folder).fingerprint(Cell(0, 0))
    (folder / "split.json").write_text('{"train": [0, 1, 2, 3], "validation": [9, 8]}')
    cache = ActivationCache(folder)
    assert cache.rows_left_out == 4
    assert cache.fingerprint(Cell(0, 0)) != before


@pytest.mark.parametrize("rows_done", [-16, "x", [1], None, 11, 10**25, 2.5, True])
def test_a_damaged_count_of_rows_is_one_line_when_read_and_when_resumed(rows_done: Any, folder: Path) -> None:
    edit(folder / "metadata.json", rows_done=rows_done)
    with pytest.raises(DamagedFile, match="rows_done"):
        open_writer(folder)
    if rows_done is not None:  # arrays of another tool have no such count
        with pytest.raises(DamagedFile, match="rows_done"):
            ActivationCache(folder)


@pytest.mark.parametrize("name", ["metadata.json", "split.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_a_cache_or_an_input_error(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    for content in DAMAGE[damage](path.read_text()):
        path.write_text(content)
        with suppress(InputError):  # harmless damage, such as another model's name, is not seen
            ActivationCache(folder)


def npy(shape: str, dtype: str = "<f4", values: int = 30) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(4 * values)


def saved(array: Any, archive: bool = False) -> bytes:
    file = io.BytesIO()
    np.savez(file, array) if archive else np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy("(-10, 3)"),
        npy("(10, -3)"),
        npy("(99999999999999999999, 3)"),
        npy("(10, 3, 1)"),
        npy("(10,)"),
        npy("10"),
        npy("(10, 'x')"),
        npy("(10, 3.5)"),
        npy("(True, 30)"),
        npy("(10, 3)", values=29),
        npy("(10, 3)", values=31),
        npy("(10, 3)", dtype=">f4"),
        npy("(10, 3)", dtype="<i4"),
        npy("(10, 3)", dtype="|O"),
        npy("(10, 3)", dtype="x"),
        npy("(0, 3)", values=0),
        npy("(" * 50),
        saved(np.zeros((10, 3), np.float32), archive=True),
        saved(np.array([["a", None]], dtype=object)),
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
    ],
)
def test_an_array_that_is_no_table_of_floats_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pos0_layer0.npy").write_bytes(content)
    with pytest.raises(DamagedFile, match="pos0_layer0"):
        map_table(tmp_path / "pos0_layer0.npy")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_table_is_mapped_as_numpy_loads_it(order: Any, dtype: str, tmp_path: Path) -> None:
    array = np.asarray(np.arange(12).reshape(4, 3), dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(map_table(tmp_path / "a.npy"), array)


def test_values_that_overflowed_in_float16_are_refused_with_the_way_out(folder: Path) -> None:
    for position in (0, 1):
        values = np.ones((10, 3), np.float16)
        values[4, position] = np.inf
        np.save(folder / f"pos{position}_layer0.npy", values)
    with pytest.raises(InputError, match=r"1 rows: 4; float16 ends at 65,504: extract with --dtype float32"):
        ActivationCache(folder).fingerprint(Cell(0, 0))


def test_a_folder_without_arrays_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file named"):
        ActivationCache(tmp_path)
