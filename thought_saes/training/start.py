"""How an SAE starts and in which order it sees the rows: seeded by what it is, not by what it is trained beside.

`linear` is nn.Linear's own start, the experiment's. `tied` makes the encoder the decoder's transpose. `components`
takes the directions from the rows: the leading principal components, and what these leave of random training rows;
where latents are never negative, each component and its opposite.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import Recipe
from thought_saes.saes.checkpoint import make_sae, sae_of
from thought_saes.saes.moments import second_moments
from thought_saes.saes.names import PUBLISHED
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS

# Of the dimensions at most so many start as principal components: the rest of a row must have somewhere to point.
MOST_COMPONENTS = 0.9
LEAST_EIGENVALUE = 1e-8  # of the largest that is left: below it a direction is rounding
LEAST_NORM = 1e-6  # of the longest: a shorter row is nothing but rounding, and another takes its place


def seeded_sae(input_dim: int, key: SaeKey, seed: int, variant: str = PUBLISHED) -> SparseAutoencoder:
    """An untrained SAE whose weights depend on nothing but the arguments."""
    state = np.random.SeedSequence([seed, *key.values]).generate_state(1, np.uint64)
    sae = make_sae(input_dim, key.latent_dim, key.k, variant)
    sae.reset_parameters(torch.Generator().manual_seed(int(state[0])))
    return sae


class Spectrum(NamedTuple):
    """The covariance of a cell's framed training rows: computed once for all its SAEs."""

    eigenvalues: Tensor  # (input_dim,) float64, descending
    eigenvectors: Tensor  # (input_dim, input_dim) float64, in columns

    @classmethod
    def of(cls, x: Tensor) -> "Spectrum":
        """Of rows x (n, input_dim) whose mean is zero."""
        eigenvalues, eigenvectors = torch.linalg.eigh(second_moments(x) / max(1, len(x)))
        return cls(eigenvalues.flip(0).clamp(min=0), eigenvectors.flip(1))


def start_sae(key: SaeKey, seed: int, recipe: Recipe, x: Tensor, spectrum: Spectrum | None) -> SparseAutoencoder:
    """An SAE as the recipe starts it, for the framed training rows x (n, input_dim) of its cell."""
    variant, input_dim = VARIANTS[recipe.variant], x.shape[1]
    if recipe.start == "components":
        assert spectrum is not None
        directions = component_directions(key, seed, x, spectrum, variant.signed)
        weights = {
            "encoder.weight": directions,
            "encoder.bias": torch.zeros(key.latent_dim),
            "decoder.weight": directions.T,
            "decoder.bias": torch.zeros(input_dim),
        }
        return sae_of(weights | variant.extras(key.latent_dim), input_dim, key.latent_dim, key.k, recipe.variant)
    sae = seeded_sae(input_dim, key, seed, recipe.variant)
    if recipe.start == "tied":
        with torch.no_grad():
            sae.encoder.weight.copy_(sae.decoder.weight.T)
            sae.encoder.bias.zero_()
            sae.decoder.bias.zero_()
    return sae


def component_directions(key: SaeKey, seed: int, x: Tensor, spectrum: Spectrum, signed: bool) -> Tensor:
    """Unit directions (latent_dim, input_dim), float32: 2k principal components of x, then residuals of its rows.

    Of each component both directions, one after the other, for latents that are never negative (`signed` off).
    A residual is what the components leave of a random training row, whitened by half a power among the other
    principal components, so that it does not point where most rows point.
    """
    signs = torch.tensor([1.0] if signed else [1.0, -1.0], dtype=torch.float64)
    n_components = min(2 * key.k, key.latent_dim // len(signs), int(MOST_COMPONENTS * x.shape[1]))
    leading, rest = spectrum.eigenvectors[:, :n_components], spectrum.eigenvectors[:, n_components:]
    directions = torch.zeros(key.latent_dim, x.shape[1], dtype=torch.float64)
    n_leading = len(signs) * n_components
    directions[:n_leading] = (leading.T[:, None] * signs[:, None]).flatten(0, 1)
    wanted = key.latent_dim - n_leading
    generator = np.random.default_rng([seed, *key.values])
    if wanted:
        eigenvalues = spectrum.eigenvalues[n_components:]  # never empty: see MOST_COMPONENTS
        eigenvalues = eigenvalues.clamp(min=float(LEAST_EIGENVALUE * eigenvalues[0]))
        order = torch.from_numpy(generator.permutation(len(x)))
        for n_rows in (wanted, 2 * wanted):  # more only where some are nothing but rounding
            rows = x[order[:n_rows].to(x.device)].cpu().double()
            residuals = (rows @ rest) / eigenvalues.clamp(min=1e-300) ** 0.25
            norms = residuals.norm(dim=1)
            usable = residuals[norms > LEAST_NORM * norms.max()][:wanted]
            if len(usable) == wanted:
                break
        # Where there are too few rows that differ, random directions among the other components take their place.
        missing = wanted - len(usable)
        random = torch.from_numpy(generator.standard_normal((missing, rest.shape[1])))
        chosen = torch.cat([usable, random])
        directions[n_leading:] = (chosen / chosen.norm(dim=1, keepdim=True)) @ rest.T
    return directions.float()


def epoch_orders(n_rows: int, epochs: int, seed: int, cell: Cell) -> Iterator[np.ndarray]:
    """The order of the training rows in each epoch: the same for every SAE of a cell."""
    generator = np.random.default_rng([seed, *cell])
    for _ in range(epochs):
        yield generator.permutation(n_rows)
