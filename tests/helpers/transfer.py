"""Two small data sets of one model, and SAEs of each."""

from pathlib import Path

import numpy as np

from tests.helpers.results import correlated_rows
from tests.helpers.substitution import write_saes
from thought_saes.activations.cache import ActivationCache

CELLS = ((0, 0), (0, 1), (1, 0))  # layer, position
LATENT_DIMS, K_VALUES = [16], [2, 4]


def write_rows(folder: Path, shift: float = 0.0, n_rows: int = 120, input_dim: int = 12) -> ActivationCache:
    """Bare arrays of three cells, moved by `shift` in every dimension."""
    folder.mkdir(parents=True)
    for layer, position in CELLS:
        rows = correlated_rows(n_rows, input_dim, seed=10 * layer + position) + np.float32(shift)
        np.save(folder / f"pos{position}_layer{layer}.npy", rows)
    return ActivationCache(folder)


def write_two_sets(folder: Path, shift: float) -> None:
    """a/ and b/, which is a/ shifted, and SAEs of them in saes_of_a/ and saes_of_b/."""
    for name, by in (("a", 0.0), ("b", shift)):
        write_saes(folder / f"saes_of_{name}", write_rows(folder / name, by), LATENT_DIMS, K_VALUES)
