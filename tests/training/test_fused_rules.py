"""Every selection rule of the compiled trainer against plain PyTorch, and learning rates that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.textbook import textbook_latents
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
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.adam import AdamSteps, linear_decay
from thought_saes.training.config import TrainConfig
from thought_saes.training.fused import features as fused_features
from thought_saes.training.fused import freezer as fused_freezer
from thought_saes.training.fused import kernels
from thought_saes.training.fused import step as fused_step
from thought_saes.training.fused.features import FeatureStates
from thought_saes.training.fused.freezer import Freezer
from thought_saes.training.fused.optimizer import SAEArrays
from thought_saes.training.fused.selection import RULES as SELECTION_RULES
from thought_saes.training.fused.selection import Selection
from thought_saes.training.fused.step import StepTrainer
from thought_saes.training.fused.team import Team
from thought_saes.training.fused.trainer import train_fused
from thought_saes.training.run import train_saes
from thought_saes.training.start import seeded_sae

TOPK, BATCHTOPK = Selection("topk", 4), Selection("batchtopk", 4)
MATRYOSHKA = Selection("matryoshka", 4, (3, 6, 12, 24, 48))
RULES = pytest.mark.parametrize("selection", [TOPK, BATCHTOPK, MATRYOSHKA], ids=lambda rule: rule.rule)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


def selected_latents(
    pre_acts: NDArray[np.float32], selection: Selection, before: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], Any]:
    """The dense latents of the compiled selection of a batch, and what each row had to reach; after another batch."""
    rows, latent_dim = pre_acts.shape
    initial = SAEArrays(*(np.zeros(shape, np.float32) for shape in ((latent_dim, 3), latent_dim, (latent_dim, 3), 3)))
    with Team() as team:
        trainer = StepTrainer(np.ones((rows, 3), np.float32), initial, selection, rows, LR, freeze=False, team=team)
        buffers = trainer.buffers
        if before is not None:
            buffers.pre_acts[:, :latent_dim] = before
            trainer._select_of_batch(rows)
        buffers.pre_acts[:, :latent_dim] = pre_acts
        if selection.of_batch:
            trainer._select_of_batch(rows)
        else:
            trainer._select(np.arange(rows))
    latents, entries = np.zeros_like(pre_acts), buffers.entries
    for row in range(rows):
        mine = slice(entries.starts[row], entries.ends[row])
        assert (np.diff(entries.positions[mine]) > 0).all()
        assert (entries.acts[mine] > 0).all()
        latents[row, entries.positions[mine]] = entries.acts[mine]
    return latents, buffers.kth


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -7.0, 3e38, 1e-3, 7.0]), min_size=6, max_size=6),
        min_size=1,
        max_size=5,
    ),
    k=st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_a_rule_keeps_the_values_that_plain_pytorch_keeps(rule: str, rows: list[list[float]], k: int) -> None:
    """Which of equal values are kept is left open by PyTorch; ours keep the lowest row, then the lowest feature."""
    pre_acts = np.array(rows, np.float32)
    latents, kth = selected_latents(pre_acts, Selection(rule, k))
    expected = textbook_latents(torch.from_numpy(pre_acts), Selection(rule, k)).numpy()
    axis = 1 if rule == "topk" else None
    np.testing.assert_array_equal(np.sort(latents, axis=axis), np.sort(expected, axis=axis))
    ranks = np.lexsort((np.arange(pre_acts.size), -np.maximum(pre_acts, 0).ravel())) if axis is None else None
    if ranks is not None:
        kept = np.zeros(pre_acts.size, bool)
        kept[ranks[: k * len(rows)]] = True
        np.testing.assert_array_equal(latents > 0, (kept & (pre_acts.ravel() > 0)).reshape(pre_acts.shape))
    for row in range(len(rows)):
        kept_values = latents[row][latents[row] > 0] if axis else latents[latents > 0]
        full = len(kept_values) == (k if axis else k * len(rows))
        assert kth[row] == (kept_values.min() if full else kernels.TINY)


def test_by_hand_topk_fills_no_row_with_negatives_and_batchtopk_shares_among_rows() -> None:
    pre_acts = np.array([[5, 4, 3, -9], [-1, 1, -2, -3]], np.float32)
    by_row, _ = selected_latents(pre_acts, Selection("topk", 2))
    np.testing.assert_array_equal(by_row, [[5, 4, 0, 0], [0, 1, 0, 0]])
    by_batch, kth = selected_latents(pre_acts, Selection("batchtopk", 2))
    np.testing.assert_array_equal(by_batch, [[5, 4, 3, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(kth, [1, 1])
    fewer, kth = selected_latents(pre_acts, Selection("batchtopk", 1))
    np.testing.assert_array_equal(fewer, [[5, 4, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(kth, [4, 4])


@pytest.mark.parametrize("one_thread", [1, 2], indirect=True)
@pytest.mark.parametrize(("input_dim", "latent_dim", "k"), [(7, 5, 1), (24, 40, 3), (350, 20, 6), (630, 64, 16)])
@RULES
def test_weights_and_losses_equal_those_of_the_plain_loop(
    selection: Selection, input_dim: int, latent_dim: int, k: int
) -> None:
    prefixes = tuple(sorted({max(1, latent_dim // n) for n in (16, 8, 4, 2, 1)})) if selection.prefixes else ()
    selection = selection._replace(k=k, prefixes=prefixes)
    x, initial, orders = random_rows(100, input_dim), random_sae(input_dim, latent_dim), shuffles(100, 3)
    losses: list[float] = []
    fused = train_fused(
        x, initial, selection, orders, batch_size=BATCH, lr=LR, on_epoch=lambda epoch, loss: losses.append(loss)
    )
    plain, plain_losses = train_plain(x, initial, selection, orders)
    assert difference(fused, plain) < 1e-4
    assert max(float(np.abs(a - b).mean()) for a, b in zip(fused, plain, strict=True)) < 1e-6
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    assert difference(fused, train_plain(x, initial, k, orders)[0]) > 1e-3, "AbsTopK is something else"


@pytest.mark.parametrize("selection", [TOPK, BATCHTOPK], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("dense_share", [0.0, 2.0])
def test_features_multiplied_densely_give_the_same_weights(
    selection: Selection, dense_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_step, "DENSE_SHARE", dense_share)
    x, initial, orders = random_rows(100, 24), random_sae(24, 40), shuffles(100, 10)
    fused = train_fused(x, initial, selection, orders, batch_size=BATCH, lr=LR)
    assert difference(fused, train_plain(x, initial, selection, orders)[0]) < 2e-5


def train_two_clusters(
    selection: Selection, monkeypatch: pytest.MonkeyPatch, freeze: bool, bound: bool = True
) -> tuple[SAEArrays, list[NDArray[np.int64]], list[int]]:
    """Weights; the chosen (row, feature) of every step, sorted; how many features were frozen and thawed."""
    x, orders = two_clusters()
    selected: list[NDArray[np.int64]] = []
    moved = [0, 0]
    residual, thaw, freeze_watched = StepTrainer._compute_residual, Freezer.thaw, Freezer.freeze_watched

    def log(run: StepTrainer, order: NDArray[np.int64]) -> None:
        run.features.check()
        entries, n = run.buffers.entries, len(order)
        rows = np.repeat(np.arange(n), (entries.ends - entries.starts)[:n])
        positions = np.concatenate([entries.positions[entries.starts[r] : entries.ends[r]] for r in range(n)])
        selected.append(np.sort(rows * 1000 + run.features.ids[positions]))
        residual(run, order)

    def log_frozen(run: Freezer) -> None:
        before = run.features.n_live
        freeze_watched(run)
        moved[0] += before - run.features.n_live

    def log_thawed(run: Freezer, *args: NDArray[Any]) -> NDArray[np.int64]:
        before = run.features.n_live
        rows = thaw(run, *args) if bound else np.empty(0, np.int64)
        moved[1] += run.features.n_live - before
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(fused_freezer, "MARGIN", 0.999)  # so near to selection that many thaw again
        patch.setattr(fused_freezer, "LISTED", 4)
        patch.setattr(fused_features, "WATCH_AFTER", 4)
        patch.setattr(fused_step, "REORDER_EVERY", 2)
        patch.setattr(StepTrainer, "_compute_residual", log)
        patch.setattr(Freezer, "thaw", log_thawed)
        patch.setattr(Freezer, "freeze_watched", log_frozen)
        weights = train_fused(x, random_sae(24, 48), selection, orders, batch_size=BATCH, lr=LR, freeze=freeze)
    return weights, selected, moved


@RULES
def test_freezing_selects_the_same_at_every_step_and_without_the_bound_it_would_not(
    selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, selected, (n_frozen, n_thawed) = train_two_clusters(selection, monkeypatch, freeze=True)
    without, expected, _ = train_two_clusters(selection, monkeypatch, freeze=False)
    assert n_frozen > 10
    assert n_thawed > 10
    for ours, plain in zip(selected, expected, strict=True):
        np.testing.assert_array_equal(ours, plain)
    assert difference(frozen, without) < 2e-5
    _, unbounded, _ = train_two_clusters(selection, monkeypatch, freeze=True, bound=False)
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(unbounded, expected, strict=True))


@RULES
def test_a_value_that_is_not_finite_makes_the_loss_so(selection: Selection) -> None:
    initial, x = random_sae(24, 48), random_rows(100, 24)
    initial.W_enc[7, 3] = np.nan
    losses: list[float] = []
    orders = shuffles(100, 2)
    train_fused(
        x, initial, selection, orders, batch_size=BATCH, lr=LR, on_epoch=lambda epoch, loss: losses.append(loss)
    )
    assert len(losses) == 2
    assert not np.isfinite(losses).any()


@pytest.mark.parametrize("factor", [1e-3, 0.9, 1.1, 1e3])
def test_a_batch_whose_threshold_is_far_from_the_last_ones_is_selected_alike(factor: float) -> None:
    pre_acts = random_rows(20, 70)
    expected = [
        textbook_latents(torch.from_numpy(rows), BATCHTOPK).numpy()
        for rows in (pre_acts, pre_acts * np.float32(factor))
    ]
    ours = selected_latents(pre_acts * np.float32(factor), BATCHTOPK, before=pre_acts)[0]
    np.testing.assert_array_equal(ours, expected[1].astype(np.float32))
    assert (ours > 0).sum() == (expected[0] > 0).sum() == 80


def test_one_matryoshka_group_is_batchtopk() -> None:
    x, initial, orders = random_rows(100, 24), random_sae(24, 48), shuffles(100, 6)
    whole = train_fused(x, initial, MATRYOSHKA._replace(prefixes=(48,)), orders, batch_size=BATCH, lr=LR)
    assert difference(whole, train_fused(x, initial, BATCHTOPK, orders, batch_size=BATCH, lr=LR)) < 1e-5
    nested = train_fused(x, initial, MATRYOSHKA, orders, batch_size=BATCH, lr=LR)
    assert difference(whole, nested) > 1e-3


@pytest.mark.parametrize("selection", [Selection("abstopk", 4), BATCHTOPK], ids=lambda rule: rule.rule)
def test_a_learning_rate_that_decays_gives_the_weights_of_the_plain_loop(selection: Selection) -> None:
    x, orders = two_clusters()
    initial, steps = random_sae(24, 48), 13 * len(orders)
    rates = linear_decay(LR, steps)
    assert (rates[0], rates[-1]) == (LR, pytest.approx(LR / steps))
    fused = train_fused(x, initial, selection, orders, batch_size=BATCH, lr=rates)
    assert difference(fused, train_plain(x, initial, selection, orders, rates)[0]) < 1e-4
    assert difference(fused, train_fused(x, initial, selection, orders, batch_size=BATCH, lr=LR)) > 1e-3


@given(st.floats(1e-5, 1e-1), st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_a_path_is_as_long_as_the_steps_without_gradient_to_come(lr: float, steps: int) -> None:
    rates = linear_decay(lr, steps)
    table = AdamSteps.up_to(steps, rates)
    m, v, way = 1.0, 1.0, 0.0  # |m| / sqrt(v) is 1 after step 1
    for t in range(2, 390):
        m, v = 0.9 * m, 0.999 * v
        rate = rates[min(t, steps) - 1]
        way += rate / (1 - 0.9**t) * m / (v**0.5 / (1 - 0.999**t) ** 0.5)
    assert table.paths[1] == pytest.approx(way, rel=1e-6)
    constant = AdamSteps.up_to(steps, lr)
    np.testing.assert_array_equal(constant.sizes, AdamSteps.up_to(steps, np.full(steps, lr)).sizes)


@pytest.mark.parametrize(
    ("selection", "fault"),
    [
        (Selection("topk", 49), "k = 49"),
        (Selection("gated", 4), "no rule gated"),
        (Selection("matryoshka", 4), "prefixes"),
        (Selection("topk", 4, (24, 48)), "prefixes"),
        (Selection("matryoshka", 4, (24, 12, 48)), "do not ascend"),
        (Selection("matryoshka", 4, (12, 24)), "all 48 features"),
    ],
)
def test_a_selection_that_no_sae_of_this_size_has_is_refused(selection: Selection, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        train_fused(random_rows(40, 24), random_sae(24, 48), selection, shuffles(40, 1), batch_size=BATCH, lr=LR)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_features_states_hold_together_whatever_moves(data: st.DataObject) -> None:
    n = 12
    weights = np.arange(n, dtype=np.float32)[:, None].repeat(2, axis=1)
    states = FeatureStates(n, (3, 6), (weights,))
    for step in range(1, 8):
        sparse = np.arange(states.n_dense, states.n_live)
        move = data.draw(st.sampled_from(["dense", "freeze", "thaw"]))
        if move == "dense":
            often = np.array(data.draw(st.lists(st.booleans(), min_size=states.n_live, max_size=states.n_live)), bool)
            states.slack[: states.n_live][often] = np.inf  # what fires is not watched
            states.make_dense(often)
        elif move == "freeze":
            chosen = np.array([bool(data.draw(st.booleans())) for _ in sparse], bool)
            states.slack[sparse[chosen]] = 0.5
            states.freeze(states.watched(), step)
        else:
            states.thaw(np.arange(states.n_live, n)[: data.draw(st.integers(0, 3))], step)
        states.check()
        np.testing.assert_array_equal(weights[:, 0], states.ids)
    assume(states.n_live)
    states.slack[0], states.n_dense = 0.5, max(1, states.n_dense)
    with pytest.raises(AssertionError):
        states.check()


@pytest.mark.parametrize("variant", [rule for rule in SELECTION_RULES if rule in VARIANTS])
def test_the_compiled_trainer_and_the_stack_give_the_same_sae(variant: str) -> None:
    x = torch.from_numpy(random_rows(100, 24))
    trained = []
    for backend in ("fused", "torch"):
        config = TrainConfig(variant=variant, epochs=3, batch_size=BATCH, backend=backend)
        sae = seeded_sae(24, SaeKey(Cell(0, 0), 48, 4), 0, variant)
        before = sae.encoder.weight.detach().clone()
        train_saes([sae], [0], x[None], lambda _: iter(shuffles(100, 3)), config, backend, lambda n: None)
        assert (sae.encoder.weight - before).abs().max() > 5e-3
        trained.append(sae)
    for ours, plain in zip(*(sae.parameters() for sae in trained), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
        assert (ours - plain).abs().mean() < 1e-6
