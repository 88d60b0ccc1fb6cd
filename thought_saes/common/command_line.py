"""What the scripts' command lines have in common: flags made from a config dataclass, and how errors end.

A script's config is a frozen dataclass whose fields are made by `option`; `parse_config` turns each field into
a flag of the same name. `run` is the last line of a script: what a person can put right (`InputError`, or an
error of the operating system such as a full disk) ends with one line on stderr and exit code 2.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")


class InputError(Exception):
    """Something the user can put right. The message says what is wrong, the value, and what would be right."""


@dataclass(frozen=True)
class Selection:
    """Layers or positions as typed: 'all', '3', '0-5' or '0,7,14'. `indices` is None for 'all'."""

    text: str
    indices: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """Raises argparse.ArgumentTypeError if `text` is none of the four forms."""
        if text == "all":
            return cls(text, None)
        chosen: set[int] = set()
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise argparse.ArgumentTypeError(f"'{text}' is not 'all', '3', '0-5' or '0,7,14'")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers:
                raise argparse.ArgumentTypeError(f"the range '{part}' is empty: write '{last}-{first}'")
            chosen.update(numbers)
        return cls(text, tuple(sorted(chosen)))

    def resolve(self, available: Sequence[int], what: str) -> tuple[int, ...]:
        """The chosen numbers, ascending. Raises InputError if one of them is not in `available`.

        `what` names them in the message, as in "layers of the model".
        """
        if self.indices is None:
            return tuple(available)
        if absent := [index for index in self.indices if index not in available]:
            raise InputError(f"not among the {what}: {compact(absent)}; there are {compact(available) or 'none'}")
        return self.indices

    def __str__(self) -> str:
        return self.text


def compact(numbers: Sequence[int]) -> str:
    """Ascending numbers in the form that `Selection` reads: [0, 1, 2, 7] is '0-2,7'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def option(default: Any = MISSING, *, help: str, choices: Sequence[Any] | None = None) -> Any:
    """A config field that is also a flag; without `default` the flag is required."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def build_parser(config_class: type, description: str) -> argparse.ArgumentParser:
    """A parser with one flag for each field of `config_class`."""
    parser = _OneLineParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):  # `Path | None`
            kind = next(member for member in typing.get_args(kind) if member is not type(None))
        settings: dict[str, Any] = {"help": field.metadata["help"], "dest": field.name}
        if field.default is MISSING:
            settings["required"] = True
        elif kind is not bool and field.default is not None:
            default = field.default
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            settings["help"] += f" (default: {shown})".replace("%", "%%")
        if kind is bool:
            settings["action"] = "store_true"
        elif typing.get_origin(kind) is tuple:
            settings |= {"nargs": "+", "type": typing.get_args(kind)[0], "metavar": "N"}
        elif kind is Selection:
            settings |= {"nargs": "+", "metavar": "WHICH"}
        else:
            settings |= {"type": kind, "choices": field.metadata["choices"]}
        parser.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, **settings)
    return parser


def parse_config(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """`argv` (by default the process's own) as a config; flags may be typed with '-' or with '_'.

    Exits with code 2 on a flag that cannot be read; raises InputError where the config's own check fails.
    """
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        words.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else word)
    parser = build_parser(config_class, description)
    values = vars(parser.parse_args(words))
    hints = typing.get_type_hints(config_class)
    for name, value in values.items():
        if isinstance(value, list):
            try:
                values[name] = (
                    Selection.parse(",".join(value))
                    if Selection in (hints[name], *typing.get_args(hints[name]))
                    else tuple(value)
                )
            except argparse.ArgumentTypeError as problem:
                parser.error(f"argument --{name}: {problem}")
    return config_class(**values)


def check_at_least(config: Any, minimum: float, *names: str) -> None:
    """Raises InputError if one of the config's fields `names` is set and below `minimum`."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number >= minimum:
                raise InputError(f"--{name.replace('_', '-')} must be at least {minimum}, not {number}")


def check_positive(config: Any, *names: str) -> None:
    """Raises InputError if one of the config's fields `names` is not positive and finite."""
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {getattr(config, name)}")


def check_ray_address(config: Any) -> None:
    """Raises InputError if a cluster is named that the config's engine does not use."""
    if config.ray_address != "local" and config.engine != "ray":
        raise InputError(f"--ray-address {config.ray_address} is for --engine ray")


def require_package(name: str, flag: str) -> None:
    """Raises InputError if an optional package that `flag` needs is not installed."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{flag} needs {name}: pip install -r requirements-cluster.txt")


def keep_once(config: Any, *names: str) -> None:
    """Drop the repetitions in the config's fields `names`, in place though it is frozen: for its __post_init__."""
    for name in names:
        object.__setattr__(config, name, tuple(dict.fromkeys(getattr(config, name))))


def package_versions(*names: str) -> dict[str, str]:
    """The installed version of each package, for the record that goes into what is written."""
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {name: version(name) for name in names}


def one_line(message: object) -> str:
    return " ".join(str(message).split())


def run(main: Callable[[], int], interrupted: str = "interrupted: the same command goes on from here") -> NoReturn:
    """Call `main` and exit with its code; 2 and one line on stderr for what a person can put right.

    `interrupted` is said after Ctrl-C.
    """
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
