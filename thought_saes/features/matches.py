"""The halves of other SAEs that fire on the same questions: the same feature at other positions, layers and seeds."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thought_saes.features.scores import half_name

MATCHES = 6  # told of a half, each from another SAE
FIRINGS = 5  # a half that fires on fewer rows is not matched


class Halved(NamedTuple):
    """The halves of one SAE that fire on FIRINGS rows or more, standardised for correlations."""

    halves: np.ndarray  # (n,) their numbers
    values: csr_array  # (n_rows, n) magnitudes where the half fires
    mean: np.ndarray
    deviation: np.ndarray


def halve(entries: csr_array) -> Halved:
    """Split latents (n_rows, latent_dim) into halves."""
    table = entries.tocoo()
    rows, features = table.coords
    both = csr_array(
        (np.abs(table.data), (rows, 2 * features + (table.data < 0))),
        shape=(entries.shape[0], 2 * entries.shape[1]),
    )
    alive = np.flatnonzero(np.bincount(both.indices, minlength=both.shape[1]) >= FIRINGS)
    values = both[:, alive]
    mean = values.mean(axis=0)
    square = values.multiply(values).mean(axis=0)
    return Halved(alive, values, mean, np.sqrt(np.maximum(square - mean**2, 0)))


def correlations(ours: Halved, theirs: Halved) -> np.ndarray:
    """Pearson's, over all rows, of every half with every other: (n_ours, n_theirs); NaN where a half is constant."""
    products = (ours.values.T @ theirs.values).toarray() / ours.values.shape[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (products - np.outer(ours.mean, theirs.mean)) / np.outer(ours.deviation, theirs.deviation)


def best_matches(ours: Halved, others: Mapping[str, Halved]) -> dict[str, list[tuple[str, str, float]]]:
    """For each half by name: (where, half, correlation) of its closest half in each of `others`, the closest first."""
    found: dict[str, list[tuple[str, str, float]]] = {half_name(int(half)): [] for half in ours.halves}
    for where, theirs in others.items():
        if not len(theirs.halves):
            continue
        matrix = np.nan_to_num(correlations(ours, theirs), nan=-1.0)
        best = matrix.argmax(axis=1)
        for number, half in enumerate(ours.halves):
            value = float(matrix[number, best[number]])
            if value > 0:
                found[half_name(int(half))].append((where, half_name(int(theirs.halves[best[number]])), value))
    return {half: sorted(matches, key=lambda match: -match[2])[:MATCHES] for half, matches in found.items()}
