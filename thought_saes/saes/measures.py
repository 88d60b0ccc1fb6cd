"""What is measured of an SAE: one class a measure, in the order of the files.

`evaluate` shows every measure the training rows, then the validation rows, chunk by chunk. A new measure is a class
here (or in a file of its own) and its name in MEASURES; the lists of metrics, the README's table and what the figures
know of colours and directions follow from it.
"""

from __future__ import annotations  # torch is imported where it computes: who reads results need not wait for it

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from thought_saes.saes.moments import (
    CHUNK_ROWS,
    Moments,
    chunks,
    explained_variance,
    fraction_of_variance_unexplained,
    ratio,
)

if TYPE_CHECKING:
    from torch import Tensor

    from thought_saes.saes.entries import Entries
    from thought_saes.saes.sae import SparseAutoencoder

BUSIEST = 10
Better = Literal["high", "low"] | None


class Batch(NamedTuple):
    """A chunk of rows and what the SAE makes of it."""

    rows: Tensor  # (n, input_dim)
    entries: Entries
    reconstruction: Tensor  # (n, input_dim)
    validation: bool  # whether these are validation rows


class Figure(NamedTuple):
    """One number that a measure gives, and how it is to be read."""

    name: str  # the key in the files
    formula: str  # in words
    unit: str
    better: Better
    published: bool  # whether the original's files hold it


class Measure(ABC):
    """Something counted or summed over rows. `update` takes a chunk, `compute` gives the numbers by name."""

    figures: tuple[Figure, ...]

    @abstractmethod
    def update(self, batch: Batch) -> None: ...

    @abstractmethod
    def compute(self) -> dict[str, float | int]: ...


class Reconstruction(Measure):
    """How near the reconstruction is, on validation rows and, as fvu_train, on training rows."""

    figures = (
        Figure("explained_variance", "1 - var(x - x_hat) / var(x), each one variance over all values", "share", "high",
               True),
        Figure("reconstruction_loss", "mean squared error over all values", "value²", "low", True),
        Figure("cosine_similarity", "mean over rows of cos(x, x_hat)", "cosine", "high", True),
        Figure("fvu", "sum |x - x_hat|² / sum |x - mean of the rows|²", "share", "low", False),
        Figure("fvu_train", "fvu on the training rows", "share", "low", False),
    )  # fmt: skip

    def __init__(self) -> None:
        self.moments = {validation: (Moments(), Moments()) for validation in (False, True)}
        self.cosine, self.n_values = 0.0, 0

    def update(self, batch: Batch) -> None:
        original, error = self.moments[batch.validation]
        original.add(batch.rows)
        error.add(batch.rows - batch.reconstruction)
        if batch.validation:
            from torch.nn.functional import cosine_similarity

            self.cosine += float(cosine_similarity(batch.rows, batch.reconstruction, dim=-1).sum())
            self.n_values += batch.rows.numel()

    def compute(self) -> dict[str, float | int]:
        original, error = self.moments[True]
        return {
            "explained_variance": explained_variance(original, error),
            "reconstruction_loss": ratio(error.around_zero(), self.n_values),
            "cosine_similarity": ratio(self.cosine, original.count),
            "fvu": fraction_of_variance_unexplained(original, error),
            "fvu_train": fraction_of_variance_unexplained(*self.moments[False]),
        }


class Halves(Measure):
    """fvu on two halves of the validation rows, every second row in each: one to choose an SAE by, one to report it."""

    figures = (
        Figure("fvu_selection", "fvu on every second validation row, the first among them", "share", "low", False),
        Figure("fvu_report", "fvu on the other validation rows", "share", "low", False),
    )

    def __init__(self) -> None:
        self.moments = (Moments(), Moments()), (Moments(), Moments())
        self.n_seen = 0

    def update(self, batch: Batch) -> None:
        if not batch.validation:
            return
        for half, (original, error) in enumerate(self.moments):
            rows = slice((half - self.n_seen) % 2, None, 2)
            if len(batch.rows[rows]):
                original.add(batch.rows[rows])
                error.add(batch.rows[rows] - batch.reconstruction[rows])
        self.n_seen += len(batch.rows)

    def compute(self) -> dict[str, float | int]:
        names = (figure.name for figure in self.figures)
        return {
            name: fraction_of_variance_unexplained(*moments) if moments[0].count else float("nan")
            for name, moments in zip(names, self.moments, strict=True)
        }


class Sparsity(Measure):
    """How many latents of a validation row are not zero, and how large they are."""

    figures = (
        Figure("l0_mean", "latents of a row that are not zero", "latents", None, True),
        Figure("l0_std", "standard deviation over rows of their number", "latents", None, True),
        Figure("mean_activation", "mean of |z| where it is not zero", "value", None, True),
        Figure("max_activation", "largest |z|", "value", None, True),
    )

    def __init__(self) -> None:
        self.l0 = Moments()
        self.magnitude = self.largest = 0.0
        self.n_active = 0

    def update(self, batch: Batch) -> None:
        if not batch.validation:
            return
        magnitudes = batch.entries.acts.abs()
        per_row = batch.entries.row_sums(magnitudes != 0)
        self.l0.add(per_row[:, None].float())
        self.n_active += int(per_row.sum())
        self.magnitude += float(batch.entries.row_sums(magnitudes).cpu().double().sum())
        if len(magnitudes):
            self.largest = max(self.largest, float(magnitudes.max()))

    def compute(self) -> dict[str, float | int]:
        return {
            "l0_mean": float(self.l0.mean),
            "l0_std": ratio(self.l0.around_column_means(), self.l0.count - 1) ** 0.5,
            "mean_activation": ratio(self.magnitude, self.n_active),
            "max_activation": self.largest,
        }


class MedianActivation(Measure):
    """The exact median of |z| over the latents of validation rows that are not zero; the lower of two middle values.

    The bits of positive float32 numbers sort as the numbers do; they are kept, four bytes an entry.
    """

    figures = (Figure("median_activation", "median of |z| where it is not zero", "value", None, True),)

    def __init__(self) -> None:
        self.bits: list[Tensor] = []

    def update(self, batch: Batch) -> None:
        import torch

        if batch.validation:
            bits = batch.entries.acts.abs().cpu().view(torch.int32)
            self.bits.append(bits[bits != 0])

    def compute(self) -> dict[str, float | int]:
        import torch

        bits = torch.cat(self.bits) if self.bits else torch.empty(0, dtype=torch.int32)
        if not len(bits):
            return {"median_activation": float("nan")}
        middle = bits.kthvalue((len(bits) - 1) // 2 + 1).values
        return {"median_activation": float(middle.view(torch.float32))}


class Firings(Measure):
    """Which features are zero on every row, and how often the others fire: training and validation rows together."""

    figures = (
        Figure("feature_death_rate", "features that are zero on every row, of latent_dim", "share", "low", True),
        Figure("num_dead_features", "features that are zero on every row", "features", "low", True),
        Figure("num_active_features", "features that are not zero on some row", "features", "high", True),
        Figure("num_active_features_validation", "the same on validation rows alone", "features", "high", False),
        Figure("busiest_10_share", "firings of the ten busiest features, of all", "share", None, False),
        Figure("firing_rate_mean", "over features that fire: rows on which they do, mean", "share", None, False),
        Figure("firing_rate_median", "over features that fire: rows on which they do, median", "share", None, False),
    )

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim, self.n_rows = latent_dim, 0
        self.firings: dict[bool, Tensor | int] = {False: 0, True: 0}

    def update(self, batch: Batch) -> None:
        import torch

        entries = batch.entries
        fired = torch.bincount(entries.features[entries.acts != 0], minlength=self.latent_dim)
        self.firings[batch.validation] = self.firings[batch.validation] + fired
        self.n_rows += entries.n_rows

    def compute(self) -> dict[str, float | int]:
        import torch

        firings = torch.as_tensor(self.firings[False] + self.firings[True])
        firing = firings[firings > 0]
        rates = firing.float() / self.n_rows
        return {
            "feature_death_rate": 1 - len(firing) / self.latent_dim,
            "num_dead_features": self.latent_dim - len(firing),
            "num_active_features": len(firing),
            "num_active_features_validation": int((torch.as_tensor(self.firings[True]) > 0).sum()),
            "busiest_10_share": ratio(
                float(firings.sort(descending=True).values[:BUSIEST].sum()), float(firings.sum())
            ),
            "firing_rate_mean": float(rates.mean()),
            "firing_rate_median": float(rates.median()) if len(rates) else float("nan"),
        }


# What makes each measure, for an SAE of this latent_dim.
MEASURES: tuple[tuple[type[Measure], Callable[[int], Measure]], ...] = (
    (Reconstruction, lambda latent_dim: Reconstruction()),
    (Halves, lambda latent_dim: Halves()),
    (Sparsity, lambda latent_dim: Sparsity()),
    (MedianActivation, lambda latent_dim: MedianActivation()),
    (Firings, Firings),
)
COSTS = (
    Figure("train_time_sec", "seconds of one SAE; in a stack, its share", "s", "low", True),
    Figure("epochs", "passes over the training rows", "epochs", None, True),
)
FIGURES: tuple[Figure, ...] = (*(figure for measure, _ in MEASURES for figure in measure.figures), *COSTS)
PUBLISHED_METRICS = [figure.name for figure in FIGURES if figure.published]
ADDED_METRICS = [figure.name for figure in FIGURES if not figure.published]


def measure(
    sae: SparseAutoencoder,
    sets: Sequence[tuple[Tensor, bool]],
    measures: Sequence[Measure],
    chunk_rows: int = CHUNK_ROWS,
) -> None:
    """Show every measure the rows (n, input_dim) of each set, in chunks; True marks validation rows."""
    import torch

    from thought_saes.common.machine import float32_products

    with torch.inference_mode(), float32_products("ieee"):
        directions = sae.decoder.weight.T.contiguous()  # (latent_dim, input_dim)
        for x, validation in sets:
            for chunk in chunks(x, chunk_rows):
                entries = sae.entries(chunk)
                batch = Batch(chunk, entries, entries.reconstruct(directions, sae.decoder.bias), validation)
                for one in measures:
                    one.update(batch)


def evaluate(
    sae: SparseAutoencoder, x_train: Tensor, x_validation: Tensor, chunk_rows: int = CHUNK_ROWS
) -> dict[str, Any]:
    """Every metric of one SAE under its name in the files."""
    measures = [make(sae.latent_dim) for _, make in MEASURES]
    measure(sae, [(x_train, False), (x_validation, True)], measures, chunk_rows)
    found = {name: value for one in measures for name, value in one.compute().items()}
    return {figure.name: found[figure.name] for figure in FIGURES if figure.name in found}
