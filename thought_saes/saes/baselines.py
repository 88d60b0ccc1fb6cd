"""What the SAEs of one (layer, position) are to be compared with: the mean, PCA, and SAEs that never trained.

Everything is fitted on the training rows and scored on the validation rows.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thought_saes.common.helpers import InTurn
from thought_saes.common.machine import float32_products
from thought_saes.saes.moments import (
    CHUNK_ROWS,
    Moments,
    ReadSpread,
    chunks,
    explained_variance,
    fraction_of_variance_unexplained,
    ratio,
    read_together,
    second_moments,
    with_float64,
)
from thought_saes.saes.sae import SparseAutoencoder


@torch.no_grad()
@float32_products("ieee")
def score(x: Tensor, reconstruct: Callable[[Tensor], Tensor], original: Moments | None = None) -> dict[str, float]:
    """`explained_variance` and `fvu` of a reconstruction of x (n, input_dim), as for an SAE.

    `original` are the moments of x, if they are known.
    """
    error = Moments()
    for chunk in chunks(x, CHUNK_ROWS):
        error.add(chunk - reconstruct(chunk))
    known = original or moments_of(x)
    [read] = read_together([{"original": known.spread(), "error": error.spread()}])
    spreads = ReadSpread(read["original"]), ReadSpread(read["error"])
    return {"explained_variance": explained_variance(*spreads), "fvu": fraction_of_variance_unexplained(*spreads)}


def moments_of(x: Tensor) -> Moments:
    """Those of the rows of x (n, input_dim)."""
    moments = Moments()
    for chunk in chunks(x, CHUNK_ROWS):
        moments.add(chunk)
    return moments


def covariance(x: Tensor, mean: Tensor) -> Tensor:
    """The (input_dim, input_dim) covariance of the rows of x, in float64."""
    return second_moments(x, mean) / max(1, len(x) - 1)


def moment_matched_rows(x: Tensor, sizes: Sequence[int], seed: Sequence[int]) -> list[Tensor]:
    """Sets of Gaussian rows (size, input_dim) with the mean and covariance of the rows of x (n, input_dim).

    What an SAE gains on x and not on these is structure beyond the first two moments. `seed` makes them repeatable.
    """
    mean = moments_of(x).mean.cpu()
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance(x, mean))
    root = (eigenvectors * eigenvalues.clamp(min=0).sqrt()).T  # (input_dim, input_dim), float64
    generator = np.random.default_rng(list(seed))
    return [(mean + torch.from_numpy(generator.standard_normal((size, x.shape[1]))) @ root).to(x) for size in sizes]


@torch.inference_mode()
@float32_products("ieee")
def measure_baselines(
    x_train: Tensor,
    x_validation: Tensor,
    k_values: Sequence[int],
    untrained: Iterable[SparseAutoencoder],
    pool: Executor | None = None,
) -> dict[str, Any]:
    """The baselines of one cell under their names in its file; x_train and x_validation are (n, input_dim).

    - mean: predict the mean of the training rows.
    - pca: project on the k leading principal components of the training rows, for each k.
    - untrained: an SAE of the same shape as it started, by latent_dim and k.
    - gamma: |mean| / |standard deviation|, both vectors over the dimensions; arXiv 2605.31518 finds that it
      predicts dead features.
    - effective_rank: exp of the entropy of the covariance's eigenvalues as shares of their sum.
    - mean_norm: the mean length of a row.

    What only a CPU does well is done in `pool`, beside the untrained SAEs.
    """
    moments, original = moments_of(x_train), moments_of(x_validation)
    lengths = sum(with_float64(chunk.norm(dim=1).sum()).double() for chunk in chunks(x_train, CHUNK_ROWS))
    mean = moments.mean.cpu()
    spectrum = (pool or InTurn()).submit(torch.linalg.eigh, covariance(x_train, mean))
    by_latent_dim: dict[str, dict[str, dict[str, float]]] = {}
    for sae in untrained:
        by_latent_dim.setdefault(str(sae.latent_dim), {})[str(sae.k)] = score(x_validation, sae, original)
    eigenvalues, eigenvectors = spectrum.result()  # ascending
    centre = mean.to(x_validation)
    pca = {}
    for k in k_values:
        components = eigenvectors[:, -k:].to(x_validation)  # (input_dim, k)
        pca[str(k)] = score(x_validation, lambda x, c=components: centre + (x - centre) @ c @ c.T, original)  # type: ignore[misc]
    shares = eigenvalues.clamp(min=0) / eigenvalues.clamp(min=0).sum()
    deviation = float((moments.squares.sum() / max(1, len(x_train) - 1)).sqrt())
    return {
        "mean": score(x_validation, lambda x: centre.expand_as(x), original),
        "pca": pca,
        "untrained": by_latent_dim,
        "gamma": ratio(float(mean.norm()), deviation),
        "effective_rank": float(torch.special.entr(shares).sum().exp()),
        "mean_norm": float(lengths) / len(x_train),
    }
