"""The area under the ROC curve of scores for errors, resampled, and how well a probe foretells errors out of fold."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.003, 0.03, 0.3)  # C of the logistic regression; one is chosen inside each fold
N_FOLDS = 5


def auroc(scores: np.ndarray, wrong: np.ndarray, weights: np.ndarray | None = None) -> float:
    """P(a wrong row scores above a right one), ties half; rows count as `weights` says. NaN without both kinds."""
    weights = np.ones(len(scores)) if weights is None else weights
    values, place = np.unique(scores, return_inverse=True)
    bad = np.bincount(place, weights * wrong, len(values))
    good = np.bincount(place, weights * ~wrong, len(values))
    pairs = bad.sum() * good.sum()
    below = np.cumsum(good) - good
    return float((bad * (below + good / 2)).sum() / pairs) if pairs else float("nan")


def aurocs(scores: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`auroc` in each resample, weights (n, n_resamples): (n_resamples,)."""
    place = np.unique(scores, return_inverse=True)[1]
    ordered = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[ordered], prepend=-1))
    bad = np.add.reduceat(weights[ordered] * wrong[ordered, None], starts)
    good = np.add.reduceat(weights[ordered] * ~wrong[ordered, None], starts)
    pairs = bad.sum(0) * good.sum(0)
    below = np.cumsum(good, 0) - good
    with np.errstate(invalid="ignore", divide="ignore"):
        return (bad * (below + good / 2)).sum(0) / pairs


def within_strata(scores: np.ndarray, wrong: np.ndarray, strata: Sequence[object]) -> float:
    """The mean of the strata's AUROCs, each counting as its pairs of a wrong and a right row."""
    total, pairs_of_all = 0.0, 0
    names = np.array([str(stratum) for stratum in strata])
    for name in np.unique(names):
        rows = names == name
        pairs = int(wrong[rows].sum() * (~wrong[rows]).sum())
        if pairs:
            total += pairs * auroc(scores[rows], wrong[rows])
            pairs_of_all += pairs
    return total / pairs_of_all if pairs_of_all else float("nan")


def folds(wrong: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified, and no question both in a training and in a test fold."""
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(wrong)), wrong, groups))


class Division(NamedTuple):
    """Rows that a probe is fitted on and judged on; of the former, those that C is tried on and judged on."""

    train: np.ndarray
    test: np.ndarray
    inner: np.ndarray  # places in `train`
    held: np.ndarray  # likewise


def divisions(wrong: np.ndarray, groups: np.ndarray, n_repeats: int, seed: int) -> list[Division]:
    """`n_repeats` divisions into folds, a part for each fold. They do not depend on what is probed."""
    return [
        Division(train, test, *folds(wrong[train], groups[train], seed)[-1])
        for repeat in range(n_repeats)
        for train, test in folds(wrong, groups, seed + repeat)
    ]


def fitted(x: np.ndarray, wrong: np.ndarray, strength: float) -> object:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, solver="newton-cholesky", max_iter=50, tol=1e-3)
    ).fit(x, wrong)


def out_of_fold(x: np.ndarray, wrong: np.ndarray, divided: Sequence[Division]) -> np.ndarray:
    """Scores (n,) of rows by probes that never saw their question, the mean over the repeats in `divided`.

    Standardisation and the choice of C see the training folds only: C is chosen on the last of their own folds.
    Scores are log-odds, so that folds can be pooled.
    """
    total = np.zeros(len(x))
    for train, test, inner, held in divided:
        chosen = max(STRENGTHS, key=partial(strength_auroc, x[train], wrong[train], inner, held))
        total[test] += decide(x[train], wrong[train], chosen, x[test])
    return total * N_FOLDS / len(divided)


def strength_auroc(x: np.ndarray, wrong: np.ndarray, inner: np.ndarray, held: np.ndarray, strength: float) -> float:
    """The AUROC on the rows `held` of a probe of this C fitted on the rows `inner`."""
    return auroc(decide(x[inner], wrong[inner], strength, x[held]), wrong[held])


def decide(x: np.ndarray, wrong: np.ndarray, strength: float, unseen: np.ndarray) -> np.ndarray:
    """The log-odds of an error on the rows `unseen`, by a probe fitted on x."""
    return np.asarray(fitted(x, wrong, strength).decision_function(unseen))  # type: ignore[attr-defined]
