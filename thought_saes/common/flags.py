"""Flags made from a config dataclass, and the checks that configs share.

A script's config is a frozen dataclass whose fields are made by `option`; `parse_config` turns each field into
a flag of the same name.
"""

import argparse
import dataclasses
import importlib.util
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, NoReturn, TypeVar

from thought_saes.common.errors import InputError, shorten
from thought_saes.common.text import compact

Config = TypeVar("Config")

# Beyond it no layer and no position can be meant: a mistyped range would fill the memory.
MOST_CHOSEN = 99_999
LARGEST = 2**63 - 1  # what the tables of an analysis can hold
MOST_THREADS = 1024  # far more than there are cores, and few enough to be started


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
                raise argparse.ArgumentTypeError(f"'{shorten(text, 40)}' is not 'all', '3', '0-5' or '0,7,14'")
            if any(len(digits.lstrip("0")) > len(str(MOST_CHOSEN)) for digits in (first, last)):
                raise argparse.ArgumentTypeError(f"'{shorten(part.strip(), 40)}' goes beyond {MOST_CHOSEN:,}")
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


def option(default: Any = MISSING, *, help: str, choices: Sequence[Any] | None = None, also: str | None = None) -> Any:
    """A config field that is also a flag; without `default` the flag is required. `also`: another spelling of it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "also": also})


def whole(text: str) -> int:
    """The number that a flag gives. Raises argparse.ArgumentTypeError if it is none, or beyond 64 bits."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{shorten(text, 40)}' is not a whole number") from None
    if abs(number) > LARGEST:
        raise argparse.ArgumentTypeError(f"'{shorten(text, 40)}' goes beyond 64 bits")
    return number


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
        if kind is bool:  # one that is not decided may be turned off too
            undecided = field.default is None
            settings["action"] = argparse.BooleanOptionalAction if undecided else "store_true"
        elif typing.get_origin(kind) is tuple:
            member = typing.get_args(kind)[0]
            settings |= {"nargs": "+", "type": whole if member is int else member, "metavar": "N"}
        elif kind is Selection:
            settings |= {"nargs": "+", "metavar": "WHICH"}
        else:
            settings |= {"type": whole if kind is int else kind, "choices": field.metadata["choices"]}
        spellings = [name for name in (field.name, field.metadata["also"]) if name]
        parser.add_argument(
            *("--" + name.replace("_", "-") for name in spellings), default=argparse.SUPPRESS, **settings
        )
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


def check_at_most(config: Any, maximum: float, *names: str) -> None:
    """Raises InputError if one of the config's fields `names` is set and above `maximum`."""
    for name in names:
        if (number := getattr(config, name)) is not None and number > maximum:
            raise InputError(f"--{name.replace('_', '-')} must be at most {maximum:,}, not {number:,}")


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
