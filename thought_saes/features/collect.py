"""What is held against the concepts: an SAE's latents, and the representations it is compared with, by rows.

Latents are kept sparse, (n_rows, latent_dim): a row holds as many entries as the SAE selects. The others are dense.
"""

from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.saes.baselines import covariance
from thought_saes.saes.moments import CHUNK_ROWS
from thought_saes.saes.sae import SparseAutoencoder

Representation: TypeAlias = "csr_array | np.ndarray"  # (n_rows, n_features), signed


def rows_of(cache: ActivationCache, cell: Cell) -> Tensor:
    """The activations of a cell in float32, (n_rows, input_dim). Raises InputError if they are damaged."""
    return torch.from_numpy(np.array(cache.cell(cell), dtype=np.float32))


@torch.inference_mode()
def collect_entries(sae: SparseAutoencoder, x: Tensor) -> csr_array:
    """The latents of x (n, input_dim) that are not zero: (n, latent_dim), in chunks of rows."""
    values, columns, counts = [], [], []
    for start in range(0, len(x), CHUNK_ROWS):
        latents = sae.encode(x[start : start + CHUNK_ROWS]).numpy()
        rows, fired = np.nonzero(latents)
        values.append(latents[rows, fired])
        columns.append(fired.astype(np.int32))
        counts.append(np.bincount(rows, minlength=len(latents)))
    pointers = np.concatenate([[0], np.concatenate(counts).cumsum()])
    return csr_array((np.concatenate(values), np.concatenate(columns), pointers), shape=(len(x), sae.latent_dim))


def principal_components(x: Tensor, train: np.ndarray) -> np.ndarray:
    """x (n, input_dim) along the principal axes of its training rows, the largest variance first, float32."""
    x_train = x[torch.from_numpy(train)]
    mean = x_train.double().mean(dim=0)
    axes = torch.linalg.eigh(covariance(x_train, mean)).eigenvectors.flip(1)
    return ((x - mean.float()) @ axes.float()).numpy()
