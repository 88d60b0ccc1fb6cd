"""How an SAE starts and in which order it sees the rows: seeded by what it is, not by what it is trained beside."""

from collections.abc import Iterator

import numpy as np
import torch

from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.checkpoint import make_sae
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import PUBLISHED


def seeded_sae(input_dim: int, key: SaeKey, seed: int, variant: str = PUBLISHED) -> SparseAutoencoder:
    """An untrained SAE whose weights depend on nothing but the arguments."""
    state = np.random.SeedSequence([seed, *key.values]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(state[0]))
        return make_sae(input_dim, key.latent_dim, key.k, variant)


def epoch_orders(n_rows: int, epochs: int, seed: int, cell: Cell) -> Iterator[np.ndarray]:
    """The order of the training rows in each epoch: the same for every SAE of a cell."""
    generator = np.random.default_rng([seed, *cell])
    for _ in range(epochs):
        yield generator.permutation(n_rows)
