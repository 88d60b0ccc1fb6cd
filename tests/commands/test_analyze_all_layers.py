"""The analysis against statistics computed here by other means, on tables small enough to work out by hand."""

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analyze_all_layers
from analyze_all_layers import main
from tests.helpers.full_disk import fill_disk
from tests.helpers.grids import Sae, write_original_grid
from thought_saes.activations.cell import Cell
from thought_saes.analysis.findings import conclude
from thought_saes.analysis.grid import Grid, choose_slice, load_grid
from thought_saes.analysis.study import DEATH, EV, make_study
from thought_saes.analysis.summary import analyse, best_effect, plain
from thought_saes.common.errors import InputError
from thought_saes.reporting.terminal import describe, section
from thought_saes.results.names import metrics_path, plan_path
from thought_saes.saes.measures import PUBLISHED_METRICS

Call = Callable[..., tuple[int, str, str]]


def uniform_grid(axes: Iterable[Iterable[int]]) -> dict[Sae, dict[str, Any]]:
    """Explained variance and death rate in (0, 1), no two alike, for every combination of the four axes."""
    numbers = random.Random(0)
    return {(a, b, c, d): {EV: numbers.random(), DEATH: numbers.random()} for a, b, c, d in product(*axes)}


def analysed(grid: Grid, k: int, latent_dim: int) -> dict[str, Any]:
    return analyse(conclude(make_study(grid, choose_slice(grid, k, latent_dim))), k, latent_dim)


@pytest.fixture
def hand_worked(tmp_path: Path) -> Path:
    """Two layers x two positions at k 20, latent_dim 1024, and one more k."""
    return write_original_grid(
        tmp_path / "results",
        {
            (0, 0, 1024, 20): {EV: 0.9, DEATH: 0.8},
            (0, 1, 1024, 20): {EV: 0.7, DEATH: 0.4},
            (1, 0, 1024, 20): {EV: 0.6, DEATH: 0.1},
            (1, 1, 1024, 20): {EV: 0.8, DEATH: 0.3},
            (0, 0, 1024, 5): {EV: 0.5, DEATH: 0.9},
            (0, 1, 1024, 5): {EV: 0.3, DEATH: 0.7},
            (1, 0, 1024, 5): {EV: 0.4, DEATH: 0.1},
            (1, 1, 1024, 5): {EV: 0.2, DEATH: 0.5},
        },
    )


def strict(path: Path) -> Any:
    """Read as a strict reader does: NaN and Infinity are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_overall_statistics_of_a_grid_of_1152_saes_in_the_original_format_are_those_of_the_statistics_module(
    tmp_path: Path, call: Call
) -> None:
    metrics = uniform_grid((range(16), range(6), (512, 1024, 2048), (5, 10, 20, 100)))
    code, _, _ = call(main, "--results", write_original_grid(tmp_path, metrics))
    summary = strict(tmp_path / "analysis_summary.json")
    assert code == 0
    assert summary["total_saes"] == 1152
    assert summary["layers"] == list(range(16))
    assert summary["positions"] == list(range(6))
    assert summary["k_values"] == [5, 10, 20, 100]
    assert summary["latent_dims"] == [512, 1024, 2048]
    for metric in (EV, DEATH):
        values = [own[metric] for own in metrics.values()]
        expected = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),  # divides by n - 1
            "min": min(values),
            "max": max(values),
        }
        assert summary["overall_stats"][metric] == pytest.approx(expected, rel=1e-12)
        assert statistics.pstdev(values) != pytest.approx(expected["std"], rel=1e-5)
    best = max(metrics, key=lambda sae: metrics[sae][EV])
    row = summary["best_configs"]["highest_ev"]
    assert tuple(row[axis] for axis in ("layer", "position", "latent_dim", "k")) == best
    assert set(row) == {"layer", "position", "latent_dim", "k", *PUBLISHED_METRICS}
    lowest = min(metrics, key=lambda sae: metrics[sae][DEATH])
    assert summary["best_configs"]["lowest_death"][DEATH] == metrics[lowest][DEATH]


def test_layer_and_position_effects_are_those_worked_out_by_hand(hand_worked: Path) -> None:
    summary = analysed(load_grid(hand_worked), 20, 1024)
    # Layer 0: (0.9 + 0.7) / 2 = 0.8; std = sqrt((0.1² + 0.1²) / 1) = 0.14142. Layer 1: (0.6 + 0.8) / 2 = 0.7.
    assert [effect[EV]["mean"] for effect in summary["layer_effects"]] == pytest.approx([0.8, 0.7])
    assert summary["layer_effects"][0][EV]["std"] == pytest.approx(0.02**0.5)
    assert summary["layer_effects"][0][DEATH]["mean"] == pytest.approx((0.8 + 0.4) / 2)
    # Position 0: (0.9 + 0.6) / 2 = 0.75, position 1: (0.7 + 0.8) / 2 = 0.75: equal, so the first is best and worst.
    assert [effect[EV]["mean"] for effect in summary["position_effects"]] == pytest.approx([0.75, 0.75])
    assert summary["best_layer"]["layer"] == 0
    assert summary["worst_layer"]["layer"] == 1
    # k 5: (0.5 + 0.3 + 0.4 + 0.2) / 4 = 0.35; k 20: (0.9 + 0.7 + 0.6 + 0.8) / 4 = 0.75.
    assert [(effect["k"], effect["saes"]) for effect in summary["k_effects"]] == [(5, 4), (20, 4)]
    assert [effect[EV]["mean"] for effect in summary["k_effects"]] == pytest.approx([0.35, 0.75])
    assert summary["layer_position_matrix"][EV] == [[0.9, 0.7], [0.6, 0.8]]
    assert summary["layer_position_matrix"][DEATH] == [[0.8, 0.4], [0.1, 0.3]]


def test_the_recommended_sae_of_a_layer_is_the_best_of_all_and_the_best_with_at_most_a_tenth_dead(
    hand_worked: Path,
) -> None:
    recommended = analysed(load_grid(hand_worked), 20, 1024)["recommended"]
    layer_0, layer_1 = recommended["layers"]
    assert layer_0["highest_ev"][EV] == 0.9
    assert layer_0["highest_ev_few_dead"] is None  # its death rates: 0.8, 0.4, 0.9, 0.7
    assert layer_0["note"] == "no SAE has at most 10% dead features"
    assert layer_1["highest_ev"][EV] == 0.8
    assert layer_1["highest_ev_few_dead"][EV] == 0.6  # death rate 0.1 at EV 0.6 and 0.4: 0.1 is still few
    assert layer_1["note"] is None
    assert recommended["overall"]["highest_ev"][EV] == 0.9
    assert recommended["overall"]["highest_ev_few_dead"] == layer_1["highest_ev_few_dead"]


def test_of_equal_saes_the_first_by_layer_position_latent_dim_and_k_is_named(tmp_path: Path) -> None:
    metrics = {sae: {EV: 0.5, DEATH: 0.5} for sae in product((2, 10), (0, 1), (512, 1024), (5, 20))}
    summary = analysed(load_grid(write_original_grid(tmp_path, metrics)), 20, 1024)
    for row in summary["best_configs"].values():
        assert (row["layer"], row["position"], row["latent_dim"], row["k"]) == (2, 0, 512, 5)
    assert summary["lowest_death_shared_by"] == 16
    for axis in ("layer", "position"):
        assert summary[f"best_{axis}"] == summary[f"worst_{axis}"] == summary[f"{axis}_effects"][0]


@given(means=st.lists(st.sampled_from([None, 0.1, 0.2, 0.3]), min_size=1, max_size=6))
def test_the_best_of_a_group_is_the_first_of_the_highest_and_the_worst_the_first_of_the_lowest(
    means: list[float | None],
) -> None:
    group = [{"layer": layer, EV: {"mean": mean}} for layer, mean in enumerate(means)]
    known = [mean for mean in means if mean is not None]
    best, worst = best_effect(group), best_effect(group, highest=False)
    if not known:
        assert best is None
        assert worst is None
    else:
        assert best == group[means.index(max(known))]
        assert worst == group[means.index(min(known))]


def test_a_grid_of_one_sae_has_no_standard_deviation_and_its_summary_is_strict_json(tmp_path: Path, call: Call) -> None:
    write_original_grid(tmp_path, {(3, 1, 64, 7): {EV: 0.9, DEATH: 0.25}})
    code, output, _ = call(main, "--results", tmp_path)
    summary = strict(tmp_path / "analysis_summary.json")
    assert code == 0
    assert summary["overall_stats"][EV] == {"mean": 0.9, "std": None, "min": 0.9, "max": 0.9}
    assert summary["best_layer"] == summary["worst_layer"]
    assert "Only layer 3 has values: there is nothing to compare." in output


def test_a_grid_without_k_20_and_latent_dim_1024_shows_its_middle_values_and_says_so(
    tmp_path: Path, call: Call
) -> None:
    write_original_grid(tmp_path, uniform_grid(((0, 1), (0,), (64, 128, 256), (4, 8, 16))))
    code, output, _ = call(main, "--results", tmp_path)
    chosen = strict(tmp_path / "analysis_summary.json")["slice"]
    assert code == 0
    assert (chosen["k"], chosen["latent_dim"], chosen["saes"]) == (8, 128, 2)
    assert chosen["k_stood_in"]
    assert chosen["latent_dim_stood_in"]
    assert "no k 20: 8 stands in" in output
    assert "no latent_dim 1024: 128 stands in" in output


def test_nan_infinity_and_null_are_left_out_of_the_statistics_and_counted(tmp_path: Path, call: Call) -> None:
    bad = [float("nan"), float("inf"), None]
    metrics = {(layer, 0, 1024, 20): {EV: value, DEATH: 0.5} for layer, value in enumerate([0.4, *bad, 0.6])}
    write_original_grid(tmp_path, metrics)
    code, output, _ = call(main, "--results", tmp_path)
    summary = strict(tmp_path / "analysis_summary.json")
    assert code == 0
    assert summary["total_saes"] == 5
    assert summary["overall_stats"][EV]["mean"] == pytest.approx(0.5)
    assert summary["not_finite"] == {EV: 3, DEATH: 0}
    assert summary["layer_position_matrix"][EV] == [[0.4], [None], [None], [None], [0.6]]
    assert "3 SAEs have no finite explained_variance" in output


def test_a_grid_whose_explained_variance_is_nowhere_finite_is_refused(tmp_path: Path) -> None:
    grid = load_grid(write_original_grid(tmp_path, {(0, 0, 1024, 20): {EV: float("nan")}}))
    with pytest.raises(InputError, match="none of the 1 SAEs has a finite explained_variance"):
        analysed(grid, 20, 1024)


def test_rows_with_keys_of_later_versions_are_read_and_kept_whole(tmp_path: Path) -> None:
    extra = {"fvu": 0.2, "settings": {"seed": 0, "lr": 1e-3}, "history": [0.5, float("nan")]}
    write_original_grid(tmp_path, {(0, 0, 1024, 20): {EV: 0.9} | extra, (0, 0, 1024, 5): {EV: 0.8}})
    row = analysed(load_grid(tmp_path), 20, 1024)["best_configs"]["highest_ev"]
    assert row["fvu"] == 0.2
    assert row["settings"] == {"seed": 0, "lr": 1e-3}
    assert row["history"] == [0.5, None]


def test_rows_that_hold_nothing_but_the_explained_variance_are_read(tmp_path: Path) -> None:
    content = {"metadata": {"position": 0, "layer": 0}, "results": {"1024": {"20": {EV: 0.9}}}}
    metrics_path(tmp_path, Cell(0, 0), 1024).write_text(json.dumps(content))
    grid = load_grid(tmp_path)
    summary = analysed(grid, 20, 1024)
    assert summary["best_configs"]["lowest_death"] is None
    assert summary["overall_stats"][DEATH]["mean"] is None
    assert "0.9000" in describe(summary, grid)


def test_an_incomplete_grid_is_refused_with_what_is_missing_and_nothing_is_written(
    hand_worked: Path, call: Call
) -> None:
    metrics_path(hand_worked, Cell(0, 1), 1024).unlink()
    code, output, error = call(main, "--results", hand_worked)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert "2 of 8 SAEs are missing" in error
    assert "layer 0 position 1 (d1024_k5, d1024_k20)" in error
    assert not (hand_worked / "analysis_summary.json").exists()


def test_with_allow_partial_missing_saes_are_counted_named_and_null(hand_worked: Path, call: Call) -> None:
    metrics_path(hand_worked, Cell(0, 1), 1024).unlink()
    code, output, _ = call(main, "--results", hand_worked, "--allow_partial")
    summary = strict(hand_worked / "analysis_summary.json")
    assert code == 0
    assert summary["total_saes"] == 6
    assert summary["missing"] == {
        "count": 2,
        "saes": [{"layer": 0, "position": 1, "latent_dim": 1024, "k": k} for k in (5, 20)],
    }
    assert summary["layer_position_matrix"][EV] == [[0.9, None], [0.6, 0.8]]
    assert summary["layer_effects"][0]["saes"] == 1
    assert "Incomplete: 2 of 8 SAEs are missing" in output


def test_a_planned_layer_of_which_nothing_is_trained_yet_is_missing_not_forgotten(hand_worked: Path) -> None:
    plan = {"layer": [0, 1, 2], "position": [0, 1], "latent_dim": [1024], "k": [5, 20]}
    plan_path(hand_worked).write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"4 of 12 SAEs are missing.*layer 2 position 0"):
        load_grid(hand_worked)
    summary = analysed(load_grid(hand_worked, allow_partial=True), 20, 1024)
    assert summary["layers"] == [0, 1, 2]
    assert summary["recommended"]["layers"][2]["highest_ev"] is None
    assert summary["best_layer"]["layer"] == 0


def test_a_slice_that_is_planned_but_has_no_sae_yet_is_refused_with_those_that_have(tmp_path: Path) -> None:
    write_original_grid(tmp_path, {(0, 0, 512, 5): {EV: 0.5}})
    plan_path(tmp_path).write_text(json.dumps({"layer": [0], "position": [0], "latent_dim": [512], "k": [5, 20]}))
    grid = load_grid(tmp_path, allow_partial=True)
    with pytest.raises(InputError, match=r"no SAE of k 20, latent_dim 512 .* --k 5 --latent-dim 512"):
        choose_slice(grid, 20, 1024)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "7"], "the grid has no k 7; it has 5, 20"),
        (["--latent-dim", "8"], "the grid has no latent_dim 8; it has 1024"),
        (["--k", "0"], "--k must be at least 1, not 0"),
    ],
)
def test_a_slice_that_the_grid_cannot_have_is_refused(
    hand_worked: Path, call: Call, words: list[str], message: str
) -> None:
    code, output, error = call(main, "--results", hand_worked, *words)
    assert (code, output) == (2, "")
    assert message in error
    assert not (hand_worked / "analysis_summary.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"metadata": {"pos', "is not readable JSON"),
        ("[]", "it is a list of 0 values, not an object"),
        ('{"metadata": {"layer": 0, "position": 0}, "results": {"1024": {"20": {}}}}', "explained_variance is missing"),
        (
            '{"metadata": {"layer": 0, "position": 0}, "results": {"1024": {"20": {"explained_variance": "high"}}}}',
            'explained_variance is "high", not a number',
        ),
    ],
)
def test_a_damaged_metrics_file_is_refused_in_one_line(
    hand_worked: Path, call: Call, content: str, message: str
) -> None:
    metrics_path(hand_worked, Cell(0, 0), 1024).write_text(content)
    code, output, error = call(main, "--results", hand_worked)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert message in error


def test_a_copy_of_a_metrics_file_under_another_name_is_refused(hand_worked: Path) -> None:
    metrics_path(hand_worked, Cell(7, 7), 1024).write_bytes(metrics_path(hand_worked, Cell(0, 0), 1024).read_bytes())
    with pytest.raises(InputError, match=r"two metrics files in .* hold the SAE of layer 0, position 0"):
        load_grid(hand_worked)


def test_a_folder_that_is_absent_or_holds_no_metrics_is_refused(tmp_path: Path, call: Call) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        code, output, error = call(main, "--results", folder)
        assert (code, output) == (2, "")
        assert f"no metrics in {folder}" in error
        assert not (folder / "analysis_summary.json").exists()


def test_a_dry_run_says_what_it_would_read_and_write_and_writes_nothing(hand_worked: Path, call: Call) -> None:
    before = sorted(hand_worked.iterdir())
    code, output, _ = call(main, "--results", hand_worked, "--dry-run")
    n_files = len(list(hand_worked.glob("grid_metrics_*.json")))
    assert code == 0
    assert f" SAEs from {n_files} metrics files in {hand_worked}" in output
    assert f"would be written: {hand_worked / 'analysis_summary.json'}" in output
    assert sorted(hand_worked.iterdir()) == before


def test_a_full_disk_ends_with_one_line_no_tables_and_nothing_half_written(
    hand_worked: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(hand_worked.iterdir())

    fill_disk(monkeypatch)
    code, output, error = call(main, "--results", hand_worked)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert sorted(hand_worked.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_results_folder_is_refused(hand_worked: Path, call: Call) -> None:
    hand_worked.chmod(0o500)
    code, output, error = call(main, "--results", hand_worked)
    hand_worked.chmod(0o700)
    assert (code, output) == (2, "")
    assert "Permission denied" in error


def test_the_terminal_shows_twenty_positions_and_large_numbers_within_a_hundred_columns(tmp_path: Path) -> None:
    grid = load_grid(write_original_grid(tmp_path, uniform_grid(((0, 79), range(20), (65536,), (20, 1024)))))
    text = describe(analysed(grid, 20, 65536), grid)
    assert max(map(len, text.splitlines())) <= 100
    assert "p19" in text


def test_columns_are_aligned_right_under_their_headers() -> None:
    assert section("Title", "Finding.", ["a", "long"], [["10", "1"]]).splitlines()[-2:] == [" a  long", "10     1"]


def test_plain_leaves_nothing_that_strict_json_refuses() -> None:
    awkward = {"a": float("nan"), "b": [float("-inf"), {"c": 1.5}], 3: (True, None, "NaN")}
    assert plain(awkward) == {"a": None, "b": [None, {"c": 1.5}], "3": [True, None, "NaN"]}


def test_the_command_line_prints_the_tables_and_writes_the_same_summary_again(hand_worked: Path) -> None:
    script = Path(analyze_all_layers.__file__)
    command = [sys.executable, str(script), "--results", "results", "--latent_dim", "1024"]
    runs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=hand_worked.parent, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Mean explained variance is highest at layer 0 (0.8000) and lowest at layer 1 (0.7000)." in done.stdout
        runs.append((hand_worked / "analysis_summary.json").read_bytes())
    assert runs[0] == runs[1]
    config = strict(hand_worked / "analysis_summary.json")["config"]
    default = {"output": None, "k": 20, "latent_dim": 1024, "allow_partial": False}
    default |= {"focus_layer": None, "focus_position": None}
    assert config == {"results": ["results"]} | default
