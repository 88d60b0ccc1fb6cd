"""JumpReLU: its latents, and the gradients of its thresholds, worked out by hand."""

import pytest
import torch

from thought_saes.saes.variants import VARIANTS
from thought_saes.saes.variants.jumprelu import Jump


def jump_gradients(p: float, weight_of_z: float, weight_of_step: float) -> tuple[float, float]:
    """Of one pre-activation p and its threshold 1, in a window of width 0.4."""
    pre_acts = torch.tensor([[[p]]], requires_grad=True)
    threshold = torch.tensor([[[1.0]]], requires_grad=True)
    latents, steps = Jump.apply(pre_acts, threshold, torch.tensor([[0.4]]))
    (weight_of_z * latents + weight_of_step * steps).sum().backward()
    assert pre_acts.grad is not None
    assert threshold.grad is not None
    return float(pre_acts.grad), float(threshold.grad)


@pytest.mark.parametrize("p", [0.85, 1.15])
def test_both_halves_of_the_window_move_the_threshold(p: float) -> None:
    assert jump_gradients(p, 0, 1)[1] == pytest.approx(-1 / 0.4)
    assert jump_gradients(p, 3, 0) == pytest.approx((3.0 if p > 1 else 0.0, -3 / 0.4))


@pytest.mark.parametrize("p", [0.75, 1.25, -1.0])
def test_outside_the_window_nothing_moves_it(p: float) -> None:
    assert jump_gradients(p, 3, 1) == ((3.0 if p > 1 else 0.0), 0.0)


def test_a_latent_is_the_pre_activation_above_its_features_own_threshold_and_never_negative() -> None:
    extras = {"threshold": torch.tensor([1.0, 2.0, -5.0])}
    z = VARIANTS["jumprelu"].latents(torch.tensor([[1.5, 1.5, -1.0], [0.5, 2.5, 1.0]]), 2, extras)
    assert z.tolist() == [[1.5, 0, 0], [0, 2.5, 1.0]]


def test_the_thresholds_start_at_the_quantile_that_selects_k() -> None:
    pre_acts = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    begun = VARIANTS["jumprelu"].begin(iter(pre_acts.split(300)), 2, 1000, {})
    per_feature = (pre_acts > begun["threshold"]).sum(dim=0)
    assert per_feature.tolist() == [100] * 20


def test_too_many_latents_raise_the_thresholds_and_too_few_lower_them() -> None:
    pre_acts = torch.linspace(0.5, 1.5, 101).view(1, 101, 1).repeat(1, 1, 4)
    for k, direction in ((1, 1), (3, -1)):  # 2 of 4 are selected on average
        thresholds = torch.ones(1, 1, 4, requires_grad=True)
        encoded = VARIANTS["jumprelu"].encode(pre_acts, [k], {"threshold": thresholds, "k": torch.tensor([k])})
        assert encoded.extra_losses is not None
        encoded.extra_losses.sum().backward()
        assert thresholds.grad is not None
        assert (-thresholds.grad.sign() == direction).all()
