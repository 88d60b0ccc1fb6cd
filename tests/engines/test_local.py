"""Worker processes on this machine: what an error of the GPU costs, by jobs that raise what CUDA would."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thought_saes.activations.cell import Cell
from thought_saes.engines.grid_run import time_of_workers
from thought_saes.engines.local import Worker, run_jobs
from thought_saes.training.config import GridConfig

ILLEGAL_ADDRESS = "CUDA error: an illegal memory access was encountered"


@dataclass(frozen=True)
class Job:
    """Notes the process that does it; raises what a broken kernel would until so many processes have met it."""

    folder: Path
    name: str
    deaths: int = 0
    n_saes: int = 2
    cells: tuple[Cell, ...] = ()
    error: type[RuntimeError] = torch.AcceleratorError

    def failed(self, why: str) -> list[str]:
        return [f"{self.name} {number}: {why}" for number in range(self.n_saes)]

    def left(self, config: Any) -> "Job":
        return replace(self, n_saes=self.n_saes - 1)  # one SAE was written before the error

    def run(self, config: Any, cache: Any, device: Any, backend: str, on_epochs: Any) -> list[str]:
        with (self.folder / self.name).open("a") as file:
            file.write(f"{os.getpid()} {self.n_saes}\n")
        on_epochs(config.epochs + 3)
        if len((self.folder / self.name).read_text().splitlines()) <= self.deaths:
            raise self.error(ILLEGAL_ADDRESS)
        on_epochs(self.n_saes * config.epochs - config.epochs - 3)
        return []


def run_all(jobs: list[Job], activations: Path, results: Path) -> tuple[Any, int]:
    """The report of one worker, and the epochs that it counted."""
    config = GridConfig(activations=activations, results=results, epochs=10)
    (results / "logs").mkdir(parents=True)
    epochs: list[int] = []
    report = run_jobs(jobs, [Worker(0, config, 1, "torch")], epochs.append)  # type: ignore[arg-type]
    return report, sum(epochs)


def processes(folder: Path, name: str) -> list[tuple[int, int]]:
    lines = [line.split() for line in (folder / name).read_text().splitlines()]
    return [(int(pid), int(n_saes)) for pid, n_saes in lines]


@pytest.mark.parametrize("error", [torch.AcceleratorError, RuntimeError])
def test_a_worker_whose_gpu_is_lost_ends_and_a_new_one_does_what_is_left_of_the_job(
    error: type[RuntimeError], activations: Path, tmp_path: Path
) -> None:
    jobs = [Job(tmp_path, "first"), Job(tmp_path, "broken", deaths=1, error=error), Job(tmp_path, "last")]
    report, epochs = run_all(jobs, activations, tmp_path / "results")
    assert report.failures == []
    assert report.n_trained == 6
    assert epochs == 6 * 10  # what the lost process had counted is counted once
    [(before, _)], [(lost, whole), (new, left)], [(after, _)] = (
        processes(tmp_path, name) for name in ("first", "broken", "last")
    )
    assert before == lost != new == after
    assert (whole, left) == (2, 1)


def test_a_job_that_breaks_every_gpu_fails_and_the_next_one_has_a_new_process(
    activations: Path, tmp_path: Path
) -> None:
    report, _ = run_all([Job(tmp_path, "broken", deaths=9), Job(tmp_path, "last")], activations, tmp_path / "results")
    assert [failure.partition(":")[0] for failure in report.failures] == ["broken 0"]
    assert ILLEGAL_ADDRESS in report.failures[0]
    assert report.n_trained == 1 + 2
    tried, [(after, _)] = processes(tmp_path, "broken"), processes(tmp_path, "last")
    assert len({pid for pid, _ in tried} | {after}) == 3


def test_an_error_that_leaves_the_gpu_alone_keeps_the_process(activations: Path, tmp_path: Path) -> None:
    jobs = [Job(tmp_path, "bad", deaths=9, error=torch.OutOfMemoryError), Job(tmp_path, "last")]
    report, _ = run_all(jobs, activations, tmp_path / "results")
    assert len(report.failures) == 2
    assert [pid for pid, _ in processes(tmp_path, "bad")] == [pid for pid, _ in processes(tmp_path, "last")]


def test_a_forecast_divides_by_the_workers_only_where_each_has_a_device() -> None:
    assert time_of_workers(7200, 2, sharing=1) == "time: about 60 min if 2 workers do not slow each other down"
    shared = time_of_workers(3 * 3600, 3, sharing=3)
    assert shared == "time: 60 min to 3 h 0 min: 3 workers share a device, which one may fill"
    assert "60 min to 3 h 0 min: 3 workers" in time_of_workers(6 * 3600, 6, sharing=3)  # two devices
    assert time_of_workers(3600, 1, sharing=3).startswith("time: 60 min to 60 min: 1 worker")
