"""Gated: its latents by hand, and which weights each part of its loss moves."""

import torch
from torch import Tensor

from thought_saes.saes.variants import VARIANTS

GATED = VARIANTS["gated"]


def test_a_latent_is_the_magnitude_where_the_gate_is_open_and_never_negative() -> None:
    a = torch.tensor([[3.0, 0.5, 3.0, 2.0]])
    b_gate = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    extras = {"r_mag": torch.tensor([0.0, 0.0, 0.0, 2.0]).log1p(), "b_mag": torch.tensor([0.5, 9.0, -4.0, 0.0])}
    z = GATED.latents(a + b_gate, 2, extras | {"b_enc": b_gate})
    assert torch.allclose(z, torch.tensor([[3.5, 0.0, 0.0, 6.0]]))


def leaves() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (1, 4, 6), "b_enc": (1, 1, 6), "W_dec": (1, 6, 4), "b_dec": (1, 1, 4)}
    shapes |= {"r_mag": (1, 1, 6), "b_mag": (1, 1, 6)}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def moved(of_gates: bool) -> set[str]:
    """The weights that get a gradient from the loss of the gates, or from the reconstruction."""
    own = leaves()
    batch = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(1))
    encoded = GATED.encode(torch.baddbmm(own["b_enc"], batch, own["W_enc"]), [2], own)
    assert encoded.gates is not None
    if of_gates:
        loss = GATED.gate_losses(batch, encoded.gates, own["W_dec"], own["b_dec"], torch.ones(1))
    else:
        loss = GATED.losses(batch, encoded.latents, own["W_dec"], own["b_dec"])
    loss.sum().backward()
    return {name for name, value in own.items() if value.grad is not None and float(value.grad.abs().max()) > 1e-5}


def test_the_gates_losses_leave_the_decoder_alone_and_the_reconstruction_the_gates_bias() -> None:
    assert moved(of_gates=True) == {"W_enc", "b_enc"}
    assert moved(of_gates=False) == {"W_enc", "W_dec", "b_dec", "r_mag", "b_mag"}


def test_the_loss_of_the_gates_is_their_error_and_their_sum_by_the_penalty() -> None:
    batch = torch.tensor([[[1.0, 2.0]]])
    gates, W_dec, b_dec = torch.tensor([[[3.0]]]), torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1, 2)
    loss = GATED.gate_losses(batch, gates, W_dec, b_dec, torch.tensor([5.0]))
    assert loss.tolist() == [(2**2 + 2**2) / 2 + 5 * 3 / 2]
