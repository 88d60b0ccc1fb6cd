"""Tensors in files: read one at a time, and held against what a model expects."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import read_json
from thought_saes.common.schema import shown

PROJECTION_FILE = "projection.safetensors"
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
WIDTHS = ("vocab_size", "hidden_size", "n_embd")
POSITIONS = 4096  # that any model may have: where they are computed, as by GPT-J, no tensor is as long


class StateFile(Mapping[str, Tensor]):
    """The tensors of some safetensors or .bin files, read one at a time. Raises InputError if a file is damaged."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sources: dict[str, Any] = {}
        for path in paths:
            path.open("rb").close()  # safetensors reports a file that may not be read as absent
            try:
                if path.suffix == ".safetensors":
                    file = safe_open(path, framework="pt")
                    self._sources |= dict.fromkeys(list(file.keys()), file)
                    continue
                # The format of torch before 1.6 is no zip file, and cannot be mapped.
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as problem:
                raise InputError(f"{path} is damaged, or not a file of tensors") from problem
            if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
                raise InputError(f"{path} holds something else than named tensors")
            self._sources |= tensors

    @classmethod
    def of_folder(cls, folder: Path) -> "StateFile":
        """The weights of the model in `folder`; empty if it has none."""
        safe = [path for path in sorted(folder.glob("*.safetensors")) if path.name != PROJECTION_FILE]
        return cls(safe or sorted(folder.glob("pytorch_model*.bin")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor that need not be read for that."""
        source = self._sources[key]
        return tuple(source.shape if isinstance(source, Tensor) else source.get_slice(key).get_shape())

    def __getitem__(self, key: str) -> Tensor:
        source = self._sources[key]
        return source if isinstance(source, Tensor) else source.get_tensor(key)


def check_sizes(path: Path, state: StateFile) -> None:
    """Raises InputError if a config.json names no layers, or more or wider ones than the weights fill.

    transformers makes the whole model that a config describes before it looks for its weights.
    """
    try:
        config = read_json(path)
    except (FileNotFoundError, DamagedFile):
        return  # transformers says what is wrong with it
    config = config if isinstance(config, dict) else {}
    widest = max((side for key in state for side in state.shape(key)), default=0)
    limits = dict.fromkeys(LAYER_COUNTS, (len(state), "the number of tensors in the weights"))
    limits |= dict.fromkeys(WIDTHS, (widest, "the longest side of a tensor in the weights"))
    limits["n_positions"] = (max(widest, POSITIONS), "the most that such a model has")
    for name, (most, what) in limits.items():
        value = config.get(name)
        if isinstance(value, int | float) and not 1 <= value <= most:
            raise InputError(f"{path}: {name} is {shown(value)}, not from 1 to {most:,}, {what}")


def check_keys(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], what: str, whose: str) -> None:
    """Raises InputError with the first few differences between the tensors found and those expected."""
    differences = [f"{key} is missing" for key in expected if key not in found]
    differences += [f"{key} is left over" for key in found if key not in expected]
    differences += [
        f"{key} is {found[key]}, not {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(f"the keys of {what} do not fit {whose}: {'; '.join(differences[:4])}{more}")


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
