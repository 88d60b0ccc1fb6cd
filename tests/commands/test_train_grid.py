"""Training one (layer, position): the same as a textbook loop, together as alone, resumable, never half-written."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import train_grid
from tests.helpers.full_disk import fill_disk
from tests.helpers.results import assert_close, assert_same_results
from thought_saes.activations.cell import Cell
from thought_saes.activations.split import split_rows
from thought_saes.analysis.grid import load_grid
from thought_saes.common import machine
from thought_saes.results.names import SaeKey, baselines_path, checkpoint_path, metrics_path
from thought_saes.saes.measures import evaluate
from thought_saes.saes.sae import SparseAutoencoder, TopKSAE
from thought_saes.training import run as training
from thought_saes.training.stack import Trained

Call = Callable[..., tuple[int, str, str]]
SMALL = ["--latent-dim", 24, 16, "--k-values", 2, 4, "--epochs", 3, "--batch-size", 32]


def run_small(call: Call, activations: Path, results: Path, *more: object) -> tuple[int, str, str]:
    return call(
        train_grid.main,
        "--layer",
        2,
        "--position",
        1,
        *SMALL,
        "--activations",
        activations,
        "--results",
        results,
        *more,
    )


def test_the_files_have_the_names_keys_and_values_of_the_experiment(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    code, out, _ = run_small(call, activations, results)
    assert (code, out.splitlines()[-1]) == (0, f"4 SAEs trained, in {results}")
    assert {path.name for path in results.glob("[!.]*")} == {
        *(f"pos1_layer2_d{latent_dim}_k{k}.pt" for latent_dim in (16, 24) for k in (2, 4)),
        *(f"grid_metrics_pos1_layer2_latent{latent_dim}.json" for latent_dim in (16, 24)),
        "baselines_pos1_layer2.json",
    }
    content = json.loads(metrics_path(results, Cell(2, 1), 24).read_text())
    expected = {"position": 1, "layer": 2, "n_train": 96, "n_val": 24, "input_dim": 12, "epochs": 3, "batch_size": 32}
    assert expected.items() <= content["metadata"].items()
    assert list(content["results"]) == ["24"]
    assert list(content["results"]["24"]) == ["2", "4"]
    sae = TopKSAE.load(checkpoint_path(results, SaeKey(Cell(2, 1), 24, 4)))
    assert sae.metrics == content["results"]["24"]["4"]
    assert {"input_dim": 12, "latent_dim": 24, "k": 4, "position": 1, "layer": 2}.items() <= sae.config.items()
    x = torch.from_numpy(np.load(activations / "pos1_layer2.npy"))
    split = split_rows(120)
    again = evaluate(sae, x[split.train], x[split.validation])
    assert {name: sae.metrics[name] for name in again} == again
    assert len(load_grid(results).table) == 4


def test_a_second_run_trains_nothing_and_a_wider_one_only_what_is_new(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(call, activations, tmp_path / "results")
    trained: list[tuple[int, int]] = []
    original = training.train_saes

    def spy(saes: list[SparseAutoencoder], *rest: Any) -> list[Trained]:
        trained.extend((sae.latent_dim, sae.k) for sae in saes)
        return original(saes, *rest)

    monkeypatch.setattr(training, "train_saes", spy)
    code, out, _ = run_small(call, activations, tmp_path / "results", "--k-values", 2, 4, 4)
    assert (code, trained) == (0, [])
    assert "4 SAEs are already done" in out
    before = json.loads(metrics_path(tmp_path / "results", Cell(2, 1), 16).read_text())["results"]["16"]
    assert run_small(call, activations, tmp_path / "results", "--k_values", 2, 3, 4)[0] == 0
    assert trained == [(24, 3), (16, 3)]
    after = json.loads(metrics_path(tmp_path / "results", Cell(2, 1), 16).read_text())["results"]["16"]
    assert list(after) == ["2", "3", "4"]
    assert {k: after[k] for k in ("2", "4")} == before


@pytest.mark.parametrize("harm", ["truncated", "flipped", "absent", "metrics", "killed before the metrics"])
def test_what_is_damaged_is_trained_again_to_the_same_files(
    call: Call, activations: Path, tmp_path: Path, harm: str
) -> None:
    run_small(call, activations, tmp_path / "whole")
    results = tmp_path / "results"
    run_small(call, activations, results)
    checkpoint, metrics = checkpoint_path(results, SaeKey(Cell(2, 1), 24, 4)), metrics_path(results, Cell(2, 1), 24)
    content = bytearray(checkpoint.read_bytes())
    if harm == "truncated":
        checkpoint.write_bytes(content[:-100])
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
        checkpoint.write_bytes(content)
    elif harm == "absent":
        checkpoint.unlink()
    elif harm == "metrics":
        metrics.write_text(metrics.read_text()[:-100])
    else:
        metrics.unlink()
        (results / ".pos1_layer2_d24_k4.pt.1.tmp").write_bytes(b"half")
    code, out, err = run_small(call, activations, results)
    assert code == 0
    assert ("trained again" in out + err) == (harm != "killed before the metrics")
    assert not list(results.glob(".*.tmp"))
    assert_same_results(results, tmp_path / "whole")


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [("--epochs", 4, "epochs 3 there, 4 now"), ("--lr", 0.01, "lr 0.001 there, 0.01 now"), ("--seed", 7, "seed 0")],
)
def test_other_settings_stop_the_run_with_the_difference_and_the_way_out(
    call: Call, activations: Path, tmp_path: Path, flag: str, value: object, named: str
) -> None:
    results = tmp_path / "results"
    run_small(call, activations, results)
    before = {path: path.read_bytes() for path in results.glob("[!.]*")}
    code, _, err = run_small(call, activations, results, flag, value)
    assert code == 2
    assert named in err
    assert "--results" in err
    assert "--overwrite" in err
    assert {path: path.read_bytes() for path in results.glob("[!.]*")} == before
    assert run_small(call, activations, results, flag, value, "--overwrite")[0] == 0
    metadata = json.loads(metrics_path(results, Cell(2, 1), 24).read_text())["metadata"]
    assert metadata[flag.strip("-")] == value


def test_baselines_that_are_lacking_are_measured_and_no_sae_trained_again(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    run_small(call, activations, results)
    path = baselines_path(results, Cell(2, 1))
    whole = path.read_text()
    assert list(json.loads(whole)["untrained"]["24"]) == ["2", "4"]
    path.write_text(whole[:50])
    monkeypatch.setattr(training, "train_saes", None)
    assert run_small(call, activations, results)[0] == 0
    assert path.read_text() == whole


def test_without_checkpoints_the_metrics_are_the_same_and_a_second_run_trains_nothing(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(call, activations, tmp_path / "whole")
    results = tmp_path / "results"
    assert run_small(call, activations, results, "--no-checkpoints")[0] == 0
    assert not list(results.glob("*.pt"))
    content, whole = (json.loads(metrics_path(f, Cell(2, 1), 24).read_text()) for f in (results, tmp_path / "whole"))
    assert content["metadata"].pop("without_checkpoint") == [2, 4]
    assert_close(content, whole)
    assert len(load_grid(results).table) == 4
    monkeypatch.setattr(training, "train_saes", None)
    code, out, _ = run_small(call, activations, results, "--no-checkpoints")
    assert code == 0
    assert "4 SAEs are already done" in out


def test_checkpoints_that_were_not_kept_are_trained_when_they_are_wanted(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    run_small(call, activations, tmp_path / "whole", "--k-values", 2, 4, 6)
    results = tmp_path / "results"
    run_small(call, activations, results)
    run_small(call, activations, results, "--no-checkpoints", "--k-values", 2, 4, 6)
    assert len(list(results.glob("*.pt"))) == 4  # those of the first run stay
    assert json.loads(metrics_path(results, Cell(2, 1), 16).read_text())["metadata"]["without_checkpoint"] == [6]
    code, out, _ = run_small(call, activations, results, "--k-values", 2, 4, 6)
    assert code == 0
    assert "2 SAEs have metrics and, by --no-checkpoints, no checkpoint: they are trained again" in out
    assert "4 SAEs are already done" in out
    assert_same_results(results, tmp_path / "whole")


def test_a_checkpoint_of_other_settings_does_not_stay_beside_metrics_without_one(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    run_small(call, activations, results)
    assert run_small(call, activations, results, "--epochs", 2, "--overwrite", "--no-checkpoints")[0] == 0
    assert not list(results.glob("*.pt"))


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_work(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert (code, len(err.splitlines())) == (2, 1)
    # four SAEs of 4 x (2 x 12 x latent_dim + 12 + latent_dim) + 3,300 bytes, and 900 for each and each metrics file
    assert "needs 26.8 KB more" in err
    assert "--no-checkpoints" in err
    assert not list((tmp_path / "results").glob("[!.]*"))
    assert run_small(call, activations, tmp_path / "results", "--no-checkpoints")[0] == 0


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(call: Call, activations: Path, tmp_path: Path) -> None:
    code, out, err = run_small(call, activations, tmp_path / "results", "--dry-run")
    assert (code, err) == (0, "")
    what, cells, disk, memory, seconds = out.splitlines()
    assert what == "4 SAEs to train in 2 stacks on cpu; 0 are done"
    assert cells == "cells: 1, each 120 x 12"
    assert disk.startswith(f"disk: 26.8 KB of checkpoints and metrics in {tmp_path / 'results'}; ")
    assert memory.startswith("memory: about 490.")
    assert re.fullmatch(r"time: about \d+ s", seconds)
    assert not (tmp_path / "results").exists()
    run_small(call, activations, tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    written = sum(path.stat().st_size for path in before)
    assert written == pytest.approx(26_800, rel=0.1)
    code, out, _ = run_small(call, activations, tmp_path / "results", "--dry-run")
    assert out.splitlines()[0] == "0 SAEs to train in 0 stacks on cpu; 4 are done"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()} == before


def test_other_activations_are_other_settings(call: Call, activations: Path, tmp_path: Path) -> None:
    run_small(call, activations, tmp_path / "results")
    array = np.load(activations / "pos1_layer2.npy")
    array[5, 5] += 1e-3
    np.save(activations / "pos1_layer2.npy", array)
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert code == 2
    assert "activations" in err


def test_metrics_of_the_original_are_not_taken_for_ours(call: Call, activations: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run_small(call, activations, results)
    path = metrics_path(results, Cell(2, 1), 24)
    content = json.loads(path.read_text())
    for key in ("lr", "seed", "activations"):
        del content["metadata"][key]
    path.write_text(json.dumps(content))
    code, _, err = run_small(call, activations, results)
    assert code == 2
    assert "lr unknown there" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--layer", 5, "--position", 1], "layer 5"),
        (["--layer", 2, "--position", 9], "position 9"),
        (
            ["--layer", 2, "--position", 1, "--k-values", 5, 100, "--latent-dim", 64],
            "k 100 is larger than latent_dim 64",
        ),
        (["--layer", 2, "--position", 1, "--k-values", 0], "--k-values must be at least 1, not 0"),
        (["--layer", 2, "--position", 1, "--epochs", 0], "--epochs must be at least 1, not 0"),
        (["--layer", 2, "--position", 1, "--lr", -1], "--lr must be positive, not -1"),
        (["--layer", 2, "--position", 1, "--lr", "nan"], "--lr must be positive, not nan"),
        (["--layer", 2, "--position", 1, "--lr", "1e-320"], "--lr must be from 1e-30 to 1e+30, not 1e-320"),
        (["--layer", 2, "--position", 1, "--lr", "1e308"], "--lr must be from 1e-30 to 1e+30, not 1e+308"),
        (["--layer", "two", "--position", 1], "'two'"),
        (["--layer", 2], "--position"),
        (["--layer", 2, "--position", 1, "--device", "cuda:77"], "cuda:77"),
        (["--layer", 2, "--position", 1, "--activations", "nowhere"], "nowhere"),
        (["--layer", 2, "--position", 1, "--results", "/dev/null/results"], "/dev/null"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    call: Call, activations: Path, tmp_path: Path, words: list[object], named: str
) -> None:
    given = [] if "--activations" in words else ["--activations", activations]
    given += [] if "--results" in words else ["--results", tmp_path / "results"]
    code, _, err = call(train_grid.main, *words, *given)
    assert code == 2
    assert named in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("results/[!.]*"))


def test_values_that_are_not_finite_are_counted_and_their_rows_named(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    array = np.load(activations / "pos1_layer2.npy")
    array[3, :2], array[40, 1] = np.nan, np.inf
    np.save(activations / "pos1_layer2.npy", array)
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert code == 2
    assert "pos1_layer2.npy holds 3 values that are NaN or infinite, in 2 rows: 3,40" in err
    assert len(err.splitlines()) == 1


def test_a_damaged_array_is_named(call: Call, activations: Path, tmp_path: Path) -> None:
    path = activations / "pos1_layer2.npy"
    path.write_bytes(path.read_bytes()[:-50])
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "pos1_layer2.npy is damaged" in err


def test_a_full_disk_ends_with_exit_code_2_and_nothing_half_written(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert code == 2
    assert "No space left on device" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".lock"]


def test_a_float16_cell_trains_in_float32(call: Call, activations: Path, tmp_path: Path) -> None:
    for path in activations.glob("*.npy"):
        np.save(path, np.load(path).astype(np.float16))
    assert run_small(call, activations, tmp_path / "results")[0] == 0
    assert (
        TopKSAE.load(checkpoint_path(tmp_path / "results", SaeKey(Cell(2, 1), 24, 4))).encoder.weight.dtype
        == torch.float32
    )


def test_without_numba_training_is_in_plain_pytorch_and_says_so(
    call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "thought_saes.training.fused.trainer", None)
    code, _, err = run_small(call, activations, tmp_path / "results")
    assert code == 0
    assert "training in plain PyTorch" in err.splitlines()[0]
    metadata = json.loads(metrics_path(tmp_path / "results", Cell(2, 1), 24).read_text())["metadata"]
    assert metadata["backend"] == "torch"
    code, _, err = run_small(call, activations, tmp_path / "other", "--backend", "fused")
    assert (code, len(err.splitlines())) == (2, 1)
