"""Every file of a run, damaged in every way: a command succeeds, or ends with one line that begins with "error:"."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import analyze_all_layers
import interpret_features
import train_grid
from tests.fuzz_files import call, make_run, train_words
from tests.helpers.json_damage import DAMAGE

EVALUATIONS = [
    *("results/substitution.json", "results/edits.json", "results/error_prediction.json", "results/transfer.json"),
    *("results/features/concept_scores.json",),
]
FILES = [
    "activations/metadata.json",
    "activations/split.json",
    "results/grid_metrics_pos1_layer0_latent8.json",
    "results/baselines_pos1_layer0.json",
    "results/grid_plan.json",
    "results/last_run.json",
]
LINES = "activations/examples.jsonl"
MOST = 3  # edits of one class and file that go through the command line; tests/results checks all against the models


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


def command(name: str) -> Callable[[Path], tuple[str, tuple[object, ...]]]:
    if name == LINES:
        words = ("--positions", 1, "--latent-dim", 12, "--k", 3, "--workers", 1)
        return lambda folder: (
            interpret_features.__name__,
            ("--activations", folder / "activations", "--results", folder / "results", *words),
        )
    if name.startswith("activations"):
        return lambda folder: (train_grid.__name__, (*train_words(folder), "--dry-run"))
    return lambda folder: (analyze_all_layers.__name__, ("--results", folder / "results", "--dry-run"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, *EVALUATIONS, LINES])
def test_a_damaged_file_is_one_line_or_harmless(name: str, damage: str, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    for other in {*EVALUATIONS} - {name}:
        (tmp_path / "run" / other).unlink()
    path = tmp_path / "run" / name
    whole = path.read_text()
    first, rest = whole.split("\n", 1) if name == LINES else (whole, "")
    edits = list(DAMAGE[damage](first))
    refused = 0
    most = 1 if name in EVALUATIONS else MOST  # an analysis takes a second
    for content in edits[:: max(1, len(edits) // most)][:most]:
        path.write_text(f"{content}\n{rest}" if name == LINES else content)
        script, words = command(name)(tmp_path / "run")
        ended = call(script, *words)
        assert ended.code in (0, 2), ended.err
        assert "Traceback" not in ended.err
        if ended.code == 2:
            refused += 1
            assert ended.err.startswith("error: ")
            assert ended.err.count("\n") == 1
            assert len(ended.err) < 600
    if damage in ("nested", "another document"):
        assert refused


def test_an_undamaged_run_is_read(whole_run: Path) -> None:
    for name in FILES:
        script, words = command(name)(whole_run)
        assert call(script, *words).code == 0


def test_rows_that_a_split_leaves_out_are_said(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    path = tmp_path / "run" / "activations" / "split.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps(split | {"train": split["train"][:-3]}))
    ended = call("train_grid", *train_words(tmp_path / "run"), "--dry-run")
    assert ended.code == 2  # its SAEs are of other rows than those that are there
    assert "split.json leaves 3 of 120 rows out of both sets" in ended.out


def test_a_plan_emptied_by_a_power_cut_is_refused_with_the_way_out(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    plan = tmp_path / "run" / "results" / "grid_plan.json"
    plan.write_bytes(b"")
    ended = call("analyze_all_layers", "--results", plan.parent)
    assert ended.code == 2
    assert "grid_plan.json is empty" in ended.err
    assert "remove it, and what is there is what was planned" in ended.err
    plan.unlink()
    assert call("analyze_all_layers", "--results", plan.parent).code == 0
    assert json.loads((plan.parent / "analysis_summary.json").read_text())["total_saes"] == 4
