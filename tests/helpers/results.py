"""Small activations, and what two results folders have in common."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from topk_sae import SparseAutoencoder, load_sae


def correlated_rows(n_rows: int, input_dim: int, seed: int = 0) -> np.ndarray:
    """Rows (n_rows, input_dim) of low rank with noise and an offset, as activations have."""
    generator = np.random.default_rng(seed)
    rank = max(2, input_dim // 4)
    rows = generator.normal(size=(n_rows, rank)) @ generator.normal(size=(rank, input_dim))
    rows += 0.1 * generator.normal(size=rows.shape) + 2 * generator.normal(size=input_dim)
    return rows.astype(np.float32)


def weights(sae: SparseAutoencoder) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in sae.parameters()])


def assert_same_results(results: Path, expected: Path) -> None:
    """The two folders hold the same metrics and checkpoints, but for the times and for rounding."""
    names = {path.name for path in expected.glob("[!.]*") if path.suffix in (".json", ".pt")} - {"last_run.json"}
    assert {path.name for path in results.glob("[!.]*") if path.suffix in (".json", ".pt")} - {"last_run.json"} == names
    for name in names:
        if name.endswith(".pt"):
            ours, theirs = load_sae(results / name), load_sae(expected / name)
            assert ours.variant is theirs.variant
            for ours_are, theirs_are in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
                assert torch.allclose(ours_are, theirs_are, atol=1e-6), name
            assert_close(ours.metrics, theirs.metrics)
        else:
            assert_close(json.loads((results / name).read_text()), json.loads((expected / name).read_text()))


def assert_close(found: Any, expected: Any) -> None:
    if not isinstance(expected, dict):
        assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)
        return
    assert found.keys() == expected.keys()
    for key in found.keys() - {"train_time_sec", "when"}:
        assert_close(found[key], expected[key])
