"""Statistics of paired measurements on the same questions: resampling, McNemar's test, the false discovery rate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

N_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles


class Interval(NamedTuple):
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return not (self.low > 0 or self.high < 0)


def resample_weights(seed: int, rows: Sequence[int], n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """How often each question is in each bootstrap sample, (len(rows), n_resamples).

    Poisson(1) counts that depend on the seed and the question's row alone (Chamandy et al. 2012, "Estimating
    Uncertainty for Massive Data Streams"): every condition meets the same resamples, whatever runs beside it, and
    sums can be kept while the questions stream past.
    """
    return np.stack([np.random.default_rng([seed, 1, row]).poisson(1.0, n_resamples) for row in rows]).astype(float)


class ResampledMean:
    """Mean, standard deviation and interval of a measurement of some conditions, as the questions stream past."""

    def __init__(self, n_conditions: int, n_resamples: int = N_RESAMPLES) -> None:
        self.count = np.zeros(n_conditions)
        self.total = np.zeros(n_conditions)
        self.squares = np.zeros(n_conditions)
        self._weights = np.zeros((n_conditions, n_resamples))
        self._totals = np.zeros((n_conditions, n_resamples))

    def add(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Take in values (n_conditions, n), NaN where there is none, with their `resample_weights` (n, n_resamples)."""
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        self.count += there.sum(1)
        self.total += filled.sum(1)
        self.squares += (filled**2).sum(1)
        self._weights += there.astype(float) @ weights
        self._totals += filled @ weights

    def mean(self, condition: int) -> float | None:
        """None if the condition has no value."""
        return float(self.total[condition] / self.count[condition]) if self.count[condition] else None

    def sd(self, condition: int) -> float | None:
        """The sample standard deviation; None with fewer than two values."""
        n = self.count[condition]
        if n < 2:
            return None
        return float(np.sqrt(max(0.0, (self.squares[condition] - self.total[condition] ** 2 / n) / (n - 1))))

    def interval(self, condition: int) -> list[float] | None:
        """The percentile interval of 95 %; None if the condition has no value."""
        weights = self._weights[condition]
        if not (weights > 0).any():
            return None
        means = self._totals[condition][weights > 0] / weights[weights > 0]
        return [float(value) for value in np.percentile(means, INTERVAL)]


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """The exact two-sided p of as many changes one way and the other, if both were as likely."""
    changes = right_to_wrong + wrong_to_right
    return float(binomtest(right_to_wrong, changes, 0.5).pvalue) if changes else 1.0


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The q-value of each p: the least false discovery rate at which it is still called a finding."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return [float(value) for value in q]
