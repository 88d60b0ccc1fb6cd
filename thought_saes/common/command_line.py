"""How a script ends, and the record of the packages it ran with.

`run` is the last line of a script: what a person can put right (`InputError`, or an error of the operating system
such as a full disk) ends with one line on stderr and exit code 2.
"""

import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

from thought_saes.common.errors import InputError, one_line


def package_versions(*names: str) -> dict[str, str]:
    """The installed version of each package, for the record that goes into what is written."""
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {name: version(name) for name in names}


def _open_streams() -> None:
    """Have three streams that take any text: a scheduler may have closed them, and not every encoding has every letter.

    A closed one leads nowhere: else the next file that is opened would take its place, and what is printed.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[], int], interrupted: str = "interrupted: the same command goes on from here") -> NoReturn:
    """Call `main` and exit with its code; 2 and one line on stderr for what a person can put right.

    `interrupted` is said after Ctrl-C.
    """
    _open_streams()
    try:
        code = main()
        sys.stdout.flush()
    except InputError as problem:
        print(f"error: {one_line(problem)}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as problem:
        if problem.errno is None:
            raise
        where = f": {problem.filename}" if problem.filename else ""
        print(f"error: {problem.strerror}{where}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        code = 130
    sys.exit(code)
