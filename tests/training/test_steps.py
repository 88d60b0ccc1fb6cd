"""A step by hand is the step by autograd, to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.results import correlated_rows
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import Recipe
from thought_saes.saes.variants import VARIANTS
from thought_saes.training import steps
from thought_saes.training.adam import linear_decay
from thought_saes.training.stack import Stack, make_stack, train_epoch
from thought_saes.training.start import seeded_sae

X = torch.from_numpy(np.stack([correlated_rows(150, 20, seed=seed) for seed in (0, 1)]))
K_VALUES, CELLS = (2, 2, 5), (0, 1, 1)
BY_HAND = ("abstopk", "topk", "batchtopk")


def stack_of(variant: str, recipe: Recipe) -> Stack:
    keys = [SaeKey(Cell(0, cell), 48, k) for k, cell in zip(K_VALUES, CELLS, strict=True)]
    saes = [seeded_sae(20, key, seed=3, variant=variant) for key in keys]
    return make_stack(saes, CELLS, torch.device("cpu"), recipe)


def trained(variant: str, recipe: Recipe) -> tuple[list[Tensor], Any]:
    """Weights and moments after three epochs whose last batch is short, and the last epoch."""
    stack = stack_of(variant, recipe)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(3):
        order = torch.stack([torch.randperm(150, generator=generator) for _ in K_VALUES])
        last = train_epoch(stack, X, order, 64, linear_decay(1e-2, 9), 3 * epoch)
    return [tensor for tensors in stack.tensors for tensor in tensors], last


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("variant", BY_HAND)
def test_by_hand_is_by_autograd_to_the_last_bit(
    variant: str, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(variant=variant, weight_decay=weight_decay)
    taken: list[Any] = []
    for way in (steps.StepByHand, steps.StepByAutograd):
        monkeypatch.setattr(way, "__init__", noting(way.__init__, taken, way))
    ours, epoch = trained(variant, recipe)
    monkeypatch.setattr(steps, "one_reconstruction", lambda variant, recipe: False)
    theirs, expected = trained(variant, recipe)
    assert taken == [steps.StepByHand] * 3 + [steps.StepByAutograd] * 3
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert torch.equal(epoch.kth, expected.kth)
    assert torch.equal(epoch.fired, expected.fired)
    assert epoch.finite.all()


def noting(begin: Any, taken: list[Any], way: Any) -> Any:
    def and_note(self: Any, *rest: Any) -> None:
        taken.append(way)
        begin(self, *rest)

    return and_note


def test_an_sae_whose_loss_is_no_longer_finite_says_so_alone() -> None:
    stack = stack_of("abstopk", Recipe())
    stack.weights[0][1] = torch.inf
    order = torch.arange(150).expand(3, -1)
    assert train_epoch(stack, X, order, 64, 1e-3, 0).finite.tolist() == [True, False, True]


def test_what_has_more_terms_is_left_to_autograd() -> None:
    chosen = {name for name, variant in VARIANTS.items() if steps.one_reconstruction(variant, Recipe())}
    assert chosen == {*BY_HAND}
    for more in ({"aux_alpha": 0.1}, {"unit_decoder": True}):
        assert not steps.one_reconstruction(VARIANTS["topk"], Recipe(**more))
