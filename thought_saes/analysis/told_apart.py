"""Whether differences are larger than chance: Welch's t on means over seeds, Holm's correction over comparisons.

Two means of n seeds that differ by more than the root of the sum of their squared standard deviations are no evidence:
with three seeds each, 16 % of equal pairs do (t > √3 with 4 degrees of freedom). Welch's test allows the two spreads to
differ; Holm's correction (Scandinavian Journal of Statistics 6, 1979) keeps the chance of a single false finding among
all comparisons of a table at ALPHA.
"""

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

ALPHA = 0.05


def welch(
    difference: np.ndarray, first_sd: np.ndarray, second_sd: np.ndarray | float, n: np.ndarray | int
) -> np.ndarray:
    """Two-sided p of each difference of two means over `n` seeds each, whose standard deviations are given.

    NaN where fewer than two seeds are there or a value is unknown. Without any spread, a difference has p 0 and none
    has p 1. Degrees of freedom are Welch and Satterthwaite's.
    """
    difference, first_sd, second_sd, n = np.broadcast_arrays(difference, first_sd, second_sd, np.asarray(n, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = first_sd**2 / n, second_sd**2 / n
        error = np.sqrt(first + second)
        freedom = (first + second) ** 2 / (first**2 / (n - 1) + second**2 / (n - 1))
        p = 2 * t_distribution.sf(np.abs(difference) / error, freedom)
    p = np.where(error == 0, np.where(difference == 0, 1.0, 0.0), p)
    return np.where((n >= 2) & np.isfinite(difference), p, np.nan)


def holm(p: np.ndarray) -> np.ndarray:
    """p adjusted for as many comparisons as have one: at most 1, in the order of `p`."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def told_apart(means: pd.Series, sds: pd.Series, first: object, n_seeds: int) -> pd.Series:
    """By the index of `means`, but for `first` itself: whether it differs from `first`, at ALPHA over all of them.

    All False with one seed: nothing is known of chance then.
    """
    others = means.index != first
    p = welch((means[others] - means[first]).to_numpy(float), sds[others].to_numpy(float), float(sds[first]), n_seeds)
    return pd.Series(np.nan_to_num(holm(p), nan=1.0) < ALPHA, means.index[others])
