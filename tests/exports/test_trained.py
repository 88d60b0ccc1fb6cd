"""What an export says of an SAE that our trainer made is what the SAE computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import train_grid
from tests.helpers.exports import latents, reconstruction
from thought_saes.activations.cell import Cell
from thought_saes.exports.weights import Weights
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.saes.checkpoint import load_sae
from thought_saes.saes.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_of_a_trained_sae_compute_what_it_computes(
    variant: str, activations: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ["--recipe", "improved", "--variant", variant, "--epochs", 3, "--batch-size", 32]
    flags += ["--layer", 2, "--position", 1, "--latent-dims", 24, "--k-values", 4, "--results", tmp_path]
    code, _, err = call(train_grid.main, *flags, "--activations", activations)
    assert code == 0, err
    sae = load_sae(checkpoint_path(tmp_path, SaeKey(Cell(2, 1), 24, 4)))
    weights = Weights.of(sae)
    assert weights.variant == variant
    x = torch.from_numpy(np.load(activations / "pos1_layer2.npy"))
    found = latents(weights, x)
    assert found.count_nonzero() > len(x)
    assert torch.allclose(found, sae.encode(x).double(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(reconstruction(weights, found), sae(x).double(), rtol=1e-5, atol=1e-5)
    if weights.threshold is not None:
        higher = weights.threshold + found[found > 0].median()
        assert not torch.allclose(latents(Weights(**vars(weights) | {"threshold": higher}), x), found)
