"""What is foretold is what is then written."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thought_saes.common import estimates
from thought_saes.common.command_line import InputError
from thought_saes.common.estimates import (
    activation_bytes,
    check_disk,
    checkpoint_bytes,
    in_bytes,
    in_time,
    peak_bytes,
    there_already,
)
from thought_saes.saes.topk_sae import TopKSAE, evaluate

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n_rows", "input_dim"), [(1, 1), (7, 33), (123_456, 8)])
def test_the_bytes_of_activations_are_exact(dtype: str, n_rows: int, input_dim: int, tmp_path: Path) -> None:
    np.save(tmp_path / "cell.npy", np.zeros((n_rows, input_dim), dtype))
    assert activation_bytes(n_rows, input_dim, 3, dtype) == 3 * (tmp_path / "cell.npy").stat().st_size


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


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (999_960, "1.0 MB"),
        (4.7e9, "4.7 GB"),
        (2.5e16, "25,000.0 TB"),
    ],
)
def test_bytes_as_people_read_them(n_bytes: float, text: str) -> None:
    assert in_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (150, "2 min"), (1539, "26 min"), (12_000, "3 h 20 min")]
)
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


def test_a_disk_that_is_too_small_is_named_with_what_it_has_and_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_100_000_000))
    check_disk(folder, 3_100_000_000, "-")
    with pytest.raises(InputError, match=r"yet needs 4\.7 GB more, and its disk has 3\.1 GB left: .* or fast"):
        check_disk(folder, 4_700_000_000, "fast")
    assert not folder.parent.exists()


def test_what_is_there_need_not_be_allotted_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234567")
    assert there_already([tmp_path / "a", tmp_path / "b"]) == 7


def test_the_peak_of_this_process_is_counted_in_bytes() -> None:
    before = peak_bytes()
    assert 50e6 < before < 50e9
    block = np.ones(200_000_000, np.uint8)
    assert peak_bytes() >= max(before, block.nbytes)
