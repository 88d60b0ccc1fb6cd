"""What a run will take, before it starts: bytes on the disk, memory and time. For `--dry-run`, and to refuse early."""

import resource
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from thought_saes.activations.cache import array_header
from thought_saes.common.command_line import InputError
from thought_saes.saes.topk_sae import n_weights

# A checkpoint beyond its weights: zip headers, names, config, metrics. Measured from 3.2 to 3.3 KB.
CHECKPOINT_FRAME = 3_300
# A metrics file: some 900 bytes for each SAE and as much for the rest.
METRICS_BYTES = 900


def activation_bytes(n_rows: int, input_dim: int, n_cells: int, dtype: str) -> int:
    """Exactly what the arrays of a cache take."""
    header = array_header((n_rows, input_dim), np.dtype(dtype))
    return n_cells * (len(header) + n_rows * input_dim * np.dtype(dtype).itemsize)


def checkpoint_bytes(input_dim: int, latent_dim: int) -> int:
    """The size of a checkpoint file, within 1 % from some 100,000 weights on."""
    return 4 * n_weights(input_dim, latent_dim) + CHECKPOINT_FRAME


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """The most memory that this process has held so far: on the GPU if `device` is one, else resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # Linux counts in KiB


def free_bytes(folder: Path) -> int:
    """What the disk that `folder` is on, or will be, has left."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def there_already(paths: Iterable[Path]) -> int:
    """The bytes of those `paths` that exist and will be written over."""
    return sum(path.stat().st_size for path in paths if path.exists())


def check_disk(folder: Path, n_bytes: int, way_out: str) -> None:
    """Raises InputError if the disk of `folder` has no room for `n_bytes` more; `way_out` says what takes less."""
    free = free_bytes(folder)
    if n_bytes > free:
        raise InputError(
            f"{folder} needs {in_bytes(n_bytes)} more, and its disk has {in_bytes(free)} left: "
            f"choose another disk, or {way_out}"
        )


def in_bytes(n_bytes: float) -> str:
    """As people read it: 4.7 GB, of 10^9 bytes each."""
    units = iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while n_bytes >= 999.95 and unit != "TB":
        n_bytes, unit = n_bytes / 1000, next(units)
    return f"{n_bytes:,.{0 if unit == 'bytes' else 1}f} {unit}"


def in_time(seconds: float) -> str:
    """As people read it: 12 s, 26 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
