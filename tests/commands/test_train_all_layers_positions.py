"""The whole grid through worker processes: complete, resumable after any kill, honest about what failed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import train_all_layers_positions
import train_grid
from tests.helpers.results import assert_same_results
from thought_saes.activations.cache import ActivationCache
from thought_saes.analysis.grid import load_grid
from thought_saes.common.errors import InputError
from thought_saes.training import forecast
from thought_saes.training.forecast import cells_that_fit
from thought_saes.training.stack import bytes_of_a_cell
from train_all_layers_positions import GridConfig

Call = Callable[..., tuple[int, str, str]]
SMALL = ["--latent-dims", 24, 16, "--k-values", 2, 4, "--batch-size", 32]
SLOW = ["--epochs", 60, "--backend", "torch"]  # so that there is something to kill
SCRIPT = Path(train_all_layers_positions.__file__)


def start(activations: Path, results: Path, *more: object) -> subprocess.Popen[str]:
    """The script in a process of its own."""
    words = [SCRIPT, *SMALL, "--activations", activations, "--results", results, *more]
    return subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def worker_pids(results: Path) -> list[int]:
    """Of the workers started last, by their logs."""
    logs = sorted(results.glob("logs/worker*.log"))
    return [int(pids[-1]) for log in logs if (pids := re.findall(r"process (\d+) on", log.read_text()))]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_when_done(process: subprocess.Popen[str], results: Path, n_files: int) -> None:
    """SIGKILL the main process when so many metrics files are there, and see its workers end as well."""
    wait_until(lambda: len(list(results.glob("grid_metrics_*.json"))) >= n_files or process.poll() is not None)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, worker_pids(results))), 10)


@pytest.fixture
def undisturbed(call: Call, activations: Path, tmp_path: Path) -> Path:
    """The same grid by `train_grid.py`, cell after cell, undisturbed."""
    results = tmp_path / "undisturbed"
    for layer in (0, 2):
        for position in (0, 1):
            words = ["--layer", layer, "--position", position, "--latent-dim", 24, 16, *SMALL[3:], *SLOW]
            code, _, err = call(train_grid.main, *words, "--activations", activations, "--results", results)
            assert code == 0, err
    return results


def test_a_run_killed_at_any_moment_goes_on_to_the_same_files(
    activations: Path, undisturbed: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    for n_files in (1, 4):  # the second kill hits a run that resumes
        kill_when_done(start(activations, results, *SLOW, "--workers", 2), results, n_files)
    assert len(list(results.glob("grid_metrics_*.json"))) < 8, "the kills came too late to prove anything"
    process = start(activations, results, *SLOW, "--workers", 2)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "SAEs are already done" in output
    (results / "grid_plan.json").unlink()  # train_grid.py plans no grid
    assert_same_results(results, undisturbed)
    assert len(load_grid(results).table) == 16


def test_a_worker_that_dies_costs_its_task_and_is_reported(activations: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start(activations, results, "--epochs", 150, "--backend", "torch", "--workers", 2)
    logs = [results / "logs" / f"worker{number}.log" for number in (0, 1)]
    wait_until(lambda: any(log.exists() and " s\n" in log.read_text() for log in logs))
    os.kill(worker_pids(results)[0], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    failed = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2  # the two k of one stack
    assert all("the worker died (exit code -9)" in line and "worker" in line.rpartition("see ")[2] for line in failed)
    assert len(list(results.glob("*.pt"))) >= 14  # it may have written all before it could say so
    process = start(activations, results, "--epochs", 150, "--backend", "torch", "--workers", 2)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert len(load_grid(results).table) == 16


def test_an_sae_that_fails_does_not_stop_the_others(call: Call, activations: Path, tmp_path: Path) -> None:
    array = np.load(activations / "pos1_layer2.npy")
    np.save(activations / "pos1_layer2.npy", array * np.float32(1e30))  # finite, but its square is not
    results = tmp_path / "results"
    code, out, err = call(
        train_all_layers_positions.main, *SMALL, "--epochs", 2, "--activations", activations, "--results", results
    )
    assert code == 1
    assert "12 SAEs trained" in out
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 4
    assert all("layer 2 position 1" in line and "the loss is not finite" in line for line in failed)
    assert len(list(results.glob("*.pt"))) == 12
    with pytest.raises(InputError, match="4 of 16 SAEs are missing"):
        load_grid(results)


def test_a_second_run_on_the_same_results_is_refused(activations: Path, call: Call, tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start(activations, results, "--epochs", 100000, "--workers", 1)
    wait_until(lambda: (results / "logs" / "worker0.log").exists())
    words = [*SMALL, "--activations", activations, "--results", results]
    code, _, err = call(train_all_layers_positions.main, *words)
    assert code == 2
    assert "another run" in err
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--layers", "0-2"], "1; there are 0,2"),
        (["--positions", "5"], "5; there are 0-1"),
        (["--layers", "2-0"], "write '0-2'"),
        (["--k-values", 4, 17], "k 17 is larger than latent_dim 16"),
        (["--workers", 0], "--workers must be at least 1, not 0"),
        (["--cells-per-stack", 0], "--cells-per-stack must be at least 1, not 0"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    call: Call, activations: Path, tmp_path: Path, words: list[object], named: str
) -> None:
    base = [*SMALL, "--activations", activations, "--results", tmp_path / "results"]
    code, _, err = call(train_all_layers_positions.main, *base, *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert named in err
    assert not (tmp_path / "results").exists()


def test_a_dry_run_counts_and_writes_nothing(call: Call, activations: Path, tmp_path: Path) -> None:
    base = [*SMALL, "--activations", activations, "--results", tmp_path / "results", "--dry_run"]
    base += ["--k-values", 2, 4, 2, "--latent-dims", 24, 16, 24]  # what is asked for twice is one all the same
    code, out, _ = call(train_all_layers_positions.main, *base)
    assert code == 0
    assert "16 SAEs to train in 8 stacks" in out
    assert not (tmp_path / "results").exists()


def test_values_that_are_not_finite_stop_the_run_before_it_starts(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    array = np.load(activations / "pos0_layer2.npy")
    array[7] = np.nan
    np.save(activations / "pos0_layer2.npy", array)
    base = [*SMALL, "--activations", activations, "--results", tmp_path / "results"]
    code, _, err = call(train_all_layers_positions.main, *base)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "12 values that are NaN or infinite, in 1 rows: 7" in err


def test_however_many_cells_a_stack_spans_the_files_are_the_same(call: Call, activations: Path, tmp_path: Path) -> None:
    for cells, stacks in ((1, 8), (3, 4)):  # three of the four cells, and the one that is left
        results = tmp_path / str(cells)
        base = [*SMALL, "--activations", activations, "--results", results, "--epochs", 3, "--backend", "torch"]
        base += ["--cells-per-stack", cells, "--workers", 1]
        _, out, _ = call(train_all_layers_positions.main, *base, "--dry-run")
        assert f"16 SAEs to train in {stacks} stacks" in out
        one = ["--layer", 2, "--position", 1, "--latent-dim", 24, "--k-values", 4, *base[6:-4]]
        assert call(train_grid.main, *one)[0] == 0
        code, out, err = call(train_all_layers_positions.main, *base)
        assert code == 0, err
        assert "1 SAEs are already done" in out  # so that its cell has one left, others two
    assert_same_results(tmp_path / "3", tmp_path / "1")
    assert len(load_grid(tmp_path / "3").table) == 16


def test_the_cells_of_a_stack_are_those_that_fit_the_free_memory(activations: Path) -> None:
    cache = ActivationCache(activations)

    def fitting(free: float | None) -> int:
        config = GridConfig(k_values=(4, 8), batch_size=256)
        return cells_that_fit(config, cache, 64, 3, None if free is None else int(free))

    cell = bytes_of_a_cell(2, 120, 12, 64, 256)
    assert cell > 2 * 4 * 4 * (2 * 12 * 64 + 12 + 64)  # four tensors the size of the weights, for each of two SAEs
    overhead, used = forecast.OVERHEAD_BYTES, forecast.USED_OF_FREE
    assert fitting(3 * (overhead + 2.5 * cell) / used) == 2
    assert fitting(3 * (overhead + 0.5 * cell) / used) == 1
    assert fitting(1 << 40) == forecast.MOST_CELLS
    assert fitting(None) == 1


def test_the_record_of_a_run_says_what_it_cost(call: Call, activations: Path, tmp_path: Path) -> None:
    base = [*SMALL, "--activations", activations, "--results", tmp_path / "results", "--epochs", 2]
    assert call(train_all_layers_positions.main, *base, "--layers", 0, "--positions", "0,1")[0] == 0
    record = json.loads((tmp_path / "results" / "last_run.json").read_text())
    assert record["n_trained"] == 8
    assert 0 < record["busy_seconds"] < record["workers"] * record["wall_seconds"]
    files = [json.loads(path.read_text())["results"] for path in (tmp_path / "results").glob("grid_metrics_*.json")]
    trained = [metrics["train_time_sec"] for of in files for by_k in of.values() for metrics in by_k.values()]
    assert len(trained) == 8
    assert record["train_seconds"] == pytest.approx(sum(trained))
    assert 0 < record["train_seconds"] < record["busy_seconds"]
