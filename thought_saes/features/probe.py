"""The ceiling of single features: a linear probe of the whole activation for every concept.

Ridge regression on 0 and 1, standardised, fitted to the rows where the concept is defined; the penalty of each concept
is chosen by leave-one-out error on the training rows. A row is predicted where the probe's output is above the cut of
highest F1 among the left-out predictions.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thought_saes.features.concepts import Labels
from thought_saes.features.scores import f1_score

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # times the number of rows: columns have unit variance


class Probe(NamedTuple):
    """What the probes of all concepts do on the validation rows, (n_concepts,) each."""

    cut: np.ndarray  # on the probe's output
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    predicted: csr_array  # (n_validation, n_concepts)


def fit_probes(x_train: np.ndarray, train: Labels, x_validation: np.ndarray, validation: Labels) -> Probe:
    """Fit on x_train (n, input_dim), score on the other rows. Families with the same rows are fitted together."""
    n_concepts = len(train.family)
    cut, predicted = np.zeros(n_concepts), np.zeros((len(x_validation), n_concepts), dtype=np.float32)
    defined, where = train.defined.toarray().T > 0, validation.defined.toarray().T > 0
    together: dict[bytes, list[int]] = {}
    for family, rows in enumerate(defined):
        together.setdefault(rows.tobytes(), []).append(family)
    for families in together.values():
        columns = np.flatnonzero(np.isin(train.family, families))
        rows = defined[families[0]]
        output, left_out = ridge(x_train[rows], train.concepts[:, columns].toarray()[rows], x_validation)
        cut[columns] = best_cuts(left_out, train.concepts[:, columns].toarray()[rows])
        allowed = where[train.family[columns]].T
        predicted[:, columns] = (output > cut[columns]) & allowed
    sparse = csr_array(predicted)
    hits, fired = sparse.multiply(validation.concepts).sum(axis=0), sparse.sum(axis=0)
    having = validation.concepts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Probe(cut, f1_score(hits, fired, having), hits / fired, hits / having, sparse)


def ridge(x_train: np.ndarray, y: np.ndarray, x_other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of y (n, n_concepts): on x_other, and of each training row by the fit without it."""
    n_rows = len(x_train)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    deviation[deviation == 0] = 1
    x, other = (x_train - mean) / deviation, (x_other - mean) / deviation
    base = y.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh(x.T @ x)
    rotated = x @ axes  # (n, input_dim)
    along = rotated.T @ (y - base)
    best_error = np.full(y.shape[1], np.inf)
    left_out, weights = np.zeros_like(y), np.zeros_like(along)
    for penalty in PENALTIES:
        shrunk = 1 / (np.maximum(eigenvalues, 0) + np.float32(penalty * n_rows))
        here = shrunk[:, None] * along
        # How much of a row's prediction is its own label, the intercept's 1 / n included.
        leverage = (rotated**2) @ shrunk + 1 / n_rows
        residual = (y - base - rotated @ here) / (1 - leverage)[:, None]
        error = (residual**2).sum(axis=0)
        better = error < best_error
        best_error[better] = error[better]
        left_out[:, better] = (y - residual)[:, better]
        weights[:, better] = here[:, better]
    return other @ (axes @ weights) + base, left_out


def best_cuts(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each column of `outputs` (n, n_concepts) the cut of highest F1 against y; a row is predicted above it."""
    order = np.argsort(-outputs, axis=0, kind="stable")
    ranked = np.take_along_axis(outputs, order, axis=0)
    hits = np.take_along_axis(y, order, axis=0).cumsum(axis=0)
    fired = np.arange(1, len(y) + 1)[:, None]
    last = f1_score(hits, fired, y.sum(axis=0)).argmax(axis=0)
    columns = np.arange(y.shape[1])
    following = ranked[np.minimum(last + 1, len(y) - 1), columns]
    return (ranked[last, columns] + following) / 2
