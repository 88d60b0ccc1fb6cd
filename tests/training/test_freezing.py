"""Epochs without the features that cannot be selected: the same selections and weights, by a bound that is needed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.results import correlated_rows
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.training import freezing as frozen_features
from thought_saes.training.freezing import LEVELS, WORTH, Frozen, LiveEpochs, bounds_hold, groups, level, steps_to_rest
from thought_saes.training.stack import Epoch, EpochRunner, Stack, make_stack, train_epoch
from thought_saes.training.start import epoch_orders, seeded_sae

LATENT_DIM, BATCH, LR = 64, 32, 3e-3


def train(run_epoch: EpochRunner, n_epochs: int = 40) -> tuple[Stack, list[Epoch]]:
    """A stack of four SAEs of two cells, and what each epoch was like."""
    x = torch.from_numpy(np.stack([correlated_rows(300, 20, seed=seed) for seed in (0, 1)]))
    cells = [0, 1, 1, 0]
    saes = [
        seeded_sae(20, SaeKey(Cell(1, cell), LATENT_DIM, k), 0) for k, cell in zip((2, 2, 4, 30), cells, strict=True)
    ]
    stack = make_stack(saes, cells, x.device)
    epochs = []
    orders = (epoch_orders(300, n_epochs, 0, Cell(1, cell)) for cell in (0, 1))
    for number, order in enumerate(zip(*orders, strict=True)):
        order_of_each = torch.from_numpy(np.stack(order))[stack.cell]
        epoch = run_epoch(stack, x, order_of_each, BATCH, LR, number * math.ceil(300 / BATCH))
        epochs.append(Epoch(*(tensor.clone() for tensor in epoch)))
    return stack, epochs


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(SAEs, features) of every call of `train_epoch` that is made from now on."""
    runs = []

    def counted(stack: Stack, *rest: object) -> Epoch:
        runs.append((len(stack.k_values), stack.weights[0].shape[2]))
        return train_epoch(stack, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(frozen_features, "train_epoch", counted)
    return runs


def the_same(found: list[Epoch], expected: list[Epoch]) -> bool:
    """Whether each row's k-th largest |pre_act| at every step, and all features that fired, are the same."""
    return all(
        torch.equal(ours.fired, plain.fired) and torch.allclose(ours.kth, plain.kth, rtol=1e-3, atol=1e-4)
        for ours, plain in zip(found, expected, strict=True)
    )


def close(stack: Stack, expected: Stack) -> bool:
    """Whether weights and both moments agree to rounding."""
    found, plain = ([*stack.weights, *stack.first_moments, *stack.second_moments] for stack in (stack, expected))
    return all(torch.allclose(a, b, rtol=0, atol=2e-6) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("margin", [0.7, 0.999])  # as it is, and so near that bounds are broken
def test_every_step_selects_the_same_and_weights_and_moments_come_out_the_same(
    margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, plain_epochs = train(train_epoch)
    monkeypatch.setattr(frozen_features, "MARGIN", margin)
    runs = count_runs(monkeypatch)
    broken = []

    def counted(kth: torch.Tensor, bounds: torch.Tensor) -> list[bool]:
        holds = bounds_hold(kth, bounds)
        broken.append(holds.count(False))
        return holds

    monkeypatch.setattr(frozen_features, "bounds_hold", counted)
    stack, epochs = train(LiveEpochs())
    assert the_same(epochs, plain_epochs)
    assert close(stack, expected)
    assert sum(n_sae for n_sae, width in runs if width < LATENT_DIM) > 20
    assert len({width for _, width in runs}) >= 3
    assert (sum(broken) > 5) == (margin > 0.9)


def test_without_the_bound_the_selection_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, plain_epochs = train(train_epoch)
    monkeypatch.setattr(frozen_features, "MARGIN", 0.999)
    monkeypatch.setattr(frozen_features, "bounds_hold", lambda kth, bounds: [True] * len(kth))
    stack, epochs = train(LiveEpochs())
    assert not the_same(epochs, plain_epochs)
    assert not close(stack, expected)


def test_moments_that_do_not_decay_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train(train_epoch)
    monkeypatch.setattr(frozen_features, "BETA2", 1)
    monkeypatch.setattr(frozen_features, "steps_to_rest", lambda lr: 200)
    assert not close(train(LiveEpochs())[0], expected)


@given(gradients=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), lr=st.floats(1e-5, 1))
def test_after_the_steps_to_rest_a_weight_moves_by_no_more_than_rounding(gradients: list[float], lr: float) -> None:
    m = v = 0.0
    moved = 0.0
    rest = len(gradients) + steps_to_rest(lr)
    for step in range(1, rest + 1000):
        gradient = gradients[step - 1] if step <= len(gradients) else 0.0
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        if step > rest:
            moved += lr * abs(m) / (1 - 0.9**step) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert moved <= frozen_features.REST


@given(
    latent_dim=st.integers(1, 100),
    n_live=st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=20),
)
def test_every_sae_is_in_one_group_with_room_for_its_live_features(latent_dim: int, n_live: list[int | None]) -> None:
    nothing = torch.empty(0)
    frozen = [
        Frozen(nothing, n, nothing) if n is not None and level(n, latent_dim) in range(1, WORTH + 1) else None
        for n in n_live
    ]
    found = list(groups(frozen, latent_dim))
    assert sorted(place for _, places in found for place in places) == list(range(len(frozen)))
    for width, places in found:
        assert places == sorted(places)
        if width == latent_dim:
            assert places == list(range(places[0], places[-1] + 1))
            continue
        assert width <= -(-latent_dim * WORTH // LEVELS)
        assert all(choice is None or choice.n_live <= width for choice in (frozen[place] for place in places))
        assert len(places) == 1 or 4 * width * len(places) <= len(frozen) * (latent_dim + LEVELS)
