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
import re
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.activations.formats import CacheMetadata, Example
from thought_saes.activations.split import read_split, split_rows
from thought_saes.common.errors import DamagedFile, InputError, one_line, shorten
from thought_saes.common.files import read_json
from thought_saes.common.flags import Selection
from thought_saes.common.schema import check, read_checked_lines, shown
from thought_saes.common.text import compact

ROWS_AT_A_TIME = 1024


class ActivationCache:
    """A finished cache, for reading.

    Raises InputError if the folder holds no activations, or is not finished (the message says how far it came).
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"no activations at {folder}: extract_activations.py writes them")
        self.folder = folder
        path = folder / "metadata.json"
        self.metadata: dict[str, Any] = read_json(path) if path.exists() else {}
        about = check(self.metadata, CacheMetadata, str(path))
        if about.rows_done is not None:
            if about.n_examples is None or about.rows_done > about.n_examples:
                raise DamagedFile(f"{path}: rows_done is {about.rows_done:,} of {shown(about.n_examples)} n_examples")
            if about.rows_done < about.n_examples:
                raise InputError(
                    f"the activations in {folder} are unfinished: {about.rows_done:,} of {about.n_examples:,} "
                    "questions; run the same extract_activations.py command again to go on"
                )
        self.position_0 = about.position_0
        names = (re.fullmatch(r"pos(\d+)_layer(\d+)\.npy", path.name) for path in folder.iterdir())
        self.cells = sorted(Cell(layer=int(name[2]), position=int(name[1])) for name in names if name)
        if not self.cells:
            raise InputError(f"no activations in {folder}: no file named pos<p>_layer<l>.npy")
        self.layers = sorted({layer for layer, _ in self.cells})
        self.positions = sorted({position for _, position in self.cells})
        self.n_examples, self.input_dim = self.cell(self.cells[0]).shape
        for name in ("n_examples", "input_dim"):
            recorded, there = getattr(about, name), getattr(self, name)
            if recorded not in (None, there):
                raise DamagedFile(f"{folder / 'metadata.json'}: {name} is {recorded:,}, and the arrays have {there:,}")
        path = folder / "split.json"
        self.split = read_split(path, self.n_examples) if path.exists() else split_rows(self.n_examples)
        if not len(self.split.train) or not len(self.split.validation):
            raise InputError(f"{folder} holds {self.n_examples} questions: too few for a training and a validation set")

    @property
    def rows_left_out(self) -> int:
        """How many rows the split names neither for training nor for validation."""
        return self.n_examples - len(self.split.train) - len(self.split.validation)

    def examples(self) -> list[dict[str, Any]]:
        """The questions, a row each, as examples.jsonl holds them; columns of the data set's own included.

        Raises InputError if they are not there, damaged, or not those of the rows.
        """
        path = self.folder / "examples.jsonl"
        if not path.exists():
            raise InputError(f"no {path}: the questions come from it; extract_activations.py writes it")
        records = read_checked_lines(path, Example)
        if len(records) != self.n_examples:
            raise DamagedFile(f"{path} holds {len(records):,} questions, the activations {self.n_examples:,} rows")
        for row, record in enumerate(records):
            if record["id"] != row:
                raise DamagedFile(f"line {row + 1} of {path} is of row {record['id']}, not of row {row}")
        return records

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
        array = map_table(path)
        expected = getattr(self, "n_examples", len(array)), getattr(self, "input_dim", array.shape[1])
        if array.shape != expected:
            raise InputError(f"{path} is {array.shape}, other cells are {expected}")
        return array

    def blocks(self, cell: Cell) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of a cell in order, some at a time: (the first one's number, (n, input_dim)).

        Each block has a mapping of its own: pages of the file that were read do not stay in this process's memory.
        """
        for start in range(0, self.n_examples, ROWS_AT_A_TIME):
            yield start, np.array(self.cell(cell)[start : start + ROWS_AT_A_TIME])

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
        for start, block in self.blocks(cell):
            chunk = np.ascontiguousarray(block)
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
                + ("; float16 ends at 65,504: extract with --dtype float32" if array.dtype == np.float16 else "")
            )
        return digest.hexdigest()[:16]


def map_table(path: Path) -> np.ndarray:
    """A .npy file of floats in rows and columns, memory-mapped.

    Raises DamagedFile if it is anything else, or shorter or longer than its header says.
    """
    with open(path, "rb") as file:
        try:
            major, _ = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = read_header(file)
        except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as problem:
            raise DamagedFile(f"{path} is damaged ({shorten(one_line(problem), 120)}): extract it again") from problem
        offset = file.tell()
    whole = all(type(side) is int and side > 0 for side in shape)  # True is an int, too
    if len(shape) != 2 or not whole or dtype not in (np.float32, np.float16):
        raise DamagedFile(f"{path} is {dtype} {shape}, not a table of float32 or float16")
    n_bytes, there = offset + shape[0] * shape[1] * dtype.itemsize, path.stat().st_size
    if there != n_bytes:
        raise DamagedFile(
            f"{path} is damaged ({there:,} bytes, where {shape} of {dtype} take {n_bytes:,}): extract it again"
        )
    return np.memmap(path, dtype, "r", offset, shape, "F" if in_columns else "C")
