"""Scores of halves against an independent computation, a planted feature, shuffled labels, the probe."""

from itertools import product

import numpy as np
import pytest
from scipy.sparse import csr_array

from thought_saes.features.concepts import Labels
from thought_saes.features.probe import best_cuts, fit_probes, ridge
from thought_saes.features.scores import (
    FEATURES_AT_A_TIME,
    Split,
    bootstrap_weights,
    half_name,
    judge,
    resampled_f1,
)


def labels_of(concepts: np.ndarray, defined: np.ndarray, family: list[int]) -> Labels:
    return Labels(csr_array(concepts.astype(np.float32)), csr_array(defined.astype(np.float32)), np.array(family))


def everywhere(concepts: np.ndarray) -> Labels:
    return labels_of(concepts, np.ones((len(concepts), 1)), [0] * concepts.shape[1])


def plain_scores(values: np.ndarray, maximum: float, share: float, having: np.ndarray, defined: np.ndarray) -> tuple:
    """(F1, precision, recall) of one half at one threshold, by counting."""
    fires = (values > np.float32(maximum * share)) & defined
    hits, fired = (fires & having).sum(), fires.sum()
    return 2 * hits / (fired + having.sum()), hits / fired if fired else np.nan, hits / having.sum()


def random_case(seed: int, n_features: int = 4) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Values, concepts and where they are defined, on 60 training and 40 validation rows; sparse and signed."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(100, n_features)) * (generator.random((100, n_features)) < 0.5)
    defined = generator.random((100, 2)) < 0.8
    concepts = (generator.random((100, 3)) < 0.3) & defined[:, [0, 0, 1]]
    values = values.astype(np.float32)
    return [values[:60], values[60:]], [concepts[:60], concepts[60:]], [defined[:60], defined[60:]]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_counting_every_half_threshold_and_concept(seed: int, dense: bool) -> None:
    values, concepts, defined = random_case(seed)
    splits = [
        Split(part if dense else csr_array(part), labels_of(had, where, [0, 0, 1]))
        for part, had, where in zip(values, concepts, defined, strict=True)
    ]
    found, halves = judge(*splits)
    signed = [np.stack([part, -part], axis=2).reshape(len(part), -1) for part in values]  # halves: 0+, 0-, 1+, …
    for concept in range(3):
        where = [part[:, [0, 0, 1][concept]] for part in defined]
        having = [part[:, concept] for part in concepts]
        scores = {
            (half, share): [
                plain_scores(signed[side][:, half], signed[0][:, half].max(), share, having[side], where[side])
                for side in (0, 1)
            ]
            for half, share in product(range(8), np.arange(10) / 10)
        }
        best = max(scores, key=lambda place: (scores[place][0][0], -place[0], -place[1]))
        assert (found.half[concept], found.threshold[concept]) == best
        expected = scores[best][1]
        np.testing.assert_allclose(
            (found.f1[concept], found.precision[concept], found.recall[concept]), expected, rtol=1e-6
        )
        n_split = 0
        for half in range(8):
            share = max((scores[half, share][0][0], -share) for share in np.arange(10) / 10)[1] * -1
            n_split += scores[half, share][1][0] > 0.5
        assert halves.split_f1[concept] == n_split


def test_a_half_is_monosemantic_by_its_precision_wherever_it_fires() -> None:
    # Feature 0 fires on the first concept's 25 training rows alone, feature 1 on all; feature 2 on 5 rows only.
    concept = np.arange(100) % 2 == 0
    values = np.stack([concept * 1.0, np.ones(100), (np.arange(100) < 10) * concept], axis=1).astype(np.float32)
    rows = [slice(0, 50), slice(50, 100)]
    labels = [everywhere(np.stack([concept[part], ~concept[part]], axis=1)) for part in rows]
    _, halves = judge(*(Split(csr_array(values[part]), known) for part, known in zip(rows, labels, strict=True)))
    assert halves.fired.tolist() == [25, 0, 50, 0, 5, 0]
    assert halves.precise[[0, 2]].tolist() == [1.0, 0.5]
    assert np.isnan(halves.precise[[1, 3, 4, 5]]).all()
    assert halves.concept.tolist() == [0, -1, 0, -1, 0, -1]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_feature_is_found_with_f1_1_and_shuffled_labels_give_chance(sign: int) -> None:
    generator = np.random.default_rng(3)
    n_features, planted = FEATURES_AT_A_TIME + 40, FEATURES_AT_A_TIME + 7  # beyond the first block
    values = generator.normal(size=(2000, n_features)).astype(np.float32)
    concept = generator.random(2000) < 0.1
    values[:, planted] = sign * np.where(concept, generator.uniform(5, 6, 2000), generator.uniform(0, 1, 2000))
    rows = [slice(0, 1500), slice(1500, 2000)]
    found, _ = judge(*(Split(values[part], everywhere(concept[part, None])) for part in rows))
    assert found.f1.tolist() == [1.0]
    assert half_name(int(found.half[0])) == f"{planted}{'+' if sign > 0 else '-'}"
    shuffled = generator.permutation(concept)
    chance, _ = judge(*(Split(values[part], everywhere(shuffled[part, None])) for part in rows))
    # Firing on every row gives precision 0.1 and recall 1, F1 0.18; firing at random gives no more.
    assert chance.f1[0] < 0.25


def test_the_bootstrap_redraws_rows_and_holds_the_value() -> None:
    generator = np.random.default_rng(0)
    concept = generator.random(400) < 0.3
    predicted = concept ^ (generator.random(400) < 0.1)
    weights = bootstrap_weights(400)
    assert (weights.sum(axis=1) == 400).all()
    values = resampled_f1(csr_array(predicted[:, None] * 1.0), csr_array(concept[:, None] * 1.0), weights)
    drawn = np.repeat(np.arange(400), weights[7].astype(int))
    hits = (predicted & concept)[drawn].sum()
    assert values[7, 0] == pytest.approx(2 * hits / (predicted[drawn].sum() + concept[drawn].sum()))
    assert np.isnan(resampled_f1(csr_array((400, 1)), csr_array((400, 1)), weights)).all()


def test_leaving_a_row_out_by_formula_equals_fitting_without_it() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(30, 4))
    y = (x[:, :1] + generator.normal(size=(30, 1)) > 0).astype(float)
    _, left_out = ridge(x, y, x)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    candidates = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0):
        design = np.hstack([standard, np.ones((30, 1))])
        penalties = np.diag([penalty * 30] * 4 + [0])
        outputs = []
        for row in range(30):
            others = np.arange(30) != row
            weights = np.linalg.solve(design[others].T @ design[others] + penalties, design[others].T @ y[others])
            outputs.append(float((design[row] @ weights)[0]))
        candidates.append(np.array(outputs))
    errors = [((candidate - y[:, 0]) ** 2).sum() for candidate in candidates]
    np.testing.assert_allclose(left_out[:, 0], candidates[int(np.argmin(errors))], rtol=1e-4)


def test_the_probe_reads_a_direction_that_no_single_dimension_has() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(1000, 16)).astype(np.float32)
    concept = (x @ generator.normal(size=16)) / 4 > 0.7
    rows = [slice(0, 800), slice(800, 1000)]
    known = [everywhere(concept[part, None]) for part in rows]
    probe = fit_probes(x[rows[0]], known[0], x[rows[1]], known[1])
    found, _ = judge(*(Split(x[part], labels) for part, labels in zip(rows, known, strict=True)))
    assert probe.f1[0] > 0.85 > found.f1[0] + 0.2
    # The cut of highest F1 lies between the last row predicted and the next.
    assert best_cuts(np.array([[0.9], [0.1], [0.6], [0.4]]), np.array([[1.0], [0.0], [1.0], [0.0]])).tolist() == [0.5]
