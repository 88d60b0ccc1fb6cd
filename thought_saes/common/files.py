"""Writing so that nobody ever reads half a file, and so that two runs never write into one folder."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from thought_saes.common.errors import DamagedFile, InputError, one_line, shorten


def temporary_path(path: Path) -> Path:
    """The name under which this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, renamed when it is whole: readers see the old file or the whole new one.

    So they do after a power cut: the content is on the disk before the rename, and the rename before this returns.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            problem.filename = str(path)  # a full disk says no name
        raise


def flush_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk, where the system can be asked for that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written to and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the lines one by one: they need not be in memory together."""
    with whole_file(path) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; NaN, which JSON does not know and Python writes, is None.

    Raises DamagedFile if the file is not whole JSON, OSError if it cannot be read.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes | str, where: str) -> Any:
    """The value that `content` stands for. Raises DamagedFile; `where` names the place in the message."""
    nothing = content.strip(b" \t\r\n\0") if isinstance(content, bytes) else content.strip(" \t\r\n\0")
    if not nothing:
        raise DamagedFile(f"{where} is empty, as a power cut or a full disk leaves a file")
    try:
        return json.loads(content, parse_constant=_constant)
    except (ValueError, RecursionError) as problem:
        reason = "nested too deep" if isinstance(problem, RecursionError) else shorten(str(problem), 120)
        raise DamagedFile(f"{where} is not readable JSON ({reason})") from problem


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object on each line of a file; empty lines are skipped. Raises DamagedFile with the number of a line."""
    with open(path, encoding="utf-8", newline="\n") as lines:  # JSON strings may hold other line ends
        for number, line in enumerate(text_lines(path, lines), start=1):
            if line.strip():
                record = parse_json(line, f"line {number} of {path}")
                if not isinstance(record, dict):
                    raise DamagedFile(f"line {number} of {path} is no JSON object")
                yield record


def text_lines(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """`lines` of the file. Raises DamagedFile where it is no UTF-8."""
    try:
        yield from lines
    except UnicodeDecodeError as problem:
        reason = shorten(one_line(problem), 200)
        raise DamagedFile(f"{path} cannot be read as {path.suffix[1:]} ({reason})") from problem


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


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
