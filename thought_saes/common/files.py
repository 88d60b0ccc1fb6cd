"""Writing so that nobody ever reads half a file, and so that two runs never write into one folder."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from thought_saes.common.errors import InputError


def temporary_path(path: Path) -> Path:
    """The name under which this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, then rename it: readers see the old file or the whole new one."""
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            problem.filename = str(path)  # a full disk says no name
        raise


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises InputError if the file is not whole JSON, OSError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as problem:
        raise InputError(f"{path} is not readable JSON ({problem})") from problem


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make `folder` if need be and hold it: a second run on it is refused with InputError.

    The operating system lets go when the process ends, however it ends. What a killed run left under
    temporary names is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another run is writing to {folder}: wait for it, or choose another folder") from None
    try:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
