"""Configurations, Pareto fronts and recommendations on tables worked out by hand."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.grids import write_grid
from thought_saes.analysis.grid import Grid, Slice
from thought_saes.analysis.relative import ranking
from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import (
    DEATH,
    ERROR,
    EV,
    best,
    cell_bests,
    configurations,
    make_study,
    over_seeds,
    pareto_front,
    rank_correlation,
)

LATENT_DIM = 64


@pytest.fixture
def two_seeds(tmp_path: Path) -> Grid:
    """Two layers x two positions x k 4 and 8, fvu of seed 0 and seed 1; two configurations that are no good."""
    fvu = {
        # layer, position, k: seed 0, seed 1
        (0, 0, 4): (0.50, 0.70),  # mean 0.60, sd 0.2 / sqrt(2) = 0.141421
        (0, 0, 8): (0.40, 0.42),  # mean 0.41, sd 0.014142
        (0, 1, 4): (0.10, 0.10),  # collapsed in seed 1: 7 features alive < 2 * 4
        (0, 1, 8): (0.42, 0.44),  # mean 0.43, sd 0.014142
        (1, 0, 4): (1.20, 1.00),  # mean 1.1: worse than the mean
        (1, 0, 8): (0.90, 0.70),  # mean 0.8
        (1, 1, 4): (0.30, 0.50),  # mean 0.4
        (1, 1, 8): (0.20, 0.20),  # mean 0.2
    }
    folders = []
    for seed in (0, 1):
        metrics = {
            (layer, position, LATENT_DIM, k): {
                "fvu": values[seed],
                EV: 0.9 + 0.01 * layer + 0.001 * k,
                "num_active_features": 7 if (layer, position, k, seed) == (0, 1, 4, 1) else 40,
            }
            for (layer, position, k), values in fvu.items()
        }
        folders.append(write_grid(tmp_path / f"seed{seed}", metrics, seed=seed))
    return load_replicates(folders)


def picked(rows: pd.DataFrame) -> list[tuple[int, ...]]:
    return list(rows[["layer", "position", "k"]].itertuples(index=False, name=None))


def test_a_configuration_is_the_mean_of_its_seeds_with_their_sample_standard_deviation(two_seeds: Grid) -> None:
    configs = configurations(two_seeds).set_index(["layer", "position", "k"])
    assert len(configs) == 8
    assert configs.loc[(0, 0, 4), ERROR] == pytest.approx(0.60)
    assert configs.loc[(0, 0, 4), f"{ERROR}_sd"] == pytest.approx(0.02**0.5)
    assert configs.loc[(1, 0, 4), ERROR] == pytest.approx(1.1)


def test_one_collapsed_seed_or_an_error_of_one_bars_a_configuration_from_recommendation(two_seeds: Grid) -> None:
    configs = configurations(two_seeds)
    assert picked(configs[configs["collapsed"]]) == [(0, 1, 4)]
    assert picked(configs[~configs["eligible"]]) == [(0, 1, 4), (1, 0, 4)]


def test_twice_k_active_features_are_not_yet_collapsed(tmp_path: Path) -> None:
    saes = {(0, 0, LATENT_DIM, 4): {"num_active_features": 8}, (1, 0, LATENT_DIM, 4): {"num_active_features": 7}}
    assert configurations(load_replicates([write_grid(tmp_path, saes)]))["collapsed"].tolist() == [False, True]


def test_recommended_are_the_lowest_of_what_has_not_collapsed(two_seeds: Grid) -> None:
    configs = configurations(two_seeds)
    # (0, 1, 4) has the lowest fvu of all, 0.1, but has collapsed.
    assert picked(best(configs)) == [(0, 1, 4)]
    assert picked(best(configs[configs["eligible"]])) == [(1, 1, 8)]
    assert picked(cell_bests(configs)) == [(0, 0, 8), (0, 1, 8), (1, 0, 8), (1, 1, 8)]


def test_layers_are_ranked_by_the_mean_of_their_cells_lowest(two_seeds: Grid) -> None:
    study = make_study(two_seeds, Slice(8, LATENT_DIM, ""))
    # Layer 0: (0.41 + 0.43) / 2 = 0.42; layer 1: (0.8 + 0.2) / 2 = 0.5.
    ranks = ranking(study, "layer")
    assert ranks.index.tolist() == [0, 1]
    assert ranks["mean"].tolist() == pytest.approx([0.42, 0.5])
    # sd of the mean of two cells: sqrt(0.0002 + 0.0002) / 2 = 0.01; sqrt(0.02 + 0) / 2 = 0.0707.
    assert ranks["sd"].tolist() == pytest.approx([0.01, 0.02**0.5 / 2])


def test_a_layer_without_a_recommended_configuration_in_some_cell_comes_last(two_seeds: Grid) -> None:
    study = make_study(two_seeds, Slice(8, LATENT_DIM, ""))
    bests = study.bests[~((study.bests["layer"] == 0) & (study.bests["position"] == 1))]
    assert ranking(study._replace(bests=bests), "layer").index.tolist() == [1, 0]


def test_the_mean_over_seeds_is_of_each_seeds_mean(two_seeds: Grid) -> None:
    over = over_seeds(two_seeds.table, ["layer"], "fvu")
    # Layer 1, seed 0: (1.2 + 0.9 + 0.3 + 0.2) / 4 = 0.65; seed 1: (1.0 + 0.7 + 0.5 + 0.2) / 4 = 0.6.
    assert over["mean"].tolist()[1] == pytest.approx(0.625)
    assert over["sd"].tolist()[1] == pytest.approx(0.05 / 2**0.5)


POINTS = pd.DataFrame(
    {
        "k": [4, 4, 8, 8, 8, 16, 16, 16],
        ERROR: [0.5, 0.6, 0.3, 0.3, 0.5, 0.3, 0.2, float("nan")],
        DEATH: [0.9, 0.5, 0.4, 0.4, 0.9, 0.1, 0.4, 0.0],
    }
)


def test_the_pareto_front_of_k_and_error_is_that_worked_out_by_hand() -> None:
    # 0: lowest at k 4. 1: 0 is lower. 2, 3: equal, neither dominates the other. 4: k 4 does as well (0).
    # 5: 2 has the same error at a lower k. 6: lowest of all. 7: no value.
    expected = [True, False, True, True, False, False, True, False]
    assert pareto_front(POINTS, ["k", ERROR]).tolist() == expected


def test_with_death_the_front_gains_those_with_fewer_dead() -> None:
    # 1: fewer dead than 0. 4: still dominated by 2. 5: the fewest dead at all.
    expected = [True, True, True, True, False, True, True, False]
    assert pareto_front(POINTS, ["k", ERROR, DEATH]).tolist() == expected


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=12))
def test_a_point_is_on_the_front_exactly_if_no_other_dominates_it(rows: list[tuple[int, ...]]) -> None:
    points = pd.DataFrame(rows, columns=["k", ERROR, DEATH])
    expected = [
        not any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in rows) for row in rows
    ]
    front = pareto_front(points, ["k", ERROR, DEATH])
    assert front.tolist() == expected
    assert front.any()


def test_the_rank_correlation_is_spearmans() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15) = 0.6.
    left, right = pd.Series([10.0, 20.0, 30.0, 40.0]), pd.Series([0.2, 0.1, 0.9, 0.5])
    assert rank_correlation(left, right) == pytest.approx(0.6)
    assert rank_correlation(left, -right) == pytest.approx(-0.6)
    assert pd.isna(rank_correlation(left, right * 0))


def test_without_fvu_the_error_is_one_minus_explained_variance(tmp_path: Path) -> None:
    grid = load_replicates([write_grid(tmp_path, {(0, 0, 64, 4): {EV: 0.75}, (1, 0, 64, 4): {EV: 0.5}})])
    study = make_study(grid, Slice(4, 64, ""))
    assert study.error == "1 - explained_variance"
    assert study.configs[ERROR].tolist() == [0.25, 0.5]
    assert list(study.variance) == [EV, DEATH]
