"""Differences beyond chance, against values of the t distribution worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from thought_saes.analysis.told_apart import holm, told_apart, welch


def sf_of_four(t: float) -> float:
    """Two-sided p of Student's t with 4 degrees of freedom: F(t) = 1/2 + 3/8 u (1 - u^2 / 12)."""
    u = t / math.sqrt(1 + t**2 / 4)
    return 2 * (0.5 - 3 / 8 * u * (1 - u**2 / 12))


def test_welchs_p_with_equal_spreads_and_three_seeds_is_students_with_four_degrees_of_freedom() -> None:
    # Means 0.2 apart, both sd 0.1, 3 seeds: t = 0.2 / sqrt(0.01/3 + 0.01/3) = 2.4495.
    assert welch(np.array([0.2]), np.array([0.1]), np.array([0.1]), np.array(3)) == pytest.approx(
        [sf_of_four(math.sqrt(6))]
    )


def test_a_difference_of_the_root_of_both_squared_deviations_happens_in_16_percent_of_equal_pairs() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 20_000, 3))
    means, sds = draws.mean(axis=2), draws.std(axis=2, ddof=1)
    apart = np.abs(means[0] - means[1])
    rule = apart > np.hypot(*sds)
    assert sf_of_four(math.sqrt(3)) == pytest.approx(0.158, abs=0.001)
    assert rule.mean() == pytest.approx(sf_of_four(math.sqrt(3)), abs=0.01)
    assert (welch(apart, sds[0], sds[1], np.array(3)) < 0.05).mean() < 0.055


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons_and_never_turns_the_order() -> None:
    # 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, but no less than the 0.06 before it. NaN is no comparison.
    assert holm(np.array([0.04, 0.01, np.nan, 0.03])) == pytest.approx([0.06, 0.03, np.nan, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_what_has_one_seed_or_no_value_has_no_p_and_what_has_no_spread_is_certain() -> None:
    assert np.isnan(welch(np.array([0.1]), np.array([np.nan]), np.array([np.nan]), np.array(1))).all()
    p = welch(np.array([0.1, 0.0, np.nan]), np.zeros(3), np.zeros(3), np.array(3))
    assert p == pytest.approx([0.0, 1.0, np.nan], nan_ok=True)


def test_one_of_many_equal_ones_is_not_told_apart_though_alone_it_would_be() -> None:
    # t = 3 for the second: p(4) = 0.040 alone, 0.040 * 3 = 0.12 among three.
    step = 3 * math.sqrt(2 * 0.01 / 3)
    means = pd.Series([0.0, step, 0.0, 0.0])
    sds = pd.Series([0.1] * 4)
    assert sf_of_four(3) == pytest.approx(0.040, abs=0.001)
    assert told_apart(means, sds, 0, 3).tolist() == [False, False, False]
    assert told_apart(means[:2], sds[:2], 0, 3).tolist() == [True]
    assert told_apart(means[:2], sds[:2], 0, 1).tolist() == [False]
