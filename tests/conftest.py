"""What several tests need: small models in every form the pipeline loads, and small activations."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a script's main() as its command line would: call(main, *words) is (exit code, stdout, stderr)."""
    from command_line import run

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


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    """A folder of bare arrays: layers 0 and 2, positions 0 and 1, 120 rows of 12."""
    folder = tmp_path / "activations"
    folder.mkdir()
    for layer in (0, 2):
        for position in (0, 1):
            np.save(folder / f"pos{position}_layer{layer}.npy", correlated_rows(120, 12, seed=10 * layer + position))
    return folder
