"""A case trained by a recipe: what a benchmark asks of `thought_saes/training`, one SAE at a time."""

import numpy as np

from benchmarks.cases import Case
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.config import TrainConfig
from thought_saes.training.fused.selection import Selection
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import learning_rates


def selection_of(config: TrainConfig, case: Case) -> Selection:
    """The rule for an SAE of this case."""
    return Selection(config.variant, case.k, VARIANTS[config.variant].prefixes(case.latent_dim))


def rate_of_each_step(config: TrainConfig, n_rows: int) -> np.ndarray:
    """The learning rates of all steps on so many rows."""
    steps = config.epochs * -(-n_rows // config.batch_size)
    return np.broadcast_to(learning_rates(config, n_rows), steps)


def started(rows: Prepared, case: Case) -> SparseAutoencoder:
    """The SAE before its first step, in the coordinates of the recipe."""
    return rows.start(SaeKey(Cell(0, 0), case.latent_dim, case.k), seed=0)
