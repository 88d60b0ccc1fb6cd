"""The changes that a library's format asks for leave every SAE as it is."""

import torch

from tests.helpers.exports import latents, random_weights, reconstruction, rows


def test_mirrored_topk_reconstructs_as_abstopk_does() -> None:
    weights = random_weights("abstopk")
    mirrored = weights.mirrored()
    expected, found = latents(weights, rows()), latents(mirrored, rows())
    assert mirrored.latent_dim == 2 * weights.latent_dim
    assert (found >= 0).all()
    assert (expected < 0).any()
    positive, negative = found.split(weights.latent_dim, dim=1)
    assert torch.equal(positive - negative, expected)
    assert torch.allclose(reconstruction(mirrored, found), reconstruction(weights, expected), rtol=1e-12)


def test_the_same_latents_after_subtracting_b_dec() -> None:
    for variant in ("topk", "jumprelu", "gated"):
        weights = random_weights(variant)
        shifted = weights.after_subtracting_b_dec()
        assert torch.allclose(latents(shifted, rows() - weights.b_dec), latents(weights, rows()), rtol=1e-9)
        assert not torch.allclose(latents(weights, rows() - weights.b_dec), latents(weights, rows()), rtol=1e-2)
