"""Sums over rows that come in chunks, kept in float64: the chunks' size does not show in them."""

from __future__ import annotations  # torch is imported where it computes: who reads results need not wait for it

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ROWS = 1024  # so that measuring a wide SAE takes less memory than training it did


def chunks(x: Tensor, rows: int) -> Iterator[Tensor]:
    """`x` in pieces of at most `rows` rows."""
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where there is nothing to divide by."""
    return part / whole if whole else float("nan")


class Moments:
    """Count, mean and sum of squared deviations of each column, gathered chunk by chunk in float64."""

    def __init__(self) -> None:
        import torch

        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, chunk: Tensor) -> None:
        """Take in the rows of `chunk` (n, d). Chan, Golub and LeVeque's pairwise update."""
        chunk = (chunk.cpu() if chunk.device.type == "mps" else chunk).double()
        count, mean = len(chunk), chunk.mean(dim=0)
        squares = (chunk - mean).square().sum(dim=0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def around_column_means(self) -> float:
        """Sum over rows and columns of (value - its column's mean)^2."""
        return float(self.squares.sum())

    def around_zero(self) -> float:
        """Sum over rows and columns of value^2."""
        return float((self.squares + self.count * self.mean.square()).sum())

    def scalar_variance(self) -> float:
        """The unbiased variance of all values taken as one sample."""
        grand = self.mean.mean()
        total = self.squares.sum() + self.count * (self.mean - grand).square().sum()
        return float(total / (self.count * self.mean.numel() - 1))


def explained_variance(original: Moments, error: Moments) -> float:
    """The experiment's: 1 - var(x - x_hat) / var(x), each one variance over all n * d values.

    Offsets between dimensions count as variance, so that predicting the mean of x already scores high.
    """
    return 1 - ratio(error.scalar_variance(), original.scalar_variance())


def fraction_of_variance_unexplained(original: Moments, error: Moments) -> float:
    """sum |x - x_hat|^2 / sum |x - mean of the rows|^2: 0 is perfect, 1 as good as predicting the mean."""
    return ratio(error.around_zero(), original.around_column_means())
