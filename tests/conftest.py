"""What several tests need: small models in every form the pipeline loads, and small activations."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.helpers.accelerator import add_device
from tests.helpers.results import correlated_rows
from thought_saes.common.command_line import run

add_device()
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


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    """A folder of bare arrays: layers 0 and 2, positions 0 and 1, 120 rows of 12."""
    folder = tmp_path / "activations"
    folder.mkdir()
    for layer in (0, 2):
        for position in (0, 1):
            np.save(folder / f"pos{position}_layer{layer}.npy", correlated_rows(120, 12, seed=10 * layer + position))
    return folder
