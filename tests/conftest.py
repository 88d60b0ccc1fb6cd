"""What several tests need: small models in every form the pipeline loads, and small activations."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from command_line import run
from topk_sae import TopKSAE

settings.register_profile("project", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("project")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On a busy machine threads spend their time waiting for each other; these models need none."""
    torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a script's main() as its command line would: call(main, *words) is (exit code, stdout, stderr)."""

    def call_main(main: Callable[[], int], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__ + ".py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run(main)
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call_main


def correlated_rows(n_rows: int, input_dim: int, seed: int = 0) -> np.ndarray:
    """Rows (n_rows, input_dim) of low rank with noise and an offset, as activations have."""
    generator = np.random.default_rng(seed)
    rank = max(2, input_dim // 4)
    rows = generator.normal(size=(n_rows, rank)) @ generator.normal(size=(rank, input_dim))
    rows += 0.1 * generator.normal(size=rows.shape) + 2 * generator.normal(size=input_dim)
    return rows.astype(np.float32)


def weights(sae: TopKSAE) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in sae.parameters()])


def assert_same_results(results: Path, expected: Path) -> None:
    """The two folders hold the same metrics and checkpoints, but for the times and for rounding."""
    names = {path.name for path in expected.glob("[!.]*") if path.suffix in (".json", ".pt")} - {"last_run.json"}
    assert {path.name for path in results.glob("[!.]*") if path.suffix in (".json", ".pt")} - {"last_run.json"} == names
    for name in names:
        if name.endswith(".pt"):
            ours, theirs = TopKSAE.load(results / name), TopKSAE.load(expected / name)
            assert torch.allclose(weights(ours), weights(theirs), atol=1e-6), name
            assert_close(ours.metrics, theirs.metrics)
        else:
            assert_close(json.loads((results / name).read_text()), json.loads((expected / name).read_text()))


def assert_close(found: Any, expected: Any) -> None:
    if not isinstance(expected, dict):
        assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)
        return
    assert found.keys() == expected.keys()
    for key in found.keys() - {"train_time_sec"}:
        assert_close(found[key], expected[key])


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    """A folder of bare arrays: layers 0 and 2, positions 0 and 1, 120 rows of 12."""
    folder = tmp_path / "activations"
    folder.mkdir()
    for layer in (0, 2):
        for position in (0, 1):
            np.save(folder / f"pos{position}_layer{layer}.npy", correlated_rows(120, 12, seed=10 * layer + position))
    return folder
