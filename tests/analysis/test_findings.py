"""The conclusions, on tables small enough to work out by hand: each point is one that a first report got wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analyze_all_layers
import visualize_all_layers
from tests.helpers.grids import write_baselines, write_grid
from thought_saes.activations.cell import Cell
from thought_saes.analysis.findings import Findings, Reason, chosen_focus, conclude
from thought_saes.analysis.grid import Slice
from thought_saes.analysis.relative import order
from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import make_study
from thought_saes.analysis.variance import decompose
from thought_saes.common.errors import InputError
from thought_saes.results.names import baselines_path

Metrics = dict[tuple[int, int, int, int], dict[str, Any]]


def found(*folders: Path, focus: Cell | None = None) -> Findings:
    grid = load_replicates(folders)
    return conclude(make_study(grid, Slice(grid.values("k")[0], grid.values("latent_dim")[0], "")), focus)


def write_pca(folder: Path, fvu: dict[tuple[int, int], float], k: int, **more: Any) -> None:
    """Baselines in which PCA of rank k has the given fvu at each (layer, position)."""
    write_baselines(folder, fvu, [64], [k])
    for (layer, position), value in fvu.items():
        path = baselines_path(folder, Cell(layer, position))
        content = json.loads(path.read_text())
        content["pca"][str(k)]["fvu"] = value
        path.write_text(json.dumps(content | more))


def test_on_the_logarithm_a_factor_weighs_the_same_in_a_bad_cell_as_in_a_good_one() -> None:
    # Layer multiplies by 10, position by 10, one seed: raw values 1, 10, 10, 100. Means 30.25; layers 5.5 and 55:
    # 2 * 24.75² * 2 = 2450.25 of 2450.25 + 2450.25 + interaction 4 * 20.25² = 1640.25. On logs there is none.
    rows = [
        {"layer": layer, "position": position, "latent_dim": 64, "k": 4, "fvu": 10.0 ** (layer + position)}
        for layer in (0, 1)
        for position in (0, 1)
    ]
    table = pd.DataFrame(rows).assign(log_fvu=lambda rows: [math.log(value) for value in rows["fvu"]])
    raw, logs = decompose(table, "fvu"), decompose(table, "log_fvu")
    assert raw
    assert logs
    assert raw.share("layer") == pytest.approx(2450.25 / (2 * 2450.25 + 1640.25))
    assert logs.share("layer") == pytest.approx(0.5)


def test_no_f_is_computed_from_an_error_term_over_several_k_and_one_is_at_each_k(tmp_path: Path) -> None:
    for seed in (0, 1):
        metrics: Metrics = {
            (layer, 0, 64, k): {"fvu": 0.1 * (1 + layer) * (1 + 0.01 * seed * k)} for layer in (0, 1) for k in (4, 8)
        }
        write_grid(tmp_path / f"{seed}", metrics, seed=seed)
    study = found(tmp_path / "0", tmp_path / "1").study
    assert study.log_variance
    assert study.log_variance.terms["F"].isna().all()
    for k in (4, 8):
        at = study.variance_by_k[k]
        assert at
        # log fvu: layers log 2 apart, seeds log(1 + 0.01 k): 4 SAEs, 2 * 2 / 4 * (log 2)² against (log(1 + ..))².
        apart, seeds = math.log(2) ** 2, math.log(1 + 0.01 * k) ** 2
        assert at.share("layer") == pytest.approx(apart / (apart + seeds))
        assert at.terms.loc["layer", "F"] == pytest.approx(apart / (seeds / 2))


def test_the_layer_that_is_first_by_fvu_can_be_last_relative_to_pca(tmp_path: Path) -> None:
    # fvu 0.1, 0.2, 0.4; PCA 0.01, 0.1, 0.4: relative 10, 2, 1.
    write_grid(tmp_path, {(layer, 0, 64, 4): {"fvu": 0.1 * 2**layer} for layer in range(3)})
    write_pca(tmp_path, {(0, 0): 0.01, (1, 0): 0.1, (2, 0): 0.4}, k=4)
    at = found(tmp_path).at[0]
    assert at.layers.by_error.index.tolist() == [0, 1, 2]
    assert at.layers.by_relative.tolist() == pytest.approx([1, 2, 10])
    assert at.layers.by_relative.index.tolist() == [2, 1, 0]
    assert at.layers.agreement == pytest.approx(-1)
    assert at.layers.turned
    assert at.ease.pca == pytest.approx(1)
    # The other way about nothing turns.
    write_pca(tmp_path, {(0, 0): 0.4, (1, 0): 0.4, (2, 0): 0.4}, k=4)
    assert not order(found(tmp_path).study, 4, "layer").turned


def test_nothing_is_recommended_where_pca_is_better_and_another_k_is_judged_by_itself(tmp_path: Path) -> None:
    write_grid(tmp_path, {(0, 0, 64, 4): {"fvu": 0.6}, (0, 0, 64, 8): {"fvu": 0.5}, (0, 0, 128, 8): {"fvu": 0.54}})
    write_grid(tmp_path, {(0, 0, 128, 4): {"fvu": 0.9}, (0, 0, 128, 8): {"fvu": 0.54}})
    write_baselines(tmp_path, [(0, 0)], [64, 128], [4, 8])
    content = json.loads(baselines_path(tmp_path, Cell(0, 0)).read_text())
    content["pca"] = {"4": {"fvu": 0.59}, "8": {"fvu": 0.51}}
    baselines_path(tmp_path, Cell(0, 0)).write_text(json.dumps(content))
    at_4, at_8 = (at.recommendation for at in found(tmp_path).at)
    assert (at_4.config, at_4.reason, at_4.cells) == (None, Reason.PCA, 0)
    assert at_8.config is not None
    assert (at_8.config["latent_dim"], at_8.reason, at_8.cells) == (64, None, 1)


def test_where_the_mean_is_better_or_everything_collapsed_nothing_is_recommended_either(tmp_path: Path) -> None:
    write_grid(tmp_path / "mean", {(0, 0, 64, 4): {"fvu": 1.2}})
    write_grid(tmp_path / "collapsed", {(0, 0, 64, 4): {"fvu": 0.2, "num_active_features": 7}})
    assert found(tmp_path / "mean").at[0].recommendation.reason is Reason.MEAN
    assert found(tmp_path / "collapsed").at[0].recommendation.reason is Reason.COLLAPSED


def test_where_latent_dim_is_below_2k_nothing_counts_as_collapsed(tmp_path: Path) -> None:
    # 64 features, k 40: fewer than 80 are alive by definition. k 4: 5 < 6 < 8, 7 < 8, 9 < 12, 40.
    write_grid(tmp_path, {(0, 0, 64, 40): {"num_active_features": 64}})
    for position, alive in enumerate((5, 7, 9, 40)):
        write_grid(tmp_path, {(0, position, 128, 4): {"num_active_features": alive}})
    grid = load_replicates([tmp_path], allow_partial=True)
    at_4, at_40 = conclude(make_study(grid, Slice(4, 128, ""))).at
    assert (at_40.can_collapse, set(at_40.collapsed.values())) == (0, {0})
    assert (at_4.can_collapse, at_4.collapsed) == (4, {1.5: 1, 2.0: 2, 3.0: 3})


def test_what_holds_other_than_k_latents_on_validation_rows_is_counted_and_said(tmp_path: Path, call: Any) -> None:
    l0 = {0: 4.0, 1: 4.16, 2: 4.4, 3: 3.2}  # of k 4: 0, 4, 10 and -20 %
    metrics: Metrics = {(layer, 0, 64, 8): {} for layer in l0}
    metrics |= {(layer, 0, 64, 4): {"l0_mean": value} for layer, value in l0.items()}
    write_grid(tmp_path, metrics)
    at = found(tmp_path).at
    assert [one.off_k for one in at] == [2, 0]
    assert at[0].l0_off == pytest.approx((0.1 - 0.2) / 2)
    configs = found(tmp_path).study.configs
    assert configs.loc[configs["off_k"], ["layer", "k"]].to_numpy().tolist() == [[2, 4], [3, 4]]
    code, out, err = call(analyze_all_layers.main, "--results", tmp_path)
    assert code == 0, err
    assert "2 have validation rows of more or fewer latents than k by over 5 %" in " ".join(out.split())
    assert "k 4: 2 of 4 (50.0%), -5% on average" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "analysis_summary.json").read_text())["by_error"]["off_k"] == 2


def test_the_share_of_the_ten_busiest_is_judged_by_its_ceiling(tmp_path: Path) -> None:
    # At k 20 ten features that fire on every row make 10 of 20 firings: a share of 0.5 is everything.
    write_grid(tmp_path, {(0, 0, 64, 20): {"busiest_10_share": 0.5}, (1, 0, 64, 20): {"busiest_10_share": 0.3}})
    at = found(tmp_path).at[0]
    assert at.every_row == 1
    assert at.busiest == pytest.approx((1.0 + 0.6) / 2)
    # At k 4 four of them fire at once at most: a share of 1 says nothing about single rows.
    write_grid(tmp_path / "4", {(0, 0, 64, 4): {"busiest_10_share": 1.0}})
    assert found(tmp_path / "4").at[0].every_row is None


def test_pooled_over_positions_death_falls_with_gamma_though_it_rises_within_each(tmp_path: Path) -> None:
    # Simpson. Position 0: gamma 10, 11, 12 and death 0.1, 0.2, 0.3; position 1: gamma 1, 2, 3 and death 0.7, 0.8, 0.9.
    write_grid(
        tmp_path,
        {
            (layer, position, 64, 4): {"fvu": 0.5, "feature_death_rate": (0.1 if position == 0 else 0.7) + 0.1 * layer}
            for layer in range(3)
            for position in (0, 1)
        },
    )
    for position in (0, 1):
        for layer in range(3):
            gamma = (10.0 if position == 0 else 1.0) + layer
            write_pca(tmp_path, {(layer, position): 0.9}, 4, gamma=gamma)
    gamma_found = found(tmp_path).at[0].gamma
    assert gamma_found
    assert gamma_found.within == {0: pytest.approx(1), 1: pytest.approx(1)}
    # Ranks of gamma 4 5 6 1 2 3 against 1 2 3 4 5 6 of death: 1 - 6 * 6 * 9 / (6 * 35) = -0.543.
    assert gamma_found.pooled == pytest.approx(1 - 6 * 54 / 210)
    assert gamma_found.turned


def test_one_minus_ev_over_one_minus_its_floor_is_fvu(tmp_path: Path) -> None:
    # Total variance 10, of which 1 is around the mean; an error of 0.25: EV 0.975, floor 0.9, fvu 0.25.
    write_grid(tmp_path, {(0, 0, 64, 4): {"fvu": 0.25, "explained_variance": 0.975}})
    write_baselines(tmp_path, [(0, 0)], [64], [4])  # floor 0.9
    assert found(tmp_path).identity == pytest.approx(0, abs=1e-12)
    write_grid(tmp_path, {(0, 0, 64, 4): {"fvu": 0.2, "explained_variance": 0.975}})
    assert found(tmp_path).identity == pytest.approx(0.25)


def test_the_best_is_chosen_on_one_half_of_the_validation_rows_and_quoted_on_the_other(tmp_path: Path) -> None:
    # 64 wins on the selection half by luck; what is quoted is its value on the other.
    halves = {64: (0.30, 0.40), 128: (0.32, 0.35)}
    write_grid(
        tmp_path,
        {
            (0, 0, size, 4): {"fvu": 0.34, "fvu_selection": selection, "fvu_report": report}
            for size, (selection, report) in halves.items()
        },
    )
    findings = found(tmp_path)
    config = findings.at[0].recommendation.config
    assert config is not None
    assert findings.study.has_halves
    assert (config["latent_dim"], config["quoted"]) == (64, 0.40)
    write_grid(tmp_path / "old", {(0, 0, 64, 4): {"fvu": 0.34}})
    assert not found(tmp_path / "old").study.has_halves


def test_sparse_structure_is_shown_only_by_more_gain_over_pca_than_on_gaussian_rows(tmp_path: Path) -> None:
    # Real rows: 0.2 / 0.5 = 0.4 of PCA's. Gaussian ones: 0.35 / 0.5 = 0.7, or 0.2 / 0.5, the same.
    write_grid(tmp_path, {(0, 0, 64, 4): {"fvu": 0.2}})
    for fvu, shown in ((0.35, True), (0.2, False)):
        gaussian = {"64": {"4": {"fvu": fvu, "pca_fvu": 0.5}}}
        write_pca(tmp_path, {(0, 0): 0.5}, 4, gaussian=gaussian)
        control = found(tmp_path).at[0].control
        assert control
        assert (control.cells, control.real, control.gaussian) == (1, pytest.approx(0.4), pytest.approx(fvu / 0.5))
        assert control.shows_structure is shown
    write_pca(tmp_path, {(0, 0): 0.5}, 4, gaussian={})
    assert found(tmp_path).at[0].control is None


def test_the_cell_in_focus_has_a_rank_by_fvu_and_one_relative_to_pca(tmp_path: Path) -> None:
    write_grid(tmp_path, {(layer, 0, 64, 4): {"fvu": 0.1 * 2**layer} for layer in range(3)})
    write_pca(tmp_path, {(0, 0): 0.01, (1, 0): 0.1, (2, 0): 0.4}, k=4)
    place = found(tmp_path, focus=Cell(0, 0)).at[0].focus
    assert place
    assert (place.rank, place.rank_relative, place.cells, place.is_best) == (1, 3, 3, False)
    study = found(tmp_path).study
    assert chosen_focus(study, None, None, Cell(14, 3)) is None
    assert chosen_focus(study, 1, 0, Cell(14, 3)) == Cell(1, 0)
    with pytest.raises(InputError, match="no SAE of layer 14, position 0 is in the grid to focus on"):
        chosen_focus(study, None, 0, Cell(14, 3))


def test_a_constant_cell_is_named_hatched_and_left_out(tmp_path: Path, call: Any) -> None:
    nothing = {"fvu": float("nan"), "fvu_train": float("nan"), "explained_variance": float("nan")}
    metrics: Metrics = {
        (layer, position, 64, k): {"fvu": 0.1 * (layer + 1), "fvu_train": 0.1} | (nothing if layer == 1 else {})
        for layer in (0, 1)
        for position in (0, 1)
        for k in (4, 8)
    }
    write_grid(tmp_path, metrics, seed=0)
    write_baselines(tmp_path, [(0, 0), (0, 1)], [64], [4, 8])
    for position in (0, 1):
        dead = {"mean": {"fvu": None}, "pca": {}, "untrained": {}, "gamma": None, "effective_rank": None}
        content = {"metadata": {"layer": 1, "position": position}, "mean_norm": 1.0} | dead
        baselines_path(tmp_path, Cell(1, position)).write_text(json.dumps(content))
    assert found(tmp_path).study.flat_cells == [Cell(1, 0), Cell(1, 1)]
    assert call(analyze_all_layers.main, "--results", tmp_path)[0] == 0
    report = (tmp_path / "report.md").read_text()
    assert "Without variance or a finite fvu, and so left out: layer 1 position 0; layer 1 position 1." in report
    assert "nan" not in report.replace("finance", "")
    assert call(visualize_all_layers.main, "--results", tmp_path)[0] == 0
