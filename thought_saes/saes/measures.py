"""What is measured of an SAE: one class a measure, in the order of the files.

`evaluate` shows every measure the training rows, then the validation rows, chunk by chunk. A new measure is a class
here (or in a file of its own) and its name in MEASURES; the lists of metrics, the README's table and what the figures
know of colours and directions follow from it.
"""

from __future__ import annotations  # torch is imported where it computes: who reads results need not wait for it

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thought_saes.saes.measure import Batch, Figure, Measure, RowMoments
from thought_saes.saes.moments import (
    Moments,
    ReadSpread,
    chunks,
    explained_variance,
    fraction_of_variance_unexplained,
    ratio,
    read_together,
    rows_at_once,
    with_float64,
)

if TYPE_CHECKING:
    from torch import Tensor

    from thought_saes.saes.sae import SparseAutoencoder

BUSIEST = 10


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

    def __init__(self, rows: RowMoments | None = None) -> None:
        self.rows = rows or RowMoments()
        self.errors = {validation: Moments() for validation in (False, True)}
        self.cosine: Tensor | float = 0.0
        self.n_values = 0

    def update(self, batch: Batch) -> None:
        if not self.rows.whole:
            self.rows.of[batch.validation].add(batch.rows)
        self.errors[batch.validation].add(batch.error)
        if batch.validation:
            from torch.nn.functional import cosine_similarity

            cosines = cosine_similarity(batch.rows, batch.reconstruction, dim=-1).sum()
            self.cosine = with_float64(cosines).double() + self.cosine
            self.n_values += batch.rows.numel()

    def totals(self) -> dict[str, Tensor | float]:
        spreads: dict[str, Tensor | float] = {
            f"rows {name}": moments.spread() for name, moments in self.rows.of.items()
        }
        spreads |= {f"error {name}": moments.spread() for name, moments in self.errors.items()}
        return spreads | {"cosine": self.cosine}

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        train, original = (ReadSpread(totals[f"rows {name}"]) for name in (False, True))
        train_error, error = (ReadSpread(totals[f"error {name}"]) for name in (False, True))
        return {
            "explained_variance": explained_variance(original, error),
            "reconstruction_loss": ratio(error.around_zero(), self.n_values),
            "cosine_similarity": ratio(float(totals["cosine"]), self.rows.of[True].count),
            "fvu": fraction_of_variance_unexplained(original, error),
            "fvu_train": fraction_of_variance_unexplained(train, train_error),
        }


class Halves(Measure):
    """fvu on two halves of the validation rows, every second row in each: one to choose an SAE by, one to report it."""

    figures = (
        Figure("fvu_selection", "fvu on every second validation row, the first among them", "share", "low", False),
        Figure("fvu_report", "fvu on the other validation rows", "share", "low", False),
    )

    def __init__(self, rows: RowMoments | None = None) -> None:
        self.rows = rows or RowMoments()
        self.errors = Moments(), Moments()
        self.n_seen = 0

    def update(self, batch: Batch) -> None:
        if not batch.validation:
            return
        for half, (original, error) in enumerate(zip(self.rows.halves, self.errors, strict=True)):
            rows = slice((half - self.n_seen) % 2, None, 2)
            if len(batch.rows[rows]):
                if not self.rows.whole:
                    original.add(batch.rows[rows])
                error.add(batch.error[rows])
        self.n_seen += len(batch.rows)

    def totals(self) -> dict[str, Tensor | float]:
        spreads: dict[str, Tensor | float] = {
            f"rows {half}": moments.spread() for half, moments in enumerate(self.rows.halves)
        }
        return spreads | {f"error {half}": moments.spread() for half, moments in enumerate(self.errors)}

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        found: dict[str, float | int] = {}
        for half, figure in enumerate(self.figures):
            spreads = (ReadSpread(totals[f"{what} {half}"]) for what in ("rows", "error"))
            there = self.errors[half].count
            found[figure.name] = fraction_of_variance_unexplained(*spreads) if there else float("nan")
        return found


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
        self.n_active: Tensor | float = 0
        self.magnitude: Tensor | float = 0.0
        self.largest: Tensor | float = 0.0

    def update(self, batch: Batch) -> None:
        if not batch.validation:
            return
        magnitudes = batch.entries.acts.abs()
        per_row = batch.entries.row_sums(magnitudes != 0)
        self.l0.add(per_row[:, None].float())
        self.n_active = per_row.sum() + self.n_active
        self.magnitude = with_float64(batch.entries.row_sums(magnitudes)).double().sum() + self.magnitude
        if len(magnitudes):
            self.largest = magnitudes.max().fmax(magnitudes.new_zeros(()) + self.largest)

    def totals(self) -> dict[str, Tensor | float]:
        of_l0: dict[str, Tensor | float] = {"l0": self.l0.mean, "l0 spread": self.l0.spread()}
        return of_l0 | {"active": self.n_active, "magnitude": self.magnitude, "largest": self.largest}

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        spread = ReadSpread(totals["l0 spread"])
        return {
            "l0_mean": float(totals["l0"]),
            "l0_std": ratio(spread.around_column_means(), self.l0.count - 1) ** 0.5,
            "mean_activation": ratio(float(totals["magnitude"]), float(totals["active"])),
            "max_activation": float(totals["largest"]),
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
            self.bits.append(batch.entries.acts.abs().view(torch.int32))

    def totals(self) -> dict[str, Tensor | float]:
        import torch

        bits = torch.cat(self.bits) if self.bits else torch.empty(0, dtype=torch.int32)
        if not len(bits):
            return {"active": 0, "median": 0.0}
        n_active = (bits != 0).sum()
        middle = (len(bits) - n_active + (n_active - 1).clamp(min=0) // 2).clamp(max=len(bits) - 1)  # zeros come first
        if bits.device.type == "cpu":
            median = bits.kthvalue(int(middle) + 1).values  # of a part of the order: no need to sort all
        else:
            median = bits.sort().values.index_select(0, middle[None])[0]
        return {"active": n_active, "median": median.view(torch.float32)}

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        return {"median_activation": float(totals["median"]) if totals["active"] else float("nan")}


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
        fired = torch.zeros(self.latent_dim, dtype=torch.int64, device=entries.acts.device)
        fired.scatter_add_(0, entries.features, (entries.acts != 0).long())
        self.firings[batch.validation] = fired + self.firings[batch.validation]
        self.n_rows += entries.n_rows

    def totals(self) -> dict[str, Tensor | float]:
        return {str(validation): firings for validation, firings in self.firings.items()}

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, float | int]:
        firings = (totals["False"] + totals["True"]).long()
        firing = firings[firings > 0]
        rates, busiest = firing.float() / self.n_rows, firings.topk(min(BUSIEST, len(firings))).values
        return {
            "feature_death_rate": 1 - len(firing) / self.latent_dim,
            "num_dead_features": self.latent_dim - len(firing),
            "num_active_features": len(firing),
            "num_active_features_validation": int((totals["True"] > 0).sum()),
            "busiest_10_share": ratio(float(busiest.sum()), float(firings.sum())),
            "firing_rate_mean": float(rates.mean()),
            "firing_rate_median": float(rates.median()) if len(rates) else float("nan"),
        }


# What makes each measure, for an SAE of this latent_dim on rows whose moments are kept.
MEASURES: tuple[tuple[type[Measure], Callable[[int, RowMoments], Measure]], ...] = (
    (Reconstruction, lambda latent_dim, rows: Reconstruction(rows)),
    (Halves, lambda latent_dim, rows: Halves(rows)),
    (Sparsity, lambda latent_dim, rows: Sparsity()),
    (MedianActivation, lambda latent_dim, rows: MedianActivation()),
    (Firings, lambda latent_dim, rows: Firings(latent_dim)),
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
    chunk_rows: int | None = None,
) -> None:
    """Show every measure the rows (n, input_dim) of each set, in chunks; True marks validation rows."""
    import torch

    from thought_saes.common.machine import float32_products

    with torch.inference_mode(), float32_products("ieee"):
        directions = sae.decoder.weight.T.contiguous()  # (latent_dim, input_dim)
        for x, validation in sets:
            for chunk in chunks(x, chunk_rows or rows_at_once(x)):
                entries = sae.entries(chunk)
                reconstruction = entries.reconstruct(directions, sae.decoder.bias)
                batch = Batch(chunk, entries, reconstruction, chunk - reconstruction, validation)
                for one in measures:
                    one.update(batch)


def evaluate(
    sae: SparseAutoencoder,
    x_train: Tensor,
    x_validation: Tensor,
    chunk_rows: int | None = None,
    rows: RowMoments | None = None,
) -> dict[str, Any]:
    """Every metric of one SAE under its name in the files.

    SAEs of the same rows, cut into the same chunks, may share `rows`. The host reads the device once, and once more
    for each chunk on which the number of entries is not known beforehand.
    """
    rows = rows or RowMoments()
    measures = [make(sae.latent_dim, rows) for _, make in MEASURES]
    measure(sae, [(x_train, False), (x_validation, True)], measures, chunk_rows)
    rows.whole = True
    totals = read_together([one.totals() for one in measures])
    found: dict[str, float | int] = {}
    for one, read in zip(measures, totals, strict=True):
        found |= one.numbers(read)
    return {figure.name: found[figure.name] for figure in FIGURES if figure.name in found}
