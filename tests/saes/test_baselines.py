"""What SAEs are compared with, against NumPy."""

import numpy as np
import pytest
import torch

from tests.helpers.results import correlated_rows
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.baselines import measure_baselines, moment_matched_rows
from thought_saes.training.start import seeded_sae


def fvu(x: np.ndarray, x_hat: np.ndarray) -> float:
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def test_the_baselines_equal_their_definitions_in_numpy() -> None:
    rows = correlated_rows(3000, 12)  # more than one chunk
    train, validation = rows[:2400], rows[2400:]
    saes = [seeded_sae(12, SaeKey(Cell(1, 2), latent_dim, k), 0) for latent_dim in (16, 24) for k in (2, 5)]
    found = measure_baselines(torch.from_numpy(train), torch.from_numpy(validation), (2, 5), saes)
    x_train, x = train.astype(float), validation.astype(float)
    mean = x_train.mean(0)
    assert found["mean"]["fvu"] == pytest.approx(fvu(x, np.broadcast_to(mean, x.shape)), rel=1e-6)
    assert found["mean"]["explained_variance"] == pytest.approx(1 - (x - mean).var(ddof=1) / x.var(ddof=1), rel=1e-6)
    _, sizes, directions = np.linalg.svd(x_train - mean, full_matrices=False)
    for k in (2, 5):
        reconstruction = mean + (x - mean) @ directions[:k].T @ directions[:k]
        assert found["pca"][str(k)]["fvu"] == pytest.approx(fvu(x, reconstruction), rel=1e-4)
    for sae in saes:
        with torch.inference_mode():
            reconstruction = sae(torch.from_numpy(validation)).numpy().astype(float)
        assert found["untrained"][str(sae.latent_dim)][str(sae.k)]["fvu"] == pytest.approx(
            fvu(x, reconstruction), rel=1e-5
        )
    assert found["gamma"] == pytest.approx(np.linalg.norm(mean) / np.linalg.norm(x_train.std(axis=0, ddof=1)), rel=1e-6)
    shares = sizes**2 / (sizes**2).sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(x_train, axis=1).mean(), rel=1e-5)


def test_a_pca_of_full_rank_leaves_nothing_and_directions_count_alike() -> None:
    x = torch.from_numpy(correlated_rows(200, 5))
    found = measure_baselines(x, x, (1, 4, 5), [])
    assert found["pca"]["5"]["fvu"] == pytest.approx(0, abs=1e-9)
    assert found["pca"]["1"]["fvu"] > found["pca"]["4"]["fvu"] > found["pca"]["5"]["fvu"]
    even = torch.cat([torch.eye(8), -torch.eye(8)])  # the same variance in 8 directions, mean zero
    found = measure_baselines(even, even, (2,), [])
    assert found["effective_rank"] == pytest.approx(8)
    assert found["gamma"] == pytest.approx(0)
    assert found["pca"]["2"]["fvu"] == pytest.approx(6 / 8)


def test_gaussian_rows_have_the_mean_and_covariance_of_the_rows_and_none_of_their_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    # Each row is one of three points, far apart: everything but Gaussian.
    points = torch.tensor([[4.0, 0.0, 1.0], [0.0, 3.0, 1.0], [-4.0, -3.0, 1.0]])
    x = points[torch.randint(3, (3000,), generator=generator)] + 5.0
    rows, more = moment_matched_rows(x, (20_000, 7), seed=(0, 1, 2))
    assert (rows.shape, more.shape, rows.dtype) == ((20_000, 3), (7, 3), torch.float32)
    assert torch.allclose(rows.mean(dim=0), x.mean(dim=0), atol=0.1)
    assert torch.allclose(torch.cov(rows.T), torch.cov(x.T), atol=0.3)
    assert float(rows[:, 2].std()) < 1e-6  # a dimension without variance stays without
    assert len(x.unique(dim=0)) == 3
    assert len(rows.unique(dim=0)) == 20_000
    assert torch.equal(moment_matched_rows(x, (20_000,), seed=(0, 1, 2))[0], rows)
    assert not torch.equal(moment_matched_rows(x, (20_000,), seed=(1, 1, 2))[0], rows)


def test_rows_that_are_gaussian_have_no_advantage_over_their_control() -> None:
    # Of Gaussian rows the control is another draw of the same: PCA of rank 2 leaves as much of it unexplained.
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 6, generator=generator) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) + 2.0
    train, validation = moment_matched_rows(x, (4000, 2000), seed=(3,))
    own = measure_baselines(x[:4000], x[4000:], [2], [])["pca"]["2"]["fvu"]
    control = measure_baselines(train, validation, [2], [])["pca"]["2"]["fvu"]
    assert control == pytest.approx(own, rel=0.08)
