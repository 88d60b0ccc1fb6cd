"""What a measure is: what it is shown, what it sums up on the rows' device, and the numbers that follow."""

from __future__ import annotations  # torch is imported where it computes: who reads results need not wait for it

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from thought_saes.saes.moments import Moments, read_together

if TYPE_CHECKING:
    from torch import Tensor

    from thought_saes.saes.entries import Entries

Better = Literal["high", "low"] | None


class Batch(NamedTuple):
    """A chunk of rows and what the SAE makes of it."""

    rows: Tensor  # (n, input_dim)
    entries: Entries
    reconstruction: Tensor  # (n, input_dim)
    error: Tensor  # (n, input_dim): the rows less their reconstruction
    validation: bool  # whether these are validation rows


class RowMoments:
    """The moments of a cell's rows: what the first of its SAEs gathers, the others find here."""

    def __init__(self) -> None:
        self.of = {validation: Moments() for validation in (False, True)}
        self.halves = Moments(), Moments()  # of the validation rows
        self.whole = False  # whether all rows have been seen


class Figure(NamedTuple):
    """One number that a measure gives, and how it is to be read."""

    name: str  # the key in the files
    formula: str  # in words
    unit: str
    better: Better
    published: bool  # whether the original's files hold it


class Measure(ABC):
    """Something counted or summed over rows, where they are: nothing is read by the host before all are seen."""

    figures: tuple[Figure, ...]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Take a chunk in."""

    @abstractmethod
    def totals(self) -> dict[str, Tensor | float]:
        """What the numbers follow from, on the rows' device."""

    @abstractmethod
    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        """The numbers by name, from totals that the host has read: float64, on the CPU."""

    def compute(self) -> dict[str, float | int]:
        """The numbers by name."""
        return self.numbers(*read_together([self.totals()]))
