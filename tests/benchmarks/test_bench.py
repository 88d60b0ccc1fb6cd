"""The benchmark measures and prints everything it promises; how long anything takes is no test's business."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bench import BenchConfig, main
from benchmarks.bench_peers import PEERS
from benchmarks.cases import Case, growth, synthetic_rows
from benchmarks.recipes import rate_of_each_step, selection_of, started
from tests.helpers.paths import ROOT
from thought_saes.common.flags import build_parser
from thought_saes.results.recipe import RECIPES
from thought_saes.training.config import TrainConfig
from thought_saes.training.fused.selection import Selection
from thought_saes.training.prepared import Prepared

BENCH = ROOT / "benchmarks" / "bench.py"
SMALL = [
    "--latent-dims",
    "32",
    "48",
    "--k-values",
    "2",
    "4",
    "--epochs",
    "2",
    "--baseline-epochs",
    "1",
    "--threads",
    "1",
]


def run_bench(*words: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as its forks need one that has run nothing on several threads."""
    command = [sys.executable, str(BENCH), *SMALL, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_small_run_has_every_row_and_writes_what_it_prints(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    ended = run_bench("--input-dims", 64, 40, "--rows", 100, "--rounds", 2, "--peers", "--output", output)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(output.read_text())
    assert content["versions"].keys() >= {"python", "torch", "numpy"}
    assert content["cpu"] in ended.stdout
    assert content["threads"] == 1
    assert content["settings"]["rows"] == 100
    assert list(content["configurations"]) == ["64", "40"]
    for input_dim, rows in content["configurations"].items():
        assert [(row["latent_dim"], row["k"]) for row in rows] == [(32, 2), (32, 4), (48, 2), (48, 4)]
        for row in rows:
            assert min(row[method] for method in ("textbook", "stack", "ours", "gemm")) > 0
            assert row["textbook/ours"] == pytest.approx(row["textbook"] / row["ours"])
            assert row["ours/gemm"] == pytest.approx(row["ours"] / row["gemm"])
            assert 0 <= row["dead_share"] <= 1
            assert min(row["textbook_mib"], row["ours_mib"]) >= 0
            assert row["weights_and_moments_mib"] > 0
        total = content["sums"][input_dim]
        assert total["ours"] == pytest.approx(sum(row["ours"] for row in rows))
        assert total["textbook/ours"] == pytest.approx(total["textbook"] / total["ours"])
        assert f"input_dim {input_dim}" in ended.stdout
    assert content["growth"].keys() == {"rows", "input_dim", "latent_dim", "k"}
    for axis, rows in content["growth"].items():
        assert [row[axis] for row in rows] == sorted({row[axis] for row in rows})
        assert len(rows) == 4
        assert all(row["ours"] > 0 and row["gemm"] > 0 for row in rows)
        assert f"growth with {axis}" in ended.stdout
    timed = content["peers"][0] if content["peers"] else {}
    assert {*content["absent_peers"], *timed} >= PEERS.keys()
    assert all(f"{peer} is left out: {reason}" in ended.stdout for peer, reason in content["absent_peers"].items())
    assert all(len(measurement["rounds"]) == 2 for measurement in content["measurements"])
    assert sum(" s per epoch" in line for line in ended.stderr.splitlines()) == 2 * len(content["measurements"])


def test_a_real_cell_is_measured_at_its_own_size_and_never_beyond(activations: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    ended = run_bench("--activations", activations, "--layer", 2, "--position", 1, "--rounds", 1, "--output", output)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(output.read_text())
    assert list(content["configurations"]) == ["12"]
    assert [row["rows"] for row in content["growth"]["rows"]] == [24, 48, 96]
    assert [row["input_dim"] for row in content["growth"]["input_dim"]] == [3, 6, 12]


@pytest.mark.parametrize("variant", ["abstopk", "matryoshka"])
def test_other_recipes_are_timed_against_the_textbook_loop_of_the_same(variant: str, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    words = (
        "--input-dims",
        40,
        "--k-values",
        2,
        "--rows",
        100,
        "--rounds",
        1,
        "--no-growth",
        "--cpu-time",
        "--output",
        output,
    )
    ended = run_bench(*words, "--recipe", "improved", "--variant", variant)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(output.read_text())
    assert content["settings"]["variant"] == variant
    assert content["growth"] == {}
    for row in content["configurations"]["40"]:
        assert {"textbook", "ours", "gemm"} < row.keys()
        assert "stack" not in row
    assert f"of {variant} by the improved recipe" in ended.stdout


def test_a_recipe_trains_by_its_rule_its_rates_and_its_start() -> None:
    published, improved = (TrainConfig(recipe=name, variant="topk", epochs=2, batch_size=50) for name in RECIPES)
    np.testing.assert_array_equal(rate_of_each_step(published, 120), np.full(6, 1e-3))
    np.testing.assert_allclose(rate_of_each_step(improved, 120), 1e-3 * np.arange(6, 0, -1) / 6)
    assert selection_of(improved, Case(1, 1, 32, 4)) == Selection("topk", 4)


def test_the_improved_start_is_of_unit_norm_and_its_first_rows_are_the_principal_components() -> None:
    rows = Prepared(torch.from_numpy(synthetic_rows(200, 40)), RECIPES["improved"])
    x = rows.x
    assert x.mean(dim=0).abs().max() < 1e-4
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-4)
    directions = started(rows, Case(200, 40, latent_dim=30, k=5)).encoder.weight.detach()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(30))
    torch.testing.assert_close(directions[:10] @ directions[:10].T, torch.eye(10), atol=1e-4, rtol=0)
    assert (directions[:10] @ directions[10:].T).abs().max() < 1e-3
    captured = float((x @ directions[:10].T).square().sum())
    assert captured == pytest.approx(float(torch.linalg.svdvals(x)[:10].square().sum()), rel=1e-3)


def test_ctrl_c_does_not_promise_to_go_on() -> None:
    command = [sys.executable, str(BENCH), *SMALL, "--rows", "100", "--input-dims", "64", "--rounds", "1000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr
    process.stderr.readline()  # it measures
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted: a benchmark begins anew")


def test_growth_varies_one_axis_at_a_time_and_keeps_k_within_latent_dim() -> None:
    base = Case(rows=100, input_dim=64, latent_dim=8, k=8)
    for axis, cases in growth(base, (100, 64)).items():
        assert base in cases
        assert all(case._replace(**{axis: getattr(base, axis)}) == base for case in cases)
        assert all(case.k <= case.latent_dim and case.rows <= 100 and case.input_dim <= 64 for case in cases)


def test_synthetic_rows_have_a_mean_larger_than_their_spread() -> None:
    rows = synthetic_rows(200, 2048)
    assert (rows.dtype, rows.shape) == (np.float32, (200, 2048))
    assert np.square(rows.mean(axis=0)).sum() > rows.var(axis=0).sum()
    assert np.array_equal(rows, synthetic_rows.__wrapped__(200, 2048))


def test_every_field_is_a_flag_with_a_help_text() -> None:
    flags = {action.dest: action.help for action in build_parser(BenchConfig, "")._actions if action.dest != "help"}
    assert flags.keys() == {field.name for field in dataclasses.fields(BenchConfig)}
    assert len({*flags.values()} - {None}) == len(flags)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "0"], "--rows must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--rounds", "many"], "many"),
        (["--k-values", "600"], "k 600 is larger than latent_dim 512"),
        (["--layer", "3"], "--activations, --layer and --position go together"),
        (["--activations", "nowhere", "--layer", "0", "--position", "0"], "nowhere"),
        (["--output", "nowhere/bench.json"], "no folder nowhere"),
    ],
)
def test_bad_flags_end_with_code_2_and_one_line(
    call: Callable[..., tuple[int, str, str]], words: list[str], said: str
) -> None:
    code, out, err = call(main, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
