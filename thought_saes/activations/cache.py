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
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.activations.split import Split, split_rows
from thought_saes.common.errors import InputError
from thought_saes.common.files import read_json
from thought_saes.common.flags import Selection
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
