"""Sums over rows that come in chunks, kept in float64: the chunks' size does not show in them."""

from __future__ import annotations  # torch is imported where it computes: who reads results need not wait for it

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ROWS = 1024  # so that measuring a wide SAE takes less memory than training it did
CHUNK_ROWS_ON_DEVICE = 4096  # fewer launches; a GPU that has trained a stack has room for them


def rows_at_once(x: Tensor) -> int:
    """How many rows of x to measure at a time."""
    return CHUNK_ROWS if x.device.type == "cpu" else CHUNK_ROWS_ON_DEVICE


def chunks(x: Tensor, rows: int) -> Iterator[Tensor]:
    """`x` in pieces of at most `rows` rows."""
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where there is nothing to divide by."""
    return part / whole if whole else float("nan")


def read_together(found: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, Tensor]]:
    """The numbers as float64 on the CPU, by one read of the device: counts are exact, as are all float32 numbers."""
    import torch

    tensors = [torch.as_tensor(value) for one in found for value in one.values()]
    device = next((tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "mps")), None)
    flat = [with_float64(tensor).double().flatten().to(device) for tensor in tensors]
    read = torch.cat(flat).cpu().split([len(one) for one in flat]) if flat else ()
    shaped = iter([one.view(tensor.shape) for one, tensor in zip(read, tensors, strict=True)])
    return [{name: next(shaped) for name in one} for one in found]


def with_float64(x: Tensor) -> Tensor:
    """x, on a device that has float64."""
    return x.cpu() if x.device.type == "mps" else x


def second_moments(x: Tensor, mean: Tensor | None = None) -> Tensor:
    """The sum over the rows of x (n, input_dim) of their outer products, less `mean` if given: float64, on the CPU."""
    import torch

    total: Tensor | None = None
    for chunk in chunks(x, CHUNK_ROWS):
        rows = with_float64(chunk).double()
        rows = rows if mean is None else rows - mean.to(rows.device)
        total = rows.T @ rows if total is None else total + rows.T @ rows
    return torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64) if total is None else total.cpu()


class Spread(Protocol):
    """How far values are from something, in squares."""

    def around_column_means(self) -> float: ...
    def around_zero(self) -> float: ...
    def scalar_variance(self) -> float: ...


class ReadSpread(NamedTuple):
    """That of rows which the host has read: see `Moments.spread`."""

    values: Tensor  # (3,)

    def around_column_means(self) -> float:
        return float(self.values[0])

    def around_zero(self) -> float:
        return float(self.values[1])

    def scalar_variance(self) -> float:
        return float(self.values[2])


class Moments:
    """Count, mean and sum of squared deviations of each column, gathered chunk by chunk in float64."""

    def __init__(self) -> None:
        import torch

        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, chunk: Tensor) -> None:
        """Take in the rows of `chunk` (n, d). Chan, Golub and LeVeque's pairwise update."""
        chunk = with_float64(chunk).double()
        count, mean = len(chunk), chunk.mean(dim=0)
        squares = (chunk - mean).square_().sum(dim=0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def spread(self) -> Tensor:
        """`around_column_means`, `around_zero` and `scalar_variance`, (3,), where the rows are."""
        import torch

        column_means = self.squares.sum()
        zero = (self.squares + self.count * self.mean.square()).sum()
        grand = self.mean.mean()
        variance = column_means + self.count * (self.mean - grand).square().sum()
        return torch.stack([column_means, zero, variance / (self.count * self.mean.numel() - 1)])

    def around_column_means(self) -> float:
        """Sum over rows and columns of (value - its column's mean)^2."""
        return float(self.spread()[0])

    def around_zero(self) -> float:
        """Sum over rows and columns of value^2."""
        return float(self.spread()[1])

    def scalar_variance(self) -> float:
        """The unbiased variance of all values taken as one sample."""
        return float(self.spread()[2])


def explained_variance(original: Spread, error: Spread) -> float:
    """The experiment's: 1 - var(x - x_hat) / var(x), each one variance over all n * d values.

    Offsets between dimensions count as variance, so that predicting the mean of x already scores high.
    """
    return 1 - ratio(error.scalar_variance(), original.scalar_variance())


def fraction_of_variance_unexplained(original: Spread, error: Spread) -> float:
    """sum |x - x_hat|^2 / sum |x - mean of the rows|^2: 0 is perfect, 1 as good as predicting the mean."""
    return ratio(error.around_zero(), original.around_column_means())
