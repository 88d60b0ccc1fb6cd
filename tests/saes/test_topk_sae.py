"""The SAE and its metrics, against arithmetic done by hand and in NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.full_disk import fill_disk
from tests.helpers.paths import ROOT
from tests.helpers.results import correlated_rows
from thought_saes.saes.measures import MEASURES, Firings, RowMoments, evaluate, measure
from thought_saes.saes.moments import Moments
from thought_saes.saes.sae import TopKSAE


def fvu(x: np.ndarray, x_hat: np.ndarray) -> float:
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def measured(sae: TopKSAE, x: Tensor) -> dict[str, float]:
    """Every measure on x (n, input_dim) as validation rows."""
    measures = [make(sae.latent_dim, RowMoments()) for _, make in MEASURES]
    measure(sae, [(x, True)], measures)
    return {name: value for one in measures for name, value in one.compute().items()}


def random_sae(input_dim: int = 6, latent_dim: int = 16, k: int = 4, seed: int = 0) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(input_dim, latent_dim, k)
    with torch.no_grad():
        sae.encoder.bias.normal_()
        sae.decoder.bias.normal_()
    return sae


def rows(n: int, input_dim: int = 6, seed: int = 0) -> Tensor:
    return torch.from_numpy(correlated_rows(n, input_dim, seed))


def test_the_latents_of_largest_magnitude_are_kept_with_their_signs() -> None:
    sae = TopKSAE(2, 3, 2)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        sae.encoder.bias.copy_(torch.tensor([0.5, 0.0, 1.0]))
        sae.decoder.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]))
        sae.decoder.bias.copy_(torch.tensor([10.0, 20.0]))
    x = torch.tensor([[1.0, 2.0]])
    # pre = (1 + 0.5, 2, -1 - 2 + 1) = (1.5, 2, -2): the two of largest magnitude are the second and the third
    assert sae.encode(x).tolist() == [[0.0, 2.0, -2.0]]
    # x_hat = 2 (0, 1) - 2 (2, 2) + (10, 20) = (6, 18)
    assert sae(x).tolist() == [[6.0, 18.0]]


def test_forward_is_decode_of_encode() -> None:
    sae, x = random_sae(), rows(9)
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))


def test_decoder_columns_start_at_unit_norm_and_both_layers_as_linear_does() -> None:
    sae = TopKSAE(32, 64, 3)
    assert torch.allclose(sae.decoder.weight.norm(dim=0), torch.ones(64))
    for values, bound in [(sae.encoder.weight, 32**-0.5), (sae.encoder.bias, 32**-0.5), (sae.decoder.bias, 64**-0.5)]:
        assert 0.8 * bound < values.abs().max() <= bound


@pytest.mark.parametrize(("input_dim", "latent_dim", "k"), [(4, 8, 0), (4, 8, 9), (0, 8, 2)])
def test_an_impossible_shape_is_refused(input_dim: int, latent_dim: int, k: int) -> None:
    with pytest.raises(ValueError, match="no SAE"):
        TopKSAE(input_dim, latent_dim, k)


@given(seed=st.integers(0, 10_000), feature=st.integers(0, 15))
def test_flipping_a_features_signs_changes_no_reconstruction(seed: int, feature: int) -> None:
    sae, x = random_sae(seed=seed), rows(5, seed=seed)
    before = sae(x)
    with torch.no_grad():
        sae.encoder.weight[feature] *= -1
        sae.encoder.bias[feature] *= -1
        sae.decoder.weight[:, feature] *= -1
    assert torch.allclose(sae(x), before, atol=1e-4)


@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    sae, x = random_sae(seed=seed), rows(5, seed=seed)
    before = sae(x)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in (sae.encoder.weight, sae.encoder.bias):
            weight.copy_(weight[order])
        sae.decoder.weight.copy_(sae.decoder.weight[:, order])
    assert torch.allclose(sae(x), before, atol=1e-4)


def test_a_saved_sae_loads_to_the_same_outputs(tmp_path: Path) -> None:
    sae, x = random_sae(), rows(7)
    sae.config |= {"position": 3, "layer": 14}
    sae.metrics = {"explained_variance": 0.5}
    sae.save(tmp_path / "sae.pt")
    loaded = TopKSAE.load(tmp_path / "sae.pt")
    assert torch.equal(loaded(x), sae(x))
    assert loaded.config == {"input_dim": 6, "latent_dim": 16, "k": 4, "position": 3, "layer": 14}
    assert loaded.metrics == {"explained_variance": 0.5}
    content = torch.load(tmp_path / "sae.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in content["model_state_dict"].items()} == {
        "encoder.weight": (16, 6),
        "encoder.bias": (16,),
        "decoder.weight": (6, 16),
        "decoder.bias": (6,),
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "sae.pt"]


def test_loading_leaves_the_random_state_of_torch_as_it_is(tmp_path: Path) -> None:
    TopKSAE(6, 12, 3).save(tmp_path / "sae.pt")
    before = torch.get_rng_state()
    TopKSAE.load(tmp_path / "sae.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_imports_next_to_nothing(tmp_path: Path) -> None:
    TopKSAE(6, 12, 3).save(tmp_path / "sae.pt")
    words = f"import sys, topk_sae; n = len(sys.modules); topk_sae.TopKSAE.load({str(tmp_path / 'sae.pt')!r}); "
    done = subprocess.run([sys.executable, "-c", words + "print(len(sys.modules) - n)"], cwd=ROOT, capture_output=True)
    assert int(done.stdout) < 50  # a tensor on the meta device brings 888 modules and takes a second


def test_a_checkpoint_of_the_original_loads_though_its_metrics_are_numpy_numbers(tmp_path: Path) -> None:
    sae = random_sae()
    config = {"input_dim": 6, "latent_dim": 16, "k": 4, "position": 0, "layer": 1}
    metrics = {"explained_variance": np.float64(0.25), "l0_mean": np.float32(4), "num_dead_features": np.int64(3)}
    torch.save({"model_state_dict": sae.state_dict(), "config": config, "metrics": metrics}, tmp_path / "old.pt")
    loaded = TopKSAE.load(tmp_path / "old.pt")
    assert torch.equal(loaded.encode(rows(3)), sae.encode(rows(3)))
    assert loaded.metrics == metrics


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    random_sae().save(tmp_path / "sae.pt")
    content = (tmp_path / "sae.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    for name in ("half.pt", "foreign.pt"):
        with pytest.raises(ValueError, match=name):
            TopKSAE.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        TopKSAE.load(tmp_path / "absent.pt")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sae.pt"
    random_sae(seed=1).save(path)
    before = path.read_bytes()

    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        random_sae(seed=2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_metrics_equal_their_definitions_in_numpy() -> None:
    sae, x_train, x = random_sae(), rows(300, seed=1), rows(77, seed=2)
    metrics = evaluate(sae, x_train, x, chunk_rows=10)
    with torch.inference_mode():
        z, x_hat = sae.encode(x).numpy().astype(float), sae(x).numpy().astype(float)
        all_z = sae.encode(torch.cat([x_train, x])).numpy()
        train_hat = sae(x_train).numpy().astype(float)
    x64, train64 = x.numpy().astype(float), x_train.numpy().astype(float)
    error = (x - sae(x).detach()).numpy().astype(float)
    magnitudes = np.sort(np.abs(z[z != 0]))
    expected = {
        "explained_variance": 1 - error.var(ddof=1) / x64.var(ddof=1),
        "reconstruction_loss": (error**2).mean(),
        "cosine_similarity": np.mean(
            (x64 * x_hat).sum(1) / np.linalg.norm(x64, axis=1) / np.linalg.norm(x_hat, axis=1)
        ),
        "l0_mean": (z != 0).sum(1).mean(),
        "l0_std": (z != 0).sum(1).std(ddof=1),
        "mean_activation": magnitudes.mean(),
        "max_activation": magnitudes.max(),
        "median_activation": magnitudes[(len(magnitudes) - 1) // 2],
        "num_dead_features": (all_z == 0).all(0).sum(),
        "num_active_features": (all_z != 0).any(0).sum(),
        "feature_death_rate": (all_z == 0).all(0).mean(),
        "fvu": ((x64 - x_hat) ** 2).sum() / ((x64 - x64.mean(0)) ** 2).sum(),
        "fvu_train": ((train64 - train_hat) ** 2).sum() / ((train64 - train64.mean(0)) ** 2).sum(),
        "fvu_selection": fvu(x64[::2], x_hat[::2]),
        "fvu_report": fvu(x64[1::2], x_hat[1::2]),
        "num_active_features_validation": (z != 0).any(0).sum(),
        "busiest_10_share": np.sort((all_z != 0).sum(0))[-10:].sum() / (all_z != 0).sum(),
        "firing_rate_mean": np.mean([rate for rate in (all_z != 0).mean(0) if rate]),
        "firing_rate_median": sorted(rate for rate in (all_z != 0).mean(0) if rate)[
            ((all_z != 0).any(0).sum() - 1) // 2
        ],
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


@given(chunk_rows=st.integers(1, 90))
def test_the_size_of_the_chunks_does_not_show(chunk_rows: int) -> None:
    sae, x_train, x = random_sae(), rows(90, seed=1), rows(41, seed=2)
    whole = evaluate(sae, x_train, x)
    chunked = evaluate(sae, x_train, x, chunk_rows)
    for name, value in whole.items():
        assert chunked[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_explained_variance_rewards_predicting_the_mean_and_fvu_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 50, generator=generator)
    x[:, 0] += 300.0  # one dimension of large mean
    sae = TopKSAE(50, 4, 1)
    with torch.no_grad():
        sae.decoder.weight.zero_()
        sae.decoder.bias.copy_(x.mean(0))
    result = measured(sae, x)
    # var over all values: 300^2 (1/50 - 1/50^2) + 1 = 1765; the mean leaves 1 of it
    assert result["explained_variance"] == pytest.approx(1 - 1 / 1765, abs=1e-4)
    assert result["fvu"] == pytest.approx(1.0, abs=1e-6)


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_fvu_is_unchanged_when_x_and_its_reconstruction_are_scaled_and_shifted(scale: float, shift: float) -> None:
    x, noise = rows(60).double().numpy(), correlated_rows(60, 6, seed=5)

    def fvu(x: np.ndarray, x_hat: np.ndarray) -> float:
        original, error = Moments(), Moments()
        original.add(torch.from_numpy(x))
        error.add(torch.from_numpy(x - x_hat))
        return error.around_zero() / original.around_column_means()

    x_hat = x + noise
    assert fvu(scale * x + shift, scale * x_hat + shift) == pytest.approx(fvu(x, x_hat), rel=1e-9)
    assert fvu(x, x_hat) == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-9)
    assert fvu(x, x) == 0


def test_a_feature_that_fires_on_training_rows_only_is_not_dead() -> None:
    sae = TopKSAE(2, 2, 1)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(2))
        sae.encoder.bias.zero_()
    metrics = evaluate(sae, torch.tensor([[0.0, 5.0]]), torch.tensor([[4.0, 1.0], [-3.0, 1.0]]))
    assert metrics["num_dead_features"] == 0
    assert metrics["num_active_features_validation"] == 1
    # A negative latent has fired as well: |4| and |-3|
    assert metrics["mean_activation"] == pytest.approx(3.5)
    assert metrics["median_activation"] == 3.0


def test_a_selected_latent_of_zero_has_not_fired() -> None:
    sae = TopKSAE(2, 3, 2)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
        sae.encoder.bias.zero_()
    x = torch.tensor([[2.0, 7.0], [3.0, 7.0]])
    result = measured(sae, x)
    assert (result["l0_mean"], result["num_active_features"], result["firing_rate_mean"]) == (1.0, 1, 1.0)
    assert result["median_activation"] == 2.0
    firings = Firings(3)
    measure(sae, [(x, True)], [firings])
    assert torch.as_tensor(firings.firings[True]).tolist() == [2, 0, 0]
