"""The activations on disk: one array per (layer, position), written by the extraction, read by the training.

    activations/pos{p}_layer{l}.npy   (n_examples, input_dim), rows in data-set order
    activations/examples.jsonl        id, question, answer, split ("train" or "validation") of each row
    activations/split.json            the rows of the training and of the validation set
    activations/metadata.json         what was extracted, from what, and how many rows are done

`metadata.json` comes first. Rows are written in place, and its `rows_done` moves on only when they are on the disk;
a cache is whole when that equals `n_examples`. A folder that holds only arrays (from another tool) is read too: its
rows are split by the same rule.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.common.command_line import InputError, Selection, compact
from thought_saes.common.files import read_json, write_bytes, write_json

TRAIN_SIZE = 0.8
SPLIT_SEED = 42
SPLIT_RULE = "scikit-learn train_test_split(train_size=0.8, random_state=42, shuffle=True)"
ROWS_AT_A_TIME = 1024


class Split(NamedTuple):
    """Row indices into every cell's array, in the order of the experiment."""

    train: np.ndarray
    validation: np.ndarray


def split_rows(n_examples: int) -> Split:
    """The experiment's split of `n_examples` rows: SPLIT_RULE, without scikit-learn."""
    permutation = np.random.RandomState(SPLIT_SEED).permutation(n_examples)
    n_validation = n_examples - int(TRAIN_SIZE * n_examples)
    return Split(train=permutation[n_validation:], validation=permutation[:n_validation])


def array_header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    """What a .npy file has before its values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return header.getvalue()


class ActivationCache:
    """A finished cache, for reading.

    Raises InputError if the folder holds no activations, or is not finished (the message says how far it came).
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"no activations at {folder}: extract_activations.py writes them")
        self.folder = folder
        metadata_path = folder / "metadata.json"
        self.metadata: dict[str, Any] = read_json(metadata_path) if metadata_path.exists() else {}
        if "rows_done" in self.metadata:
            done, n_examples = self.metadata["rows_done"], self.metadata["n_examples"]
            if done < n_examples:
                raise InputError(
                    f"the activations in {folder} are unfinished: {done:,} of {n_examples:,} questions; "
                    "run the same extract_activations.py command again to go on"
                )
        names = (re.fullmatch(r"pos(\d+)_layer(\d+)\.npy", path.name) for path in folder.iterdir())
        self.cells = sorted(Cell(layer=int(name[2]), position=int(name[1])) for name in names if name)
        if not self.cells:
            raise InputError(f"no activations in {folder}: no file named pos<p>_layer<l>.npy")
        self.layers = sorted({layer for layer, _ in self.cells})
        self.positions = sorted({position for _, position in self.cells})
        self.n_examples, self.input_dim = self.cell(self.cells[0]).shape
        if (folder / "split.json").exists():
            rows = read_json(folder / "split.json")
            self.split = Split(np.array(rows["train"], dtype=int), np.array(rows["validation"], dtype=int))
        else:
            self.split = split_rows(self.n_examples)
        if not len(self.split.train):
            raise InputError(f"{folder} holds {self.n_examples} questions: too few for a training set")

    @property
    def position_0(self) -> str:
        """What position 0 is: 'bot token' or 'last question token'."""
        return str(self.metadata.get("position_0", "bot token"))

    def choose(self, layers: Selection, positions: Selection) -> list[Cell]:
        """The cells chosen. Raises InputError if one of them is not there."""
        chosen = [
            Cell(layer, position)
            for layer in layers.resolve(self.layers, f"layers in {self.folder}")
            for position in positions.resolve(self.positions, f"positions in {self.folder}")
        ]
        if absent := [cell for cell in chosen if cell not in self.cells]:
            raise InputError(f"{len(absent)} cells are absent, first {cell_path(self.folder, absent[0])}")
        return chosen

    def cell(self, cell: Cell) -> np.ndarray:
        """The (n_examples, input_dim) array of one cell, memory-mapped. Raises InputError if it is damaged."""
        path = cell_path(self.folder, cell)
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as problem:
            raise InputError(f"{path} is damaged ({problem}): extract it again") from problem
        if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
            raise InputError(f"{path} is {array.dtype} {array.shape}, not a table of float32 or float16")
        expected = getattr(self, "n_examples", len(array)), getattr(self, "input_dim", array.shape[1])
        if array.shape != expected:
            raise InputError(f"{path} is {array.shape}, other cells are {expected}")
        return array

    def fingerprint(self, cell: Cell) -> str:
        """A hash of the cell's values and of the split: equal exactly when the same SAE would be trained.

        Raises InputError if a value is NaN or infinite, with their number and the rows.
        """
        array = self.cell(cell)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        for rows in self.split:
            digest.update(rows.astype("<i8").tobytes())
        bad_rows: list[int] = []
        n_bad = 0
        for start in range(0, len(array), ROWS_AT_A_TIME):
            chunk = np.ascontiguousarray(array[start : start + ROWS_AT_A_TIME])
            digest.update(chunk.data)
            finite = np.isfinite(chunk)
            if not finite.all():
                n_bad += int((~finite).sum())
                bad_rows.extend((start + np.flatnonzero(~finite.all(axis=1))).tolist())
        if n_bad:
            where = compact(bad_rows[:10]) + (" …" if len(bad_rows) > 10 else "")
            raise InputError(
                f"{cell_path(self.folder, cell)} holds {n_bad:,} values that are NaN or infinite, "
                f"in {len(bad_rows):,} rows: {where}"
            )
        return digest.hexdigest()[:16]


def _shown(value: Any) -> str:
    """A setting as the user would type it."""
    return compact(value) if isinstance(value, list) else str(value)


class CacheWriter:
    """A cache being written: started, or taken up where an earlier run left it.

    `description` is what the cache is of; everything in it must be the same for a run to go on. `record` is
    stored beside it and may differ (versions, batch size). Raises InputError if the folder holds another cache.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layers: Sequence[int],
        positions: Sequence[int],
        examples: Sequence[dict[str, Any]],
        input_dim: int,
        dtype: str,
        description: dict[str, Any],
        record: dict[str, Any],
    ) -> None:
        self.folder, self.layers, self.positions = folder, list(layers), list(positions)
        self.dtype = np.dtype(dtype)
        self.shape = (len(examples), input_dim)
        header_bytes = array_header(self.shape, self.dtype)
        self.data_offset = len(header_bytes)
        split = split_rows(len(examples))
        identity = description | {
            "layers": self.layers,
            "positions": self.positions,
            "dtype": dtype,
            "n_examples": len(examples),
            "input_dim": input_dim,
            "examples_sha256": hashlib.sha256(json.dumps(list(examples)).encode()).hexdigest(),
            "split": {"rule": SPLIT_RULE, "seed": SPLIT_SEED, "n_train": len(split.train)},
        }
        metadata_path = folder / "metadata.json"
        if metadata_path.exists():
            self.metadata = read_json(metadata_path)
            if different := [key for key in identity if self.metadata.get(key) != identity[key]]:
                there, asked = (_shown(values.get(different[0])) for values in (self.metadata, identity))
                raise InputError(
                    f"{folder} holds other activations ({different[0]}: {there} there, {asked} asked for): "
                    "choose another --activations, or remove it"
                )
            if self.rows_done:
                for path in self._paths():
                    if not path.exists() or path.stat().st_size != self._file_bytes():
                        raise InputError(f"{path} is absent or damaged: remove {folder} and extract again")
                return
        elif foreign := sorted(folder.glob("pos*_layer*.npy")):
            raise InputError(f"{foreign[0]} was not written by this script: choose another --activations, or remove it")
        self.metadata = identity | {"rows_done": 0} | record
        in_validation = set(split.validation.tolist())
        lines = [
            json.dumps(example | {"split": "validation" if row in in_validation else "train"}, ensure_ascii=False)
            for row, example in enumerate(examples)
        ]
        try:
            self.commit(0)  # first, so that no reader takes arrays without values for a cache
            write_bytes(folder / "examples.jsonl", "".join(line + "\n" for line in lines).encode())
            write_json(folder / "split.json", {name: rows.tolist() for name, rows in split._asdict().items()})
            self._reserve(header_bytes)
        except BaseException as problem:
            if isinstance(problem, OSError):
                problem.filename = problem.filename or str(folder)  # a full disk says no name
            for path in (*self._paths(), folder / "examples.jsonl", folder / "split.json", metadata_path):
                path.unlink(missing_ok=True)
            raise

    @property
    def rows_done(self) -> int:
        """How many rows are on the disk, in the order of extraction (not of the data set)."""
        return int(self.metadata["rows_done"])

    def write(self, rows: Sequence[int], activations: np.ndarray) -> None:
        """Write `activations`, (len(rows), n_positions, n_layers, input_dim), to the data-set rows `rows`.

        Raises InputError if a value is not finite in the cache's dtype.
        """
        with np.errstate(over="ignore"):
            values = activations.astype(self.dtype)
        if not np.isfinite(values).all():
            row, position, layer, _ = (int(index[0]) for index in np.nonzero(~np.isfinite(values)))
            raise InputError(
                f"the activation of question {rows[row]}, layer {self.layers[layer]}, position "
                f"{self.positions[position]} is not finite in {self.dtype}"
                + ("; use --dtype float32" if np.isfinite(activations).all() else "")
            )
        row_bytes = self.shape[1] * self.dtype.itemsize
        for position_index, position in enumerate(self.positions):
            for layer_index, layer in enumerate(self.layers):
                # Not through a memory map: a full disk would then be a bus error, and its pages our memory.
                with open(cell_path(self.folder, Cell(layer, position)), "r+b") as file:
                    for row, vector in zip(rows, values[:, position_index, layer_index], strict=True):
                        file.seek(self.data_offset + row * row_bytes)
                        file.write(vector.tobytes())

    def commit(self, rows_done: int) -> None:
        """Record that the first `rows_done` rows, in the order of extraction, are written for good."""
        if rows_done:
            for path in self._paths():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        self.metadata["rows_done"] = rows_done
        write_json(self.folder / "metadata.json", self.metadata)

    def _paths(self) -> list[Path]:
        return [cell_path(self.folder, Cell(layer, position)) for position in self.positions for layer in self.layers]

    def _file_bytes(self) -> int:
        return self.data_offset + self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _reserve(self, header: bytes) -> None:
        """Make every array at its full size, so that a disk too small is known before the work, not after."""
        for path in self._paths():
            with open(path, "wb") as file:
                file.write(header)
                file.flush()
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self._file_bytes())
                else:  # macOS
                    file.truncate(self._file_bytes())
