"""Jobs that need more memory than there is train by halves, by a trainer that raises what CUDA would."""

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.results import assert_same_results
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.results.store import Results
from thought_saes.training import baselines
from thought_saes.training import run as training
from thought_saes.training.config import TrainConfig
from thought_saes.training.jobs import TrainSaes
from thought_saes.training.plan import plan_jobs
from thought_saes.training.run import train_saes

EPOCHS = 2
CELLS = [Cell(0, 0), Cell(0, 1), Cell(2, 0)]
MESSAGES = [
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail] DefaultCPUAllocator: can't allocate memory",
]


def config_for(activations: Path, results: Path) -> TrainConfig:
    results.mkdir()
    return TrainConfig(k_values=(2, 4, 8), epochs=EPOCHS, batch_size=32, activations=activations, results=results)


def train(config: TrainConfig) -> tuple[list[str], int]:
    """All cells as one stack: what failed, and the epochs that were counted."""
    cache, epochs = ActivationCache(config.activations), list[int]()
    [job] = [job for job in plan_jobs(config, cache, CELLS, [16], lambda _: 3).jobs if isinstance(job, TrainSaes)]
    assert job.n_saes == 9
    return job.run(config, cache, torch.device("cpu"), "torch", epochs.append), sum(epochs)


def small_memory(most: int, error: Callable[[], RuntimeError], tried: list[int]) -> Any:
    """`train_saes` where no more than `most` SAEs fit together; it fails in the middle of its epochs."""
    held: list[weakref.ref[Any]] = []

    def train_some(saes: Any, cells: Any, x: Any, orders: Any, config: Any, backend: str, on_epochs: Any) -> Any:
        assert not any(one() is not None for one in held), "the SAEs of a failed stack are still in memory"
        tried.append(len(saes))
        if len(saes) > most:
            held[:] = [weakref.ref(sae) for sae in saes]
            on_epochs(len(saes))
            raise error()
        held.clear()
        return train_saes(saes, cells, x, orders, config, backend, on_epochs)

    return train_some


@pytest.mark.parametrize("message", MESSAGES)
def test_a_stack_that_does_not_fit_the_memory_trains_by_halves_to_the_same_files(
    message: str, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(config_for(activations, tmp_path / "whole")) == ([], 9 * EPOCHS)
    tried: list[int] = []
    error = torch.OutOfMemoryError if "Tried" in message else RuntimeError
    monkeypatch.setattr(training, "train_saes", small_memory(2, lambda: error(message), tried))
    assert train(config_for(activations, tmp_path / "halves")) == ([], 9 * EPOCHS)
    assert tried == [9, 3, 1, 2, 6, 3, 1, 2, 3, 1, 2]
    assert_same_results(tmp_path / "halves", tmp_path / "whole")


def test_an_sae_that_does_not_fit_alone_fails_and_no_other(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room_for_8(saes: Any, *rest: Any) -> Any:
        if any(sae.k == 8 for sae in saes):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train_saes(saes, *rest)

    monkeypatch.setattr(training, "train_saes", no_room_for_8)
    config = config_for(activations, tmp_path / "results")
    failures, _ = train(config)
    assert sorted(failures) == sorted(f"{cell} latent_dim 16 k 8: CUDA out of memory." for cell in CELLS)
    assert all(list(found.by_k) == [2, 4] for found in Results(config.results).metrics_files())


def test_memory_that_runs_out_after_some_were_written_trains_only_the_others(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, tried = [], list[int]()
    evaluate = training.evaluate

    def full_at_the_third(*arguments: Any, **more: Any) -> Any:
        evaluated.append(1)
        if len(evaluated) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return evaluate(*arguments, **more)

    monkeypatch.setattr(training, "evaluate", full_at_the_third)
    monkeypatch.setattr(training, "train_saes", small_memory(9, RuntimeError, tried))
    assert train(config_for(activations, tmp_path / "results")) == ([], 9 * EPOCHS)
    assert tried[0] == 9
    assert sum(tried[1:]) == 7


def test_another_error_is_not_taken_for_a_lack_of_memory(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    message = "CUDA error: an illegal memory access was encountered"
    monkeypatch.setattr(training, "train_saes", small_memory(2, lambda: torch.AcceleratorError(message), tried))
    with pytest.raises(torch.AcceleratorError):
        train(config_for(activations, tmp_path / "results"))
    assert tried == [9]


def test_helpers_in_threads_change_no_weight_and_no_number(
    activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_all(name: str) -> dict[str, Any]:
        config = config_for(activations, tmp_path / name)
        cache = ActivationCache(activations)
        for job in plan_jobs(config, cache, CELLS, [16, 24], lambda _: 3).jobs:
            assert job.run(config, cache, torch.device("cpu"), "torch", lambda n: None) == []
        return {path.name: torch.load(path)["model_state_dict"] for path in config.results.glob("*.pt")}

    alone = run_all("alone")
    for module in (training, baselines):
        monkeypatch.setattr(module, "helpers", lambda device: ThreadPoolExecutor(4))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with_helpers = run_all("with helpers")
    assert_same_results(tmp_path / "with helpers", tmp_path / "alone")
    assert len(alone) == 18
    for name, weights in alone.items():
        assert all(torch.equal(weight, with_helpers[name][key]) for key, weight in weights.items())
    whole = [path.read_text() for path in sorted((tmp_path / "alone").glob("baselines_*"))]
    assert whole == [path.read_text() for path in sorted((tmp_path / "with helpers").glob("baselines_*"))]
