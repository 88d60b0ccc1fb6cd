"""Resampling, McNemar's test and the false discovery rate, against numbers worked out by hand."""

import numpy as np
import pytest

from thought_saes.downstream.statistics import ResampledMean, benjamini_hochberg, mcnemar, resample_weights


def test_mcnemar_is_the_exact_binomial_test_of_the_changes() -> None:
    # Five changes, all one way: 2 * (1/2)^5 = 1/16. Four and one: 2 * (1 + 5) / 32 = 0.375.
    assert mcnemar(5, 0) == pytest.approx(1 / 16)
    assert mcnemar(1, 4) == pytest.approx(0.375)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4/rank 0.04, 0.04, 0.04, 0.5.
    assert benjamini_hochberg([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.04, 0.5, 0.04, 0.04])
    assert benjamini_hochberg([0.9, 0.95]) == pytest.approx([0.95, 0.95])


def test_a_question_has_the_same_resamples_whatever_runs_beside_it() -> None:
    together, alone = resample_weights(3, [4, 7, 9], 50), resample_weights(3, [7], 50)
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(resample_weights(4, [7], 50), alone)
    assert resample_weights(0, range(400), 50).mean() == pytest.approx(1, abs=0.03)


def test_sums_of_batches_equal_those_of_all_questions_and_leave_out_what_is_not_there() -> None:
    values = np.array([[1.0, 2.0, np.nan, 6.0], [0.0, 0.0, 0.0, 0.0]])
    weights = resample_weights(0, range(4), 200)
    whole, parts = ResampledMean(2, 200), ResampledMean(2, 200)
    whole.add(values, weights)
    for rows in ([0, 1], [2, 3]):
        parts.add(values[:, rows], weights[rows])
    # Mean (1 + 2 + 6) / 3 = 3; squared deviations 4 + 1 + 9 = 14, over 2.
    for found in (whole, parts):
        assert found.mean(0) == pytest.approx(3)
        assert found.sd(0) == pytest.approx(7**0.5)
        assert found.interval(1) == [0.0, 0.0]
    assert whole.interval(0) == pytest.approx(parts.interval(0))
    assert ResampledMean(1, 200).mean(0) is None
    assert ResampledMean(1, 200).interval(0) is None


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    weights = resample_weights(1, range(100), 400)
    found = ResampledMean(200, 400)
    found.add(rng.standard_normal((200, 100)), weights)
    covered = sum(low <= 0 <= high for low, high in (found.interval(index) or [1, 0] for index in range(200)))
    assert 180 <= covered <= 199
