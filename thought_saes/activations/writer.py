"""The writing of a cache, which resumes where an earlier run left it; `cache.py` says what it holds."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.activations.formats import CacheMetadata
from thought_saes.activations.split import SPLIT_RULE, SPLIT_SEED, read_split, split_rows
from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import read_json, write_json, write_lines
from thought_saes.common.schema import check, shown
from thought_saes.common.text import compact


def array_header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    """What a .npy file has before its values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return header.getvalue()


def activation_bytes(n_rows: int, input_dim: int, n_cells: int, dtype: str) -> int:
    """Exactly what the arrays of a cache take."""
    header = array_header((n_rows, input_dim), np.dtype(dtype))
    return n_cells * (len(header) + n_rows * input_dim * np.dtype(dtype).itemsize)


def examples_sha256(examples: Sequence[dict[str, Any]]) -> str:
    """A hash of the questions and answers; of no other column, so that a set may gain columns."""
    digest = hashlib.sha256(b"[")
    for row, example in enumerate(examples):
        known = {key: example[key] for key in ("id", "question", "answer")}
        digest.update((", " * bool(row) + json.dumps(known)).encode())
    digest.update(b"]")
    return digest.hexdigest()


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
            "examples_sha256": examples_sha256(examples),
            "split": {"rule": SPLIT_RULE, "seed": SPLIT_SEED, "n_train": len(split.train)},
        }
        metadata_path = folder / "metadata.json"
        if metadata_path.exists():
            self.metadata = read_json(metadata_path)
            about = check(self.metadata, CacheMetadata, str(metadata_path))
            if different := [key for key in identity if self.metadata.get(key) != identity[key]]:
                there, asked = (_shown(values.get(different[0])) for values in (self.metadata, identity))
                raise InputError(
                    f"{folder} holds other activations ({different[0]}: {there} there, {asked} asked for): "
                    "choose another --activations, or remove it"
                )
            if about.rows_done is None or about.rows_done > len(examples):
                raise DamagedFile(
                    f"{metadata_path}: rows_done is {shown(about.rows_done)}, not a whole number from 0 to "
                    f"{len(examples):,}: remove {folder} and extract again"
                )
            if about.rows_done:
                for path in self._paths():
                    if not self._is_ours(path, header_bytes):
                        raise InputError(f"{path} is absent or damaged: remove {folder} and extract again")
                if (path := folder / "split.json").exists():
                    read_split(path, len(examples))
                return
        elif foreign := sorted(folder.glob("pos*_layer*.npy")):
            raise InputError(f"{foreign[0]} was not written by this script: choose another --activations, or remove it")
        self.metadata = identity | {"rows_done": 0} | record
        in_validation = set(split.validation.tolist())
        lines = (
            json.dumps(example | {"split": "validation" if row in in_validation else "train"}, ensure_ascii=False)
            for row, example in enumerate(examples)
        )
        try:
            self.commit(0)  # first, so that no reader takes arrays without values for a cache
            write_lines(folder / "examples.jsonl", lines)
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
        done: int = self.metadata["rows_done"]
        return done

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

    def _is_ours(self, path: Path, header: bytes) -> bool:
        """Whether it is an array as this writer begins them, of the whole size."""
        if not path.exists() or path.stat().st_size != self._file_bytes():
            return False
        with open(path, "rb") as file:
            return file.read(len(header)) == header

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
