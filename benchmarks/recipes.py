"""What a benchmark trains by: a selection rule, and where the rows, the weights and the learning rate start."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.adam import linear_decay
from thought_saes.training.fused.selection import Selection
from thought_saes.training.start import seeded_sae


class Rows(NamedTuple):
    """What is trained on, as a recipe prepares it, once for all SAEs."""

    x: Tensor  # (n, input_dim)
    spectrum: tuple[Tensor, Tensor] | None  # of `spectrum`, where the start needs it


class Recipe(NamedTuple):
    """published: raw rows, weights as nn.Linear starts, a constant rate.

    improved: rows centred and scaled; decoder rows that start as the leading principal components and as whitened
    residuals of training rows, the encoder as their transpose; a rate that falls linearly to zero.
    """

    improved: bool
    variant: str

    def selection(self, case: Case) -> Selection:
        """The rule for an SAE of this case."""
        return Selection(self.variant, case.k, VARIANTS[self.variant].prefixes(case.latent_dim))

    def rows(self, x: Tensor) -> Rows:
        """x (n, input_dim) as it is trained on."""
        if not self.improved:
            return Rows(x, None)
        centred = x - x.mean(dim=0)
        scaled = centred / centred.square().mean().sqrt()
        return Rows(scaled, spectrum(scaled))

    def rates(self, lr: float, steps: int) -> np.ndarray:
        """The learning rate of each step."""
        return linear_decay(lr, steps) if self.improved else np.full(steps, lr)

    def start(self, rows: Rows, case: Case) -> SparseAutoencoder:
        """The SAE before its first step."""
        sae = seeded_sae(case.input_dim, SaeKey(Cell(0, 0), case.latent_dim, case.k), seed=0)
        if self.improved:
            directions = tied_start(rows, case.latent_dim, case.k)
            with torch.no_grad():
                sae.encoder.weight.copy_(directions)
                sae.decoder.weight.copy_(directions.T)
                sae.encoder.bias.zero_()
                sae.decoder.bias.zero_()
        return sae


PUBLISHED = Recipe(improved=False, variant="abstopk")


def tied_start(rows: Rows, latent_dim: int, k: int) -> Tensor:
    """Directions (latent_dim, input_dim) of unit norm: 2k leading principal components of x, then random rows.

    Of these, what the components leave, whitened by half a power. The rows are centred.
    """
    x = rows.x
    values, vectors = rows.spectrum or spectrum(x)
    n_leading = min(2 * k, latent_dim, int(0.9 * x.shape[1]))
    generator = np.random.default_rng(0)
    chosen = x[generator.choice(len(x), latent_dim - n_leading, replace=len(x) < latent_dim)]
    rest = vectors[:, n_leading:]
    whitened = (chosen @ rest) / (values[n_leading:] + 1e-6 * values[0]) ** 0.25
    residuals = whitened @ rest.T
    return torch.cat([vectors[:, :n_leading].T, residuals / residuals.norm(dim=1, keepdim=True)])


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of the rows' covariance, descending, and its eigenvectors in columns."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return values.flip(0).clamp(min=0), vectors.flip(1)
