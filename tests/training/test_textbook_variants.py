"""JumpReLU and Gated in the stack, a few epochs, against their papers' equations written as anyone would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.results import correlated_rows
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.checkpoint import load_sae
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.config import TrainConfig
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import train_saes
from thought_saes.training.start import epoch_orders

KEY, EPOCHS, LR = SaeKey(Cell(1, 2), 32, 3), 4, 1e-3
X = torch.from_numpy(correlated_rows(320, 12)) + 5


def trained(variant: str) -> tuple[Prepared, SparseAutoencoder, SparseAutoencoder]:
    """An SAE of centred rows, and the same before its first step."""
    config = TrainConfig(recipe="improved", variant=variant, epochs=EPOCHS, batch_size=64, backend="torch")
    config = TrainConfig(**{**vars(config), "lr_decay": False})
    prepared = Prepared(X, config.settings)
    start, sae = prepared.start(KEY, 0), prepared.start(KEY, 0)
    orders = epoch_orders(len(X), EPOCHS, 0, KEY.cell)
    train_saes([sae], [0], prepared.x[None], lambda _: orders, config, "torch", lambda n: None)
    return prepared, start, sae


def textbook(x: Tensor, weights: dict[str, Tensor], loss_of: Callable[..., Tensor], fast: tuple[str, ...]) -> None:
    """Adam on loss_of(batch, **weights), in place; `fast` learn at five times the rate."""
    groups = [{"params": [value], "lr": LR * (5 if name in fast else 1)} for name, value in weights.items()]
    optimizer = torch.optim.Adam(groups)
    for order in epoch_orders(len(x), EPOCHS, 0, KEY.cell):
        for rows in torch.from_numpy(order).split(64):
            optimizer.zero_grad()
            loss_of(x[rows], **weights).backward()
            optimizer.step()


def weights_of(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Copies to be trained, as nn.Linear has them."""
    parts = {"W": sae.encoder.weight, "b": sae.encoder.bias, "D": sae.decoder.weight, "c": sae.decoder.bias}
    parts |= {name: sae.get_buffer(name) for name in sae.variant.trained}
    return {name: nn.Parameter(value.detach().clone()) for name, value in parts.items()}


def assert_trained_alike(start: SparseAutoencoder, ours: SparseAutoencoder, plain: dict[str, Any]) -> None:
    first, last = weights_of(start), weights_of(ours)
    for name, expected in plain.items():
        moved = (expected - first[name]).norm()
        assert moved > 0.01, name
        assert (last[name] - expected).norm() < 0.02 * moved, name


def test_jumprelu_is_trained_as_by_the_papers_pseudo_derivatives() -> None:
    """arXiv 2407.14435, equations 11 and 12: a rectangle kernel around each threshold, autograd for all else."""

    def loss_of(batch: Tensor, W: Tensor, b: Tensor, D: Tensor, c: Tensor, threshold: Tensor) -> Tensor:
        p = batch @ W.T + b
        width = 0.1 * p.detach().std(dim=0, correction=0)
        kernel = ((p - threshold).detach().abs() < width / 2) / width
        step = (p > threshold).float()
        # The value of the step, with the derivative -kernel by the threshold and none by p.
        l0 = (step - kernel * (threshold - threshold.detach())).sum(dim=1).mean()
        z = p * step - threshold.detach() * kernel * (threshold - threshold.detach())
        error = (z @ D.T + c - batch).square().mean()
        variance = (batch - batch.mean(dim=0)).square().mean()  # the penalty counts in units of the fvu
        return error + variance * (l0 / KEY.k - 1) ** 2

    prepared, start, ours = trained("jumprelu")
    plain = weights_of(start)
    textbook(prepared.x, plain, loss_of, ("threshold",))
    assert_trained_alike(start, ours, plain)


def test_gated_is_trained_as_by_the_papers_loss() -> None:
    """arXiv 2404.16014, equation 8, with the weight of the sparsity term moved by each batch's L0."""
    penalty = [1.0]

    def loss_of(batch: Tensor, W: Tensor, b: Tensor, D: Tensor, c: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
        gate = batch @ W.T + b
        magnitude = torch.relu((batch @ W.T) * r_mag.exp() + b_mag)
        z = (gate > 0) * magnitude
        through_gates = torch.relu(gate) @ D.detach().T + c.detach()
        d = batch.shape[1]
        loss = (
            (z @ D.T + c - batch).square().sum(dim=1)
            + (through_gates - batch).square().sum(dim=1)
            + penalty[0] * torch.relu(gate).sum(dim=1)
        ).mean() / d
        penalty[0] *= float((0.1 * ((z > 0).sum(dim=1).float().mean() / KEY.k - 1)).exp())
        return loss

    prepared, start, ours = trained("gated")
    plain = weights_of(start)
    textbook(prepared.x, plain, loss_of, ())
    assert_trained_alike(start, ours, plain)
    assert penalty[0] != pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_sae_is_the_same_after_it_was_saved(variant: str, tmp_path: Path) -> None:
    prepared, _, sae = trained(variant)
    prepared.finish(sae)
    sae.config["variant"] = variant
    sae.save(tmp_path / "sae.pt")
    loaded = load_sae(tmp_path / "sae.pt")
    assert loaded.variant.name == variant
    with torch.no_grad():
        assert torch.equal(loaded.encode(X), sae.encode(X))
        assert torch.equal(loaded(X), sae(X))
        if variant == "abstopk":
            assert (loaded.encode(X) < 0).any()  # negative winners included
        for name in sae.variant.extras(32):
            loaded.get_buffer(name).add_(1.0)  # the control: what a variant adds to the weights is not idle
            assert not torch.equal(loaded.encode(X), sae.encode(X))
            loaded.get_buffer(name).copy_(sae.get_buffer(name))
