"""The number that a text gives as its answer, and which of the answer's tokens say it."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

NUMBER = re.compile(r"-?\d+\.?\d*")  # as the original experiment reads answers


def last_number(text: str) -> float | None:
    """The last number of `text`, commas left out; None if there is none, or one too large for a float."""
    found = NUMBER.findall(text.replace(",", ""))
    number = float(found[-1]) if found else math.inf
    return number if math.isfinite(number) else None


def gold_number(answer: str | None) -> float | None:
    """The number of a data set's answer: the last one behind `####`, or of the whole where there is no such mark."""
    return last_number(answer.rpartition("####")[2]) if answer is not None else None


class Span(NamedTuple):
    """Some tokens of an answer: from `first` up to, but without, `end`."""

    first: int
    end: int


def number_span(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Span | None:
    """The tokens of an answer that say its last number; None if it says none."""
    text = decode(tokens).replace(",", "")
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    lengths = [len(decode(tokens[:n]).replace(",", "")) for n in range(1, len(tokens) + 1)]
    first = next(index for index, length in enumerate(lengths) if length > found[-1].start())
    last = next(index for index, length in enumerate(lengths) if length >= found[-1].end())
    return Span(first, last + 1)


def same_answer(number: float | None, other: float | None, text: str, other_text: str) -> bool:
    """Whether two answers agree: by their numbers, or, where neither says one, by their text."""
    return text == other_text if number is None and other is None else number == other
