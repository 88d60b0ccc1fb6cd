"""The time of a training, told beforehand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training import forecast
from thought_saes.training import run as training
from thought_saes.training.config import TrainConfig
from thought_saes.training.plan import plan_jobs
from thought_saes.training.stack import Trained


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_the_time_of_a_training_is_foretold_from_its_first_epochs(
    backend: str, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(k_values=(2, 4), epochs=40, batch_size=32, activations=activations, results=tmp_path / "none")
    cache = ActivationCache(activations)
    jobs = plan_jobs(config, cache, [Cell(0, 0), Cell(0, 1)], (24, 16)).jobs
    epochs: list[int] = []
    original = training.train_saes

    def spy(
        saes: list[SparseAutoencoder], cells: Any, x: Tensor, orders: Any, *rest: Any, **more: Any
    ) -> list[Trained]:
        epochs.append(len(list(orders(0))))
        return original(saes, cells, x, orders, *rest, **more)

    monkeypatch.setattr(forecast, "train_saes", spy)
    monkeypatch.setattr(forecast, "CALIBRATION_SECONDS", float("inf"))
    seconds = forecast.seconds_to_train(jobs, config, cache, torch.device("cpu"), backend)
    assert 0 < seconds < 600
    assert epochs == 2 * [1, 1, 2, 4, 8, 16, 32, 40]  # a warm-up; two latent_dims
