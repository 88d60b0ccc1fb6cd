"""What this machine has: the device that a flag names, memory, and room on its disks."""

import gc
import os
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from thought_saes.common.errors import InputError
from thought_saes.common.text import in_bytes

DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str) -> torch.device:
    """The device `name`; 'auto' is CUDA, then MPS, then the CPU. Raises InputError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        if name.partition(":")[0] not in DEVICES:  # such as meta, which holds no values
            raise RuntimeError
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise InputError(f"there is no device '{name}' here; 'auto' takes CUDA, MPS or the CPU") from problem
    return device


@contextmanager
def float32_products(precision: Literal["tf32", "ieee"]) -> Iterator[None]:
    """Within, CUDA's float32 products are of this precision, whatever the process has set before.

    A setting of the whole process: no other thread may compute on the device meanwhile.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision  # unlike `allow_tf32`, it can be read whichever of the two was written
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether a computation needed more memory than its device, or the machine, has left."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in signs)


def has_lost_device(problem: BaseException) -> bool:
    """Whether an error leaves the process without its GPU: a kernel's own makes every later call fail as well."""
    if is_out_of_memory(problem):
        return False
    if isinstance(problem, torch.AcceleratorError):
        return True
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in ("CUDA error", "HIP error"))


def release_memory(device: torch.device) -> None:
    """Give what PyTorch's allocator keeps of a GPU back to it."""
    if device.type != "cpu" and torch.accelerator.is_available():
        gc.collect()
        torch.accelerator.empty_cache()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """The bytes of memory that could be had without swapping; where the system does not say, half of all there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


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
