"""The fused trainer against plain PyTorch, and its parts against numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers.plain_training import (
    BATCH,
    LR,
    difference,
    random_rows,
    random_sae,
    shuffles,
    train_plain,
    two_clusters,
)
from thought_saes.saes.sae import TopKSAE
from thought_saes.training.fused import features, freezer, kernels
from thought_saes.training.fused import step as fused_step
from thought_saes.training.fused.freezer import Freezer
from thought_saes.training.fused.optimizer import SAEArrays
from thought_saes.training.fused.step import StepTrainer
from thought_saes.training.fused.trainer import train_fused, train_sae


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Number of threads of a test: one, or what the test is parametrised with."""
    before = torch.get_num_threads()
    number = getattr(request, "param", 1)
    torch.set_num_threads(number)
    yield number
    torch.set_num_threads(before)


# The widths go through every size of register piece; k from one to all; 100 = 3 batches of 32 and one of 4.
@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize(
    ("input_dim", "latent_dim", "k"), [(7, 5, 1), (24, 40, 3), (24, 40, 40), (350, 20, 6), (630, 64, 16)]
)
def test_weights_and_losses_equal_those_of_the_plain_loop(
    threads: int, input_dim: int, latent_dim: int, k: int
) -> None:
    x, initial, orders = random_rows(100, input_dim), random_sae(input_dim, latent_dim), shuffles(100, 4)
    kept = SAEArrays(*(a.copy() for a in initial))
    losses: list[float] = []
    fused = train_fused(
        x, initial, k, orders, batch_size=BATCH, lr=LR, on_epoch=lambda epoch, loss: losses.append(loss)
    )
    plain, plain_losses = train_plain(x, initial, k, orders)
    # Where a gradient is nearly zero Adam divides rounding by rounding: a few elements stray more.
    assert difference(fused, plain) < 1e-4
    assert max(float(np.abs(a - b).mean()) for a, b in zip(fused, plain, strict=True)) < 1e-6
    assert difference(fused, initial) > 5e-3
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    assert difference(initial, kept) == 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dense_share", [0.0, 2.0])
def test_features_multiplied_densely_give_the_same_weights(dense_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_step, "DENSE_SHARE", dense_share)
    x, initial, orders = random_rows(100, 24), random_sae(24, 40), shuffles(100, 10)
    fused = train_fused(x, initial, 8, orders, batch_size=BATCH, lr=LR)
    assert difference(fused, train_plain(x, initial, 8, orders)[0]) < 2e-5


class Log:
    """What a run selected at every step, and how often it froze and thawed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.selected: list[NDArray[np.int64]] = []
        self.frozen = self.thawed = 0
        residual, thaw, freeze = StepTrainer._compute_residual, Freezer.thaw, Freezer.freeze_watched

        def log_selected(run: StepTrainer, order: NDArray[np.int64]) -> None:
            run.features.check()
            entries = run.buffers.entries
            positions = entries.positions[: entries.ends[len(order) - 1]].reshape(len(order), -1)
            self.selected.append(np.sort(run.features.ids[positions], axis=1))
            residual(run, order)

        def log_thawed(run: Freezer, *args: NDArray[Any]) -> NDArray[np.int64]:
            before = run.features.n_live
            rows = thaw(run, *args)
            self.thawed += run.features.n_live - before
            return rows

        def log_frozen(run: Freezer) -> None:
            before = run.features.n_live
            freeze(run)
            self.frozen += before - run.features.n_live

        monkeypatch.setattr(StepTrainer, "_compute_residual", log_selected)
        monkeypatch.setattr(Freezer, "thaw", log_thawed)
        monkeypatch.setattr(Freezer, "freeze_watched", log_frozen)


def train_two_clusters(monkeypatch: pytest.MonkeyPatch, freeze: bool, listed: int = 4) -> tuple[SAEArrays, Log]:
    x, orders = two_clusters()
    with monkeypatch.context() as patch:
        patch.setattr(freezer, "MARGIN", 0.999)  # so near to selection that many thaw again
        patch.setattr(features, "WATCH_AFTER", 4)
        patch.setattr(freezer, "LISTED", listed)
        patch.setattr(fused_step, "REORDER_EVERY", 2)
        log = Log(patch)
        weights = train_fused(x, random_sae(24, 48), 4, orders, batch_size=BATCH, lr=LR, freeze=freeze)
    return weights, log


@pytest.mark.parametrize("listed", [1, 32])  # what the lists have no room for, or hardly any row is in doubt
def test_freezing_selects_the_same_features_at_every_step_and_gives_the_same_weights(
    listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_anew = 0

    def count(pre_acts: NDArray[np.float32], *rest: object) -> None:
        nonlocal listed_anew
        listed_anew += len(pre_acts)
        list_anew(pre_acts, *rest)

    list_anew = kernels.list_anew
    monkeypatch.setattr(kernels, "list_anew", count)
    with_freezing, log = train_two_clusters(monkeypatch, freeze=True, listed=listed)
    without, plain_log = train_two_clusters(monkeypatch, freeze=False)
    assert log.frozen > 20
    assert log.thawed > 20
    assert (listed_anew > 20) == (listed == 1)
    assert plain_log.frozen == 0
    for selected, expected in zip(log.selected, plain_log.selected, strict=True):
        np.testing.assert_array_equal(selected, expected)
    assert difference(with_freezing, without) < 2e-5
    x, orders = two_clusters()
    assert difference(with_freezing, train_plain(x, random_sae(24, 48), 4, orders)[0]) < 1e-4


def test_without_the_bound_the_selection_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    without, plain_log = train_two_clusters(monkeypatch, freeze=False)
    monkeypatch.setattr(Freezer, "thaw", lambda run, *args: np.empty(0, np.int64))
    unbounded, log = train_two_clusters(monkeypatch, freeze=True)
    assert log.frozen > 5
    assert log.thawed == 0
    assert any((a != b).any() for a, b in zip(log.selected, plain_log.selected, strict=True))
    assert difference(unbounded, without) > 1e-2


@pytest.mark.parametrize("listed", [1, 32])
def test_the_bound_holds_for_every_later_weight_of_a_frozen_feature(
    listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, orders = two_clusters()
    freeze = Freezer.freeze_watched
    checked = 0

    def check(run: Freezer) -> None:
        nonlocal checked
        before = run.features.n_live
        freeze(run)
        new = slice(run.features.n_live, before)
        reaches, listed, rest, _ = run.lists
        bounds = np.stack(  # of each new feature on each row: what the row's list says of it, if anything, or of others
            [np.maximum(rest, np.where(listed == feature, reaches, 0).max(axis=1)) for feature in run.features.ids[new]]
            or [rest]
        )
        W, m, v = (a[new].astype(np.float64) for a in run.adam.enc)
        with_one = np.append(x, np.ones((len(x), 1)), axis=1).astype(np.float64)
        for step in range(run.adam.steps + 1, run.adam.steps + 200):
            m, v = 0.9 * m, 0.999 * v
            W -= LR / (1 - 0.9**step) * m / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            reach = np.abs(W[:, : with_one.shape[1]] @ with_one.T)
            assert (reach <= bounds).all()
            checked += reach.size

    monkeypatch.setattr(freezer, "MARGIN", 0.999)
    monkeypatch.setattr(features, "WATCH_AFTER", 4)
    monkeypatch.setattr(freezer, "LISTED", listed)
    monkeypatch.setattr(Freezer, "freeze_watched", check)
    train_fused(x, random_sae(24, 48), 4, orders, batch_size=BATCH, lr=LR)
    assert checked > 0


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
def test_a_run_repeats_bit_for_bit(threads: int) -> None:
    x, orders = two_clusters()
    first, second = (train_fused(x, random_sae(24, 48), 4, orders[:5], batch_size=BATCH, lr=LR) for _ in range(2))
    assert difference(first, second) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_value_that_is_not_finite_makes_the_loss_so(value: float, freeze: bool) -> None:
    x = random_rows(100, 24)
    x[70, 3] = value
    losses: list[float] = []
    train_fused(
        x, random_sae(24, 40), 3, shuffles(100, 2), batch_size=BATCH, lr=LR, freeze=freeze,
        on_epoch=lambda epoch, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 2
    assert not np.isfinite(losses).any()


def all_live(ids: NDArray[np.int64]) -> kernels.Features:
    """Features at these positions, none dense or frozen."""
    n = len(ids)
    return kernels.Features(ids, np.argsort(ids), np.full(n, np.inf, np.float32), np.zeros(n, np.int64), 0, n)


def room_for_entries(rows: int, k: int) -> kernels.Entries:
    ends = (np.zeros(rows, np.int64) for _ in range(3))
    return kernels.Entries(np.zeros(rows * k, np.int64), np.zeros(rows * k, np.float32), *ends)


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-40, 3e38, 7.0]), min_size=1, max_size=40),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_selection_takes_the_largest_magnitudes_and_the_lowest_ids_of_a_tie(
    values: list[float], data: st.DataObject
) -> None:
    n = len(values)
    k = data.draw(st.integers(1, n))
    ids = np.array(data.draw(st.permutations(range(n))), np.int64)
    pre_acts = np.array([values], np.float32)
    entries, kth = room_for_entries(1, k), np.zeros(1, np.float32)
    kernels.select(pre_acts, all_live(ids), entries, kth, k, True, np.zeros(1, np.int64))
    expected = np.lexsort((ids, -np.abs(pre_acts[0])))[:k]
    assert (entries.starts[0], entries.ends[0]) == (0, k)
    np.testing.assert_array_equal(entries.positions, np.sort(expected))
    np.testing.assert_array_equal(entries.acts, pre_acts[0, entries.positions])
    assert kth[0] == np.abs(pre_acts[0, expected[-1]])


def test_replayed_steps_are_those_of_adam_without_gradient() -> None:
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((2, 3, 16)).astype(np.float32) ** 2
    m = rng.standard_normal((3, 16)).astype(np.float32)
    w[0, 0], m[0, 0], v[0, 0] = 1e-6, 1e-20, 0  # the tiny, and a second moment that is lost
    t = np.arange(400)
    size, scale = np.append(0, LR / (1 - 0.9 ** t[1:])), np.append(0, 1 / np.sqrt(1 - 0.999 ** t[1:]))
    flat = kernels.Weights(*(a.copy() for a in (w, m, v))).flat()
    since = np.array([10, 300, 310])
    steps = kernels.Steps(310, size, scale, 0.9, 0.999, np.float32(1e-8), 200)
    kernels.replay(np.array([0, 2]), since, flat, steps, 16, 0, 2)
    w64, m64, v64 = w.astype(np.float64), m.astype(np.float64), v.astype(np.float64)
    for step in range(11, 311):
        m64[0], v64[0] = 0.9 * m64[0], 0.999 * v64[0]
        w64[0] -= size[step] * m64[0] / (np.sqrt(v64[0]) * scale[step] + 1e-8)
    for array, expected in zip(flat, (w64, m64, v64), strict=True):
        np.testing.assert_allclose(array.reshape(3, 16), expected, rtol=2e-5, atol=1e-30)
    np.testing.assert_array_equal(since, [310, 300, 310])


def test_an_sae_is_trained_in_place_and_its_weights_are_held_once() -> None:
    x, orders = torch.from_numpy(random_rows(100, 24)), shuffles(100, 3)
    sae = TopKSAE(24, 40, 3)
    parameters = (sae.encoder.weight, sae.encoder.bias, sae.decoder.weight.T, sae.decoder.bias)
    initial = SAEArrays(*(np.ascontiguousarray(parameter.detach().numpy()) for parameter in parameters))
    initial = SAEArrays(*(array.copy() for array in initial))
    held = []
    trained = train_sae(
        sae, x, orders, BATCH, LR, on_epochs=lambda n: held.append(sum(p.numel() for p in sae.parameters()))
    )
    assert trained.finite
    assert held == [0, 0, 0]
    expected = train_fused(x.numpy(), initial, 3, orders, batch_size=BATCH, lr=LR)
    parameters = (sae.encoder.weight, sae.encoder.bias, sae.decoder.weight.T, sae.decoder.bias)
    assert difference(SAEArrays(*(parameter.detach().numpy() for parameter in parameters)), expected) == 0
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in sae.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peaks of Linux")
def test_beyond_the_data_training_takes_little_more_than_weights_and_moments() -> None:
    """After a small training that loads all code; 48 MiB are weights and moments.

    In a fork of a process that imports no pytest: the peak of one that was started anew begins with its parent's.
    """
    script = """
import torch
from benchmarks.cases import Case, Job
from benchmarks.methods import in_fork, measure_job
from thought_saes.results.recipe import PUBLISHED
from thought_saes.training.config import TrainConfig
from thought_saes.training.prepared import Prepared
torch.set_num_threads(1)
x = torch.rand(1024, 1024) + torch.rand(1024)
rows, job = Prepared(x, PUBLISHED), Job("ours", Case(1024, 1024, 2048, 5))
print(in_fork(measure_job, job, rows, TrainConfig(epochs=15), "fused", 1).peak_mib)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 47 < float(ended.stdout) < 75  # one more copy of the weights is 16


def test_trying_it_out_compiles_everything_that_training_calls() -> None:
    script = """
import re
from pathlib import Path
from thought_saes.training.fused import kernels, trainer
trainer.try_out()
files = [path.read_text() for path in Path(trainer.__file__).parent.glob("*.py") if path.stem != "kernels"]
called = {name for text in files for name in re.findall(r"kernels\\.([a-z]\\w+)", text)}
assert len(called) > 15, called
print(sorted(name for name in called if not getattr(kernels, name).signatures))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_data_that_would_have_to_be_copied_is_refused() -> None:
    x, initial = random_rows(100, 24), random_sae(24, 40)
    for wrong in (x.astype(np.float64), np.asfortranarray(x), x[:, :20]):
        with pytest.raises(ValueError, match="x"):
            train_fused(wrong, initial, 3, shuffles(100, 1), batch_size=BATCH, lr=LR)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no permutation of 100 rows"):
        train_fused(x, initial, 3, [np.zeros(100, np.int64)], batch_size=BATCH, lr=LR)
    with pytest.raises(ValueError, match="k = 41"):
        train_fused(x, initial, 41, shuffles(100, 1), batch_size=BATCH, lr=LR)
