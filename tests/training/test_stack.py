"""The reference trainer: as the textbook, alone or together, and without waiting for the device."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.results import correlated_rows, weights
from thought_saes.activations.cell import Cell
from thought_saes.activations.split import split_rows
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import PUBLISHED, Recipe
from thought_saes.saes.measures import evaluate
from thought_saes.saes.sae import SparseAutoencoder, TopKSAE
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.stack import Trained, train_stack
from thought_saes.training.start import epoch_orders, seeded_sae


def textbook(sae: SparseAutoencoder, x: Tensor, orders: list[np.ndarray], batch_size: int, lr: float) -> None:
    """FACTS section 3 as anyone would write it."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    for order in orders:
        for start in range(0, len(order), batch_size):
            batch = x[torch.from_numpy(order[start : start + batch_size])]
            loss = torch.nn.functional.mse_loss(sae(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_on(x: Tensor, saes: list[SparseAutoencoder], orders: Iterator[np.ndarray], batch_size: int) -> list[Trained]:
    """A stack of one cell."""
    return train_stack(saes, [0] * len(saes), x[None], (order[None] for order in orders), batch_size, lr=1e-3)


def train(ks: list[int], x: Tensor, epochs: int = 2, seed: int = 0) -> list[SparseAutoencoder]:
    saes = [seeded_sae(x.shape[1], SaeKey(Cell(1, 2), 32, k), seed) for k in ks]
    trained = train_on(x, saes, epoch_orders(len(x), epochs, seed, Cell(1, 2)), batch_size=64)
    assert all(outcome.finite for outcome in trained)
    return saes


def test_a_stack_comes_out_as_the_textbook_loop_does() -> None:
    x = torch.from_numpy(correlated_rows(300, 20))  # 64 does not divide 300: the last batch is short
    for sae, k in zip(train([2, 5, 9], x), [2, 5, 9], strict=True):
        plain = seeded_sae(20, SaeKey(Cell(1, 2), 32, k), 0)
        start = weights(plain)
        textbook(plain, x, list(epoch_orders(300, 2, 0, Cell(1, 2))), 64, 1e-3)
        assert torch.allclose(weights(sae), weights(plain), atol=2e-6)
        assert not torch.allclose(weights(sae), start, atol=1e-3)


def test_trained_together_equals_trained_alone() -> None:
    x = torch.from_numpy(correlated_rows(200, 20))
    together = train([2, 5, 9], x)
    for sae, k in zip(together, [2, 5, 9], strict=True):
        assert torch.allclose(weights(sae), weights(train([k], x)[0]), atol=1e-6)
    assert not torch.allclose(weights(together[0]), weights(train([2], x, seed=1)[0]), atol=1e-3)


def train_two_cells(
    epochs: int = 2, batch_size: int = 64, recipe: Recipe = PUBLISHED
) -> tuple[list[SparseAutoencoder], list[list[np.ndarray]], Tensor]:
    """A stack with k 5 and 2 in one cell and 9 and 5 in another; the orders of both, and their rows."""
    x = torch.from_numpy(np.stack([correlated_rows(200, 20, seed=seed) for seed in (0, 1)]))
    orders = [list(epoch_orders(200, epochs, 0, Cell(1, position))) for position in (0, 1)]
    members = ((5, 0), (2, 0), (9, 1), (5, 1))
    saes = [seeded_sae(20, SaeKey(Cell(1, position), 32, k), 0, recipe.variant) for k, position in members]
    of_all = map(np.stack, zip(*orders, strict=True))
    trained = train_stack(saes, [0, 0, 1, 1], x, of_all, batch_size, 1e-3, recipe=recipe)
    assert all(outcome.finite for outcome in trained)
    return saes, orders, x


def test_trained_with_the_saes_of_another_cell_equals_trained_alone() -> None:
    together, orders, x = train_two_cells()
    for sae, position in zip(together, (0, 0, 1, 1), strict=True):
        alone = seeded_sae(20, SaeKey(Cell(1, position), 32, sae.k), 0)
        train_on(x[position], [alone], iter(orders[position]), batch_size=64)
        assert torch.allclose(weights(sae), weights(alone), atol=1e-6)
    on_the_other = seeded_sae(20, SaeKey(Cell(1, 0), 32, 5), 0)
    train_on(x[1], [on_the_other], iter(orders[1]), batch_size=64)
    assert not torch.allclose(weights(together[0]), weights(on_the_other), atol=1e-3)


class HostReads(TorchDispatchMode):
    """Counts the calls for which a GPU would be waited for, or that would copy to it."""

    NAMES = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "bincount"),
        *("lift_fresh", "_to_copy", "_pin_memory"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.count += any(name in str(function) for name in self.NAMES)
        by_mask = "aten.index" in str(function) and any(t is not None and t.dtype == torch.bool for t in args[1])
        self.count += by_mask
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "recipe",
    [
        *(Recipe(variant=variant) for variant in VARIANTS),
        Recipe(aux_alpha=0.1, dead_epochs=1, weight_decay=0.1, unit_decoder=True),
    ],
    ids=[*VARIANTS, "added to a step"],
)
def test_nothing_within_an_epoch_waits_for_the_device_or_copies_to_it(recipe: Recipe) -> None:
    reads = []
    for batch_size in (200, 10):
        with HostReads() as mode:
            train_two_cells(epochs=3, batch_size=batch_size, recipe=recipe)
        reads.append(mode)
    few, many = reads
    assert many.calls > 5 * few.calls
    assert many.count == few.count
    with HostReads() as mode:
        x = torch.ones(3)
        float(x.sum()), x[x > 0], torch.tensor([1.0])
    assert mode.count >= 3


def test_explained_variance_and_death_agree_with_the_textbook_within_the_spread_of_seeds() -> None:
    x = torch.from_numpy(correlated_rows(600, 24))
    split = split_rows(600)
    x_train, x_validation = x[split.train], x[split.validation]
    ours, plain = [], []
    for seed in range(4):
        sae = seeded_sae(24, SaeKey(Cell(0, 0), 64, 3), seed)
        train_on(x_train, [sae], epoch_orders(len(x_train), 12, seed, Cell(0, 0)), batch_size=64)
        ours.append(evaluate(sae, x_train, x_validation))
        torch.manual_seed(100 + seed)  # a start and batches of its own
        sae = TopKSAE(24, 64, 3)
        generator = np.random.default_rng(100 + seed)
        textbook(sae, x_train, [generator.permutation(len(x_train)) for _ in range(12)], 64, 1e-3)
        plain.append(evaluate(sae, x_train, x_validation))
    for name in ("explained_variance", "feature_death_rate"):
        values = np.array([[run[name] for run in runs] for runs in (ours, plain)])
        assert abs(values[0].mean() - values[1].mean()) <= 2 * values.std(axis=1, ddof=1).max(), name


def test_an_sae_whose_loss_is_not_finite_spoils_none_beside_it() -> None:
    x = torch.from_numpy(correlated_rows(100, 8))
    saes = [seeded_sae(8, SaeKey(Cell(0, 0), 16, k), 0) for k in (2, 3)]
    with torch.no_grad():
        saes[0].encoder.bias[0] = torch.inf
    trained = train_on(x, saes, epoch_orders(100, 2, 0, Cell(0, 0)), batch_size=32)
    assert [outcome.finite for outcome in trained] == [False, True]
    alone = seeded_sae(8, SaeKey(Cell(0, 0), 16, 3), 0)
    train_on(x, [alone], epoch_orders(100, 2, 0, Cell(0, 0)), batch_size=32)
    assert torch.allclose(weights(saes[1]), weights(alone), atol=1e-6)
