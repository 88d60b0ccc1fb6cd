"""How well single features tell known concepts: the best F1 of every concept, over halves and thresholds.

A half is a feature with a sign: `17+` fires where feature 17 is positive, `17-` where it is negative. It predicts a
concept where its magnitude is above a threshold: 0, 0.1, … 0.9 of its maximum on the training rows. For each concept
the half and the threshold of highest F1 on the training rows are chosen, and scored on the validation rows: each time
on the rows where the concept is defined.

The counts behind every F1 come from one sparse product: each entry is turned into its level (how many of the ten
thresholds it is above), and a concept's rows are counted by half and level.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, hstack

from thought_saes.features.collect import Representation
from thought_saes.features.concepts import Labels

THRESHOLDS = np.arange(10) / 10
LEVELS = len(THRESHOLDS)
FEATURES_AT_A_TIME = 256  # bounds the memory of dense representations and of the counts
MONOSEMANTIC_PRECISION = 0.95
FIRES_ENOUGH = 20  # training rows: below it a half's precision says nothing
SPLIT_F1 = 0.5
LEADING = 5  # concepts told of a half, fewer where there are fewer


class Split(NamedTuple):
    """One half of the rows: what a representation and the concepts are there."""

    values: Representation
    labels: Labels


class Counts(NamedTuple):
    """Of a run of halves, at each threshold; half 2f is feature f where positive, 2f + 1 where negative."""

    first: int  # the number of the first half
    anywhere: np.ndarray  # (n_halves,) rows on which the half is not zero
    fired: np.ndarray  # (n_halves, LEVELS, n_concepts) rows above the threshold on which the concept is defined
    hits: np.ndarray  # (n_halves, LEVELS, n_concepts) those of them that have the concept


class Found(NamedTuple):
    """The best half of every concept, (n_concepts,) each; the four scores are on the validation rows."""

    half: np.ndarray
    threshold: np.ndarray  # share of the half's maximum
    cut: np.ndarray  # the same in units of the activation
    f1: np.ndarray
    precision: np.ndarray  # NaN where the half never fires
    recall: np.ndarray
    predicted: csr_array  # (n_validation, n_concepts) where the chosen half is above its threshold, if defined


class Halves(NamedTuple):
    """Every half, (n_halves,) each: the concept that it tells best on the training rows, scored on the others."""

    maximum: np.ndarray  # on the training rows
    fired: np.ndarray  # training rows
    concept: np.ndarray  # -1 where the half never fires on a training row
    threshold: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    # (n_halves, LEADING) the concepts it tells best on the training rows, the best first, and their F1 on the others.
    leading: np.ndarray
    leading_f1: np.ndarray
    # The concept it is most precise for at threshold 0, and that precision on the validation rows.
    precise_concept: np.ndarray
    precise: np.ndarray  # NaN where it fires on fewer than FIRES_ENOUGH training rows, or on no validation row
    split_f1: np.ndarray  # (n_concepts,) halves with F1 above SPLIT_F1


def half_name(half: int) -> str:
    """`17+` of half 34."""
    return f"{half // 2}{'+-'[half % 2]}"


def f1_score(hits: np.ndarray, fired: np.ndarray, having: np.ndarray) -> np.ndarray:
    """2 hits / (fired + having); NaN where both are none."""
    with np.errstate(invalid="ignore"):
        return 2 * hits / (fired + having)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole


def maxima(values: Representation) -> np.ndarray:
    """The largest magnitude of every half, (2 n_features,); 0 where it never fires."""
    if isinstance(values, np.ndarray):
        highest, lowest = values.max(axis=0), values.min(axis=0)
    else:
        highest, lowest = values.max(axis=0).toarray().ravel(), values.min(axis=0).toarray().ravel()
    return np.stack([np.maximum(highest, 0), np.maximum(-lowest, 0)], axis=1).ravel()


def _entries(values: Representation, features: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, feature within `features`, value) of what is not zero."""
    if isinstance(values, np.ndarray):
        block = values[:, features]
        rows, columns = np.nonzero(block)
        return rows, columns, block[rows, columns]
    block = values[:, features].tocoo()
    return block.coords[0], block.coords[1], block.data


def count(split: Split, maximum: np.ndarray) -> Iterator[Counts]:
    """Counts of all halves, FEATURES_AT_A_TIME features at a time; `maximum` (n_halves,) sets the thresholds."""
    n_rows, n_features = split.values.shape
    concepts, defined, family = split.labels
    both = hstack([concepts, defined], format="csr")
    for start in range(0, n_features, FEATURES_AT_A_TIME):
        features = slice(start, min(start + FEATURES_AT_A_TIME, n_features))
        rows, columns, values = _entries(split.values, features)
        halves = 2 * columns + (values < 0)
        n_halves = 2 * (features.stop - start)
        cuts = thresholds_of(maximum[2 * start : 2 * features.stop])  # (n_halves, LEVELS)
        magnitude = np.abs(values)
        levels = np.zeros(len(values), dtype=np.int32)
        for level in range(LEVELS):
            levels += magnitude > cuts[halves, level]
        above = levels > 0
        places = halves[above].astype(np.int64) * LEVELS + levels[above] - 1
        one_hot = csr_array(
            (np.ones(len(places), dtype=np.float32), (places, rows[above])), shape=(n_halves * LEVELS, n_rows)
        )
        counts = (one_hot @ both).toarray().reshape(n_halves, LEVELS, -1)
        counts = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # an entry of level 3 is above the first three thresholds
        hits, fired = np.split(counts, [concepts.shape[1]], axis=2)
        yield Counts(2 * start, np.bincount(halves, minlength=n_halves), fired[:, :, family], hits)


def thresholds_of(maximum: np.ndarray) -> np.ndarray:
    """The ten thresholds of every half in units of its activation, (n_halves, LEVELS), float32."""
    return (maximum[:, None] * THRESHOLDS).astype(np.float32)


def judge(train: Split, validation: Split) -> tuple[Found, Halves]:
    """The best half of every concept, and the best concept of every half: chosen on `train`, scored on `validation`.

    Of equal F1 the lower half and the lower threshold count.
    """
    maximum = maxima(train.values)
    n_halves, n_concepts = len(maximum), train.labels.concepts.shape[1]
    having_train, having = (split.labels.concepts.sum(axis=0) for split in (train, validation))
    best_f1 = np.full(n_concepts, -1.0)
    half, level = np.zeros(n_concepts, dtype=int), np.zeros(n_concepts, dtype=int)
    scored = np.full((3, n_concepts), np.nan)
    every, n_leading = np.arange(n_concepts), min(LEADING, n_concepts)
    halves = Halves(
        maximum,
        np.zeros(n_halves, dtype=int),
        np.full(n_halves, -1),
        np.full(n_halves, np.nan),
        np.full(n_halves, np.nan),
        np.full(n_halves, np.nan),
        np.full(n_halves, np.nan),
        np.full((n_halves, n_leading), -1),
        np.full((n_halves, n_leading), np.nan),
        np.full(n_halves, -1),
        np.full(n_halves, np.nan),
        np.zeros(n_concepts, dtype=int),
    )
    for ours, theirs in zip(count(train, maximum), count(validation, maximum), strict=True):
        here = slice(ours.first, ours.first + len(ours.anywhere))
        at_levels = f1_score(ours.hits, ours.fired, having_train)  # (n, LEVELS, n_concepts)
        levels = at_levels.argmax(axis=1)  # (n, n_concepts)
        f1_at = np.take_along_axis(at_levels, levels[:, None], axis=1)[:, 0]
        # The same cells on the validation rows.
        hits = np.take_along_axis(theirs.hits, levels[:, None], axis=1)[:, 0]
        fired = np.take_along_axis(theirs.fired, levels[:, None], axis=1)[:, 0]
        scores = np.stack([f1_score(hits, fired, having), _divide(hits, fired), hits / having])  # (3, n, n_concepts)

        winner = f1_at.argmax(axis=0)
        better = f1_at[winner, every] > best_f1
        best_f1[better] = f1_at[winner, every][better]
        half[better] = ours.first + winner[better]
        level[better] = levels[winner, every][better]
        scored[:, better] = scores[:, winner, every][:, better]
        halves.split_f1[:] += (scores[0] > SPLIT_F1).sum(axis=0)

        alive = ours.anywhere > 0
        halves.fired[here] = ours.anywhere
        leading = np.argsort(-f1_at, axis=1, kind="stable")[:, :n_leading]
        concept, n = leading[:, 0], np.arange(len(leading))
        halves.leading[here] = np.where(alive[:, None], leading, -1)
        halves.leading_f1[here] = np.where(alive[:, None], scores[0][n[:, None], leading], np.nan)
        halves.concept[here] = np.where(alive, concept, -1)
        halves.threshold[here] = np.where(alive, THRESHOLDS[levels[n, concept]], np.nan)
        for column, values in zip((halves.f1, halves.precision, halves.recall), scores, strict=True):
            column[here] = np.where(alive, values[n, concept], np.nan)
        enough = ours.fired[:, 0] >= FIRES_ENOUGH  # (n, n_concepts)
        precise = np.where(enough, _divide(ours.hits[:, 0], ours.fired[:, 0]), -1).argmax(axis=1)
        judged = enough.any(axis=1)
        halves.precise_concept[here] = np.where(judged, precise, -1)
        share = _divide(theirs.hits[n, 0, precise], theirs.fired[n, 0, precise])
        halves.precise[here] = np.where(judged, share, np.nan)
    threshold = THRESHOLDS[level]
    cut = thresholds_of(maximum)[half, level]
    f1, precision, recall = scored
    return Found(half, threshold, cut, f1, precision, recall, predictions(validation, half, cut)), halves


def predictions(split: Split, half: np.ndarray, cut: np.ndarray) -> csr_array:
    """Where each concept's chosen half is above its cut and the concept is defined: (n_rows, n_concepts) of 0 and 1."""
    chosen = split.values[:, half // 2]
    signed = (chosen if isinstance(chosen, np.ndarray) else chosen.toarray()) * np.where(half % 2, -1, 1)
    defined = split.labels.defined.toarray()[:, split.labels.family] > 0
    return csr_array(((signed > cut) & defined).astype(np.float32))


def bootstrap_weights(n_rows: int, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each row is drawn in each resample, (resamples, n_rows): the same rows for whatever is compared."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=resamples).astype(np.float32)


def resampled_f1(predicted: csr_array, concepts: csr_array, weights: np.ndarray) -> np.ndarray:
    """The F1 of every concept in every resample of the rows: (resamples, n_concepts), NaN where none has it."""
    hits, fired, having = (weights @ counts for counts in (predicted.multiply(concepts).tocsr(), predicted, concepts))
    return np.where(having > 0, f1_score(hits, fired, having), np.nan)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of `values`."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
