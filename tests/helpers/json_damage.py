"""JSON files as a hand, a disk or an attacker leaves them: each class of damage, applied to every field in turn."""

import json
from collections.abc import Callable, Iterator
from typing import Any

HUGE = 10**25


def places(value: Any, most: int = 2) -> Iterator[tuple[Any, Any]]:
    """Every container in `value` with each of its keys; of a list only the first `most`."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), most)))
    else:
        return
    for key in keys:
        yield value, key
        yield from places(value[key], most)


def replaced(by: Callable[[Any], Any]) -> Callable[[str], Iterator[str]]:
    def damage(text: str) -> Iterator[str]:
        for number in range(len(list(places(json.loads(text))))):
            content = json.loads(text)
            container, key = list(places(content))[number]
            container[key] = by(container[key])
            yield json.dumps(content)

    return damage


def missing(text: str) -> Iterator[str]:
    for number in range(len(list(places(json.loads(text))))):
        content = json.loads(text)
        container, key = list(places(content))[number]
        del container[key]
        yield json.dumps(content)


def wrong_type(value: Any) -> Any:
    return {"it": 1} if isinstance(value, list | str) else ["x"] if isinstance(value, dict) else "x"


DAMAGE: dict[str, Callable[[str], Iterator[str]]] = {
    "wrong type": replaced(wrong_type),
    "number for text or back": replaced(lambda value: 3.7 if isinstance(value, str | dict | list) else True),
    "missing": missing,
    "null": replaced(lambda value: None),
    "huge": replaced(lambda value: HUGE),
    "negative": replaced(lambda value: -16),
    "infinite": replaced(lambda value: float("inf")),
    "nested": lambda text: iter(["[" * 200_000 + text + "]" * 200_000, "[" * 500 + text + "]" * 500]),
    "another document": lambda text: iter(
        ["", "\0" * 64, "null", "[]", "{}", "3", '"x"', text[: len(text) // 2], text * 2]
    ),
}
