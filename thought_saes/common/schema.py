"""The reading of files whose contents are described by a model: nothing that a file says is believed before.

A model is a `Record`; its annotations are what is checked, and what `docs/formats.md` says. Keys that a model does not
name are ignored.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from thought_saes.common.errors import DamagedFile, shorten
from thought_saes.common.files import read_json, read_json_lines

LARGEST = 2**63 - 1  # what arrays and tables can hold
GREATEST = 1.7976931348623157e308

Whole = Annotated[int, msgspec.Meta(ge=-LARGEST - 1, le=LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Number = Annotated[float, msgspec.Meta(ge=-GREATEST, le=GREATEST)]  # neither infinite nor NaN
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Change = Annotated[float, msgspec.Meta(ge=-1, le=1)]  # of a share
Counted = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,17})$")]  # a Count as the key of an object

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}
BELOW = {f"{2**31 - 1}": "below 2^31"}
SHOWN = 60
SAID = 1e6  # a bound beyond it is that of the type


class Record(msgspec.Struct):
    """A JSON object with known keys. `file` is the name of the file that holds it."""

    file: ClassVar[str]


Model = TypeVar("Model")


def read_record(path: Path, model: type[Model]) -> Model:
    """What a JSON file says, as a `model`. Raises DamagedFile if it is anything else, OSError if it cannot be read."""
    return check(read_json(path), model, str(path))


def read_checked(path: Path, model: type[Record], way_out: str = "") -> dict[str, Any]:
    """What a JSON file says, as it stands there, keys that the `model` does not name included.

    Raises DamagedFile, which ends with the `way_out`, if it is not what the model says; OSError if it cannot be read.
    """
    try:
        content: dict[str, Any] = read_json(path)
        check(content, model, str(path))
    except DamagedFile as problem:
        raise DamagedFile(f"{problem}: {way_out}" if way_out else str(problem)) from problem
    return content


def read_checked_lines(path: Path, model: type[Record]) -> list[dict[str, Any]]:
    """The objects of a file that holds one on each line, likewise."""
    records = []
    for number, record in enumerate(read_json_lines(path), start=1):
        check(record, model, f"line {number} of {path}")
        records.append(record)
    return records


def check(content: Any, model: type[Model], where: str) -> Model:
    """JSON values as a `model`. Raises DamagedFile with the place, what is there, and what would be right."""
    try:
        return msgspec.convert(content, model)
    except msgspec.ValidationError as problem:
        raise DamagedFile(f"{where}: {_in_words(str(problem), content)}") from problem
    except RecursionError as problem:
        raise DamagedFile(f"{where} is nested too deep") from problem


def shown(value: Any) -> str:
    """A JSON value as a message shows it: whole if it is short, else its kind."""
    if isinstance(value, dict | list):
        kind, things = ("an object", "keys") if isinstance(value, dict) else ("a list", "values")
        return f"{kind} of {len(value):,} {things}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return f"a number of more than {SHOWN} digits"
    return shorten(json.dumps(value, ensure_ascii=False), SHOWN)


def _in_words(problem: str, content: Any) -> str:
    """msgspec's message in our form: "rows_done is -16, not a whole number of 0 or more"."""
    message, _, place = problem.partition(" - at `")
    place, in_key = place.removesuffix("`"), place.startswith("key")
    steps = re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", place)
    name = ".".join(key or ("*" if index == "..." else index) for key, index in steps)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return f"{'.'.join(filter(None, (name, missing[1])))} is missing"
    right = _right(message)
    values = [content]
    for key, index in steps:  # `...` stands for any key: the values at fault are among all of them
        values = [one for value in values for one in _at(value, key, index)]
    subject = (f"a key of {name}" if name else "a key") if in_key else (name or "it")
    if len(values) == 1 and not in_key:
        return f"{subject} is {shown(values[0])}, not {right}"
    got = re.search(r", got `(.*)`$", message)
    return f"{subject} is {WORDS.get(got[1], got[1]) if got else 'something else'}, not {right}"


def _at(value: Any, key: str, index: str) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values()) if index == "..." else [value[key]] if key in value else []
    if isinstance(value, list) and index:
        return value if index == "..." else value[int(index) : int(index) + 1]
    return []


def _right(message: str) -> str:
    """What msgspec says that it expected, in words."""
    expected = re.match(r"Expected `([^`]*)`(?: (<=|>=|matching regex) ?(.*?))?(?:, got .*)?$", message)
    if message.startswith("Number out of range"):
        return "a finite number"
    if not expected:
        return "what it should be: " + message[0].lower() + message[1:].replace("`", "'")
    kinds = " or ".join(WORDS.get(kind, kind) for kind in expected[1].split(" | ") if kind != "null") or "null"
    match expected[2], expected[3]:
        case ">=", least if abs(float(least)) < SAID:
            return f"{kinds} of {least.removesuffix('.0')} or more"
        case "<=", most if abs(float(most)) < SAID:
            return f"{kinds} of {most.removesuffix('.0')} or less"
        case "matching regex", _:
            return "a whole number of 0 or more"
        case "<=", _:
            return "a finite number" if expected[1] == "float" else f"{kinds} {BELOW.get(expected[3], 'below 2^63')}"
    return kinds
