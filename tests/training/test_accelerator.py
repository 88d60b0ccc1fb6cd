"""A whole training, its measuring and a rollout on an accelerator that is computed on the CPU and watched."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.helpers.accelerator import Accelerator, DeviceMismatch, OnAccelerator, accelerator_device, counting
from tests.helpers.codi_checkpoints import CodiFiles, write_codi
from tests.helpers.results import assert_same_results, correlated_rows
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.helpers import InTurn
from thought_saes.models.reasoner import LatentReasoner, Request
from thought_saes.models.source import ModelSource
from thought_saes.results.recipe import PUBLISHED
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.saes.variants.abstopk import AbsTopK
from thought_saes.training import baselines, freezing, stack, steps
from thought_saes.training import run as training
from thought_saes.training.config import TrainConfig
from thought_saes.training.plan import plan_jobs
from thought_saes.training.stack import bytes_of_a_cell, make_stack, trained_tensors

K_VALUES, LATENT_DIM, BATCH, ROWS, INPUT_DIM = (2, 4, 8), 64, 32, 400, 20
CELLS = [Cell(0, 0), Cell(1, 1)]
STEPS = -(-round(0.8 * ROWS) // BATCH)  # of an epoch
MOST_LAUNCHES = 60  # of a step
MOST_LAUNCHES_OF_MORE_TERMS = 110  # of one whose loss has more
MOST_READS = 5  # of an SAE's evaluation


class Watched(NamedTuple):
    """What was seen of a training."""

    epochs: list[dict[str, int]]  # of each call of train_epoch
    evaluations: list[dict[str, int]]
    peak_bytes: int
    estimate: int  # what the plan would say

    def check(self, most_launches: int = MOST_LAUNCHES) -> None:
        """Raises AssertionError unless nothing waits within a step, and all else keeps within its bounds."""
        assert all(epoch["reads"] == 0 for epoch in self.epochs), "a step waits for the device"
        assert all(epoch["uploads"] <= 1 for epoch in self.epochs), "a step copies to the device"
        assert all(epoch["launches"] <= most_launches * STEPS for epoch in self.epochs), "a step has many launches"
        assert all(evaluation["reads"] <= MOST_READS for evaluation in self.evaluations), "an evaluation waits often"
        assert self.peak_bytes <= self.estimate, "the estimate is too small"


@pytest.fixture(scope="module")
def device() -> torch.device:
    return accelerator_device()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What watches the device sees the thread that it was entered in."""
    for module in (training, baselines):
        monkeypatch.setattr(module, "helpers", lambda device: InTurn())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    for cell in CELLS:
        array = correlated_rows(ROWS, INPUT_DIM, seed=cell.layer)
        np.save(folder / f"pos{cell.position}_layer{cell.layer}.npy", array)
    return folder


def config_of(rows: Path, results: Path, **settings: Any) -> TrainConfig:
    results.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {"k_values": K_VALUES, "batch_size": BATCH, "lr": 3e-3, "epochs": 3}
    return TrainConfig(activations=rows, results=results, **defaults | settings)


def run_jobs(config: TrainConfig, device: torch.device) -> None:
    """Baselines, and both cells' SAEs as one stack."""
    cache = ActivationCache(config.activations)
    for job in plan_jobs(config, cache, CELLS, [LATENT_DIM], lambda _: len(CELLS)).jobs:
        assert job.run(config, cache, device, "torch", lambda n: None) == []


def watch(config: TrainConfig, device: torch.device) -> Watched:
    with (
        Accelerator() as accelerator,
        counting(accelerator, freezing, "train_epoch") as live,
        counting(accelerator, training, "train_epoch") as plain,
        counting(accelerator, training, "evaluate") as evaluations,
    ):
        run_jobs(config, device)
    of_a_cell = bytes_of_a_cell(len(K_VALUES), ROWS, INPUT_DIM, LATENT_DIM, BATCH, config.settings)
    return Watched(live + plain, evaluations, accelerator.peak_bytes, len(CELLS) * of_a_cell)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_on_an_accelerator_writes_the_files_of_one_on_the_cpu_and_never_waits_within_a_step(
    variant: str, rows: Path, device: torch.device, tmp_path: Path
) -> None:
    recipe = "improved" if variant in ("batchtopk", "jumprelu") else "published"  # whose epochs leave nothing out
    watched = watch(config_of(rows, tmp_path / "there", variant=variant, recipe=recipe), device)
    assert len(watched.epochs) == 3
    assert len(watched.evaluations) == len(CELLS) * len(K_VALUES)
    assert variant != "abstopk" or {evaluation["reads"] for evaluation in watched.evaluations} == {1}
    watched.check(MOST_LAUNCHES if variant.endswith("topk") else MOST_LAUNCHES_OF_MORE_TERMS)
    run_jobs(config_of(rows, tmp_path / "here", variant=variant, recipe=recipe), torch.device("cpu"))
    for path in tmp_path.glob("*/*.json"):
        path.write_text(path.read_text().replace(f'"{device}"', '"cpu"'))
    assert_same_results(tmp_path / "there", tmp_path / "here")


def test_a_step_by_hand_has_fewer_launches_and_takes_less_memory_than_one_by_autograd(
    rows: Path, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = watch(config_of(rows, tmp_path / "ours"), device)
    monkeypatch.setattr(steps, "one_reconstruction", lambda variant, recipe: False)
    theirs = watch(config_of(rows, tmp_path / "theirs"), device)
    launches, by_autograd = (min(epoch["launches"] for epoch in one.epochs) / STEPS for one in (ours, theirs))
    assert launches <= by_autograd - 5
    assert ours.peak_bytes < theirs.peak_bytes


def test_every_setting_of_a_recipe_keeps_within_the_same_bounds(
    rows: Path, device: torch.device, tmp_path: Path
) -> None:
    settings = {"aux_alpha": 0.1, "dead_epochs": 1, "unit_decoder": True, "weight_decay": 0.01, "whiten": 0.5}
    config = config_of(rows, tmp_path, recipe="improved", variant="topk", **settings)
    assert not {"aux_alpha", "unit_decoder", "weight_decay", "whiten"} - set(PUBLISHED.differences(config.settings))
    watch(config, device).check(MOST_LAUNCHES_OF_MORE_TERMS)


@pytest.mark.parametrize(("variant", "recipe"), [("abstopk", "published"), ("topk", "improved")])
def test_epochs_that_leave_features_out_keep_within_the_same_bounds(
    variant: str, recipe: str, rows: Path, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "steps_to_rest", lambda lr: 2 * STEPS)
    monkeypatch.setattr(freezing, "MARGIN", 0.95)
    watched = watch(config_of(rows, tmp_path, variant=variant, recipe=recipe, epochs=8), device)
    assert len(watched.epochs) > 8  # some were split, or repeated
    watched.check()


def test_a_value_that_is_read_within_a_step_is_noticed(
    rows: Path, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = AbsTopK.select

    def and_read(self: AbsTopK, pre_acts: torch.Tensor, k_values: Any) -> Any:
        assert pre_acts.sum().item() != 0
        return select(self, pre_acts, k_values)

    monkeypatch.setattr(AbsTopK, "select", and_read)
    with pytest.raises(AssertionError, match="a step waits for the device"):
        watch(config_of(rows, tmp_path), device).check()


def test_a_tensor_that_is_left_on_the_cpu_is_noticed(
    rows: Path, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = make_stack

    def without_one(*arguments: Any) -> Any:
        made = begin(*arguments)
        return made._replace(second_moments=[made.second_moments[0].cpu(), *made.second_moments[1:]])

    monkeypatch.setattr(stack, "make_stack", without_one)
    with pytest.raises(DeviceMismatch):
        watch(config_of(rows, tmp_path), device)


def test_an_estimate_that_is_too_small_is_noticed(rows: Path, device: torch.device, tmp_path: Path) -> None:
    watched = watch(config_of(rows, tmp_path), device)
    watched.check()
    assert watched.peak_bytes > 0.75 * watched.estimate  # the estimate says something
    with pytest.raises(AssertionError, match="the estimate is too small"):
        watched._replace(estimate=watched.estimate * 3 // 4).check()


def test_what_the_accelerator_counts_is_what_a_gpu_would_wait_for(device: torch.device) -> None:
    with Accelerator() as accelerator:
        x = torch.arange(6.0).to(device)
        assert (accelerator.uploads, accelerator.reads) == (1, 0)
        doubled = x * 2
        assert isinstance(doubled, OnAccelerator)
        assert doubled.device == device
        assert accelerator.reads == 0
        assert float(doubled[5]) == 10
        assert doubled.tolist() == [0, 2, 4, 6, 8, 10]
        assert accelerator.reads == 2
        x[x > 2]
        assert accelerator.reads == 3
        launches = accelerator.launches
        x.view(2, 3).T.add_(1)  # two views and one launch
        assert accelerator.launches == launches + 1
        assert x.tolist() == [1, 2, 3, 4, 5, 6]
        with pytest.raises(DeviceMismatch):
            x + torch.ones(6)
        before = accelerator.bytes
        big = torch.zeros(1000, device=device)
        assert accelerator.bytes == before + 4096
        assert accelerator.peak_bytes >= before + 4096
        del big
        assert accelerator.bytes == before


def test_the_state_that_adam_is_given_is_what_a_fresh_fused_adam_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[list[dict[str, Any]]] = []
    step = torch.optim.Adam.step

    def look(self: torch.optim.Adam, *arguments: Any) -> Any:
        states.append([dict(self.state[weight]) for group in self.param_groups for weight in group["params"]])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", look)
    saes = [SparseAutoencoder(INPUT_DIM, LATENT_DIM, k, "jumprelu") for k in (2, 4)]
    made = make_stack(saes, [0, 0], torch.device("cpu"))
    order = torch.arange(BATCH).expand(2, -1)
    stack.train_epoch(made, torch.randn(1, BATCH, INPUT_DIM), order, BATCH, 1e-3, 0)
    [ours] = states
    weights = [torch.nn.Parameter(weight.clone()) for weight in made.weights]
    fresh = torch.optim.Adam(weights, fused=True)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    fresh.step()
    assert len(ours) == len(weights) == len(trained_tensors(saes[0]))
    for state, weight in zip(ours, weights, strict=True):
        theirs = fresh.state[weight]
        assert state.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert (state[name].dtype, state[name].device, state[name].shape) == (
                tensor.dtype,
                tensor.device,
                tensor.shape,
            )


@pytest.fixture(scope="module")
def codi(tmp_path_factory: pytest.TempPathFactory) -> CodiFiles:
    return write_codi(tmp_path_factory.mktemp("codi"), "llama")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rollout_on_an_accelerator_gives_the_states_and_answers_of_the_cpu(
    dtype: str, codi: CodiFiles, device: torch.device
) -> None:
    source = ModelSource(str(codi.checkpoint), str(codi.base), 32.0, dtype, None, "cpu", threads=1)
    reasoner = source.load()
    batch = [reasoner.tokenize(question) for question in ("how many 3 apples .", "how many ?")]
    request = Request((0, 2), (0, 1, 3), 4)
    expected = reasoner.run_batch(batch, request)
    with Accelerator() as accelerator:
        there = reasoner.to(device)
        assert isinstance(there, LatentReasoner)
        found = there.run_batch(batch, request)
        assert accelerator.launches > 100
    np.testing.assert_allclose(found.states, expected.states, rtol=1e-5, atol=1e-5)
    assert found.answers is not None
    assert expected.answers is not None
    for ours, theirs in zip(found.answers, expected.answers, strict=True):
        assert ours.text == theirs.text
        for number, expected_number in zip(ours[1:], theirs[1:], strict=True):
            assert number == (expected_number and pytest.approx(expected_number, rel=1e-4))
