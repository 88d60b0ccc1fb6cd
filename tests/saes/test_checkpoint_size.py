"""What is foretold of a checkpoint is what is then written."""

from pathlib import Path

import pytest
import torch

from thought_saes.activations.writer import activation_bytes
from thought_saes.common.text import in_bytes
from thought_saes.saes.checkpoint import checkpoint_bytes
from thought_saes.saes.measures import evaluate
from thought_saes.saes.sae import TopKSAE


@pytest.mark.parametrize(("input_dim", "latent_dim", "k"), [(96, 512, 5), (576, 512, 20), (300, 2048, 100)])
def test_the_size_of_a_checkpoint_is_right_to_a_hundredth(
    input_dim: int, latent_dim: int, k: int, tmp_path: Path
) -> None:
    sae = TopKSAE(input_dim, latent_dim, k)
    x = torch.randn(40, input_dim)
    sae.metrics = evaluate(sae, x, x) | {"train_time_sec": 12.345678, "epochs": 25}
    sae.config |= {"position": 5, "layer": 15, "epochs": 25, "batch_size": 256, "lr": 1e-3, "seed": 0}
    sae.config["activations"] = "0123456789abcdef"
    sae.save(tmp_path / "sae.pt")
    assert checkpoint_bytes(input_dim, latent_dim) == pytest.approx((tmp_path / "sae.pt").stat().st_size, rel=0.01)


def test_the_published_grid_takes_22_6_gb_of_checkpoints_and_5_9_gb_of_activations() -> None:
    # 96 cells, four k; 4 bytes x (2 x 2048 x latent_dim + ...): 8.4, 16.8 and 33.6 MB
    total = 96 * 4 * sum(checkpoint_bytes(2048, latent_dim) for latent_dim in (512, 1024, 2048))
    assert in_bytes(total) == "22.6 GB"
    assert in_bytes(activation_bytes(7473, 2048, 96, "float32")) == "5.9 GB"  # 7,473 x 2,048 x 4 x 96
