"""Measure what the SAEs of a cell are compared with, unless that was done."""

from collections.abc import Sequence
from typing import Any

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import DamagedFile
from thought_saes.results.names import SaeKey
from thought_saes.results.provenance import provenance
from thought_saes.results.recipe import Run
from thought_saes.results.store import Results
from thought_saes.saes.baselines import measure_baselines
from thought_saes.training.config import TrainConfig
from thought_saes.training.rows import about_rows, load_cells
from thought_saes.training.start import seeded_sae


def baselines_are_there(
    results: Results, cell: Cell, run: Run, latent_dims: Sequence[int], k_values: Sequence[int]
) -> bool:
    """Whether the cell's baselines file is whole, of these activations and seed, and has every k and latent_dim."""
    try:
        content = results.baselines(cell)
    except DamagedFile:
        return False
    if content is None:
        return False
    there = content["metadata"].get("activations"), content["metadata"].get("seed")
    by_latent_dim = [content["untrained"].get(str(latent_dim)) for latent_dim in latent_dims]
    return there == (run.activations, run.seed) and all(
        isinstance(by_k, dict) and str(k) in by_k for by_k in by_latent_dim for k in k_values
    )


def baselines_of(
    cell: Cell, latent_dims: Sequence[int], config: TrainConfig, cache: ActivationCache, device: torch.device
) -> dict[str, Any]:
    """Measure what the SAEs of a cell are to be compared with."""
    x_train, x_validation = (x[0] for x in load_cells(cache, [cell], device))
    keys = (SaeKey(cell, latent_dim, k) for latent_dim in latent_dims for k in config.k_values)
    untrained = (seeded_sae(cache.input_dim, key, config.seed, config.variant).to(device) for key in keys)
    return measure_baselines(x_train, x_validation, config.k_values, untrained)


def measure_cell(
    cell: Cell,
    latent_dims: Sequence[int],
    fingerprint: str,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
) -> None:
    """Write the baselines of one cell."""
    measured = baselines_of(cell, latent_dims, config, cache, device)
    about = {"position": cell.position, "layer": cell.layer, **about_rows(cache)}
    made = {name: value for name, value in provenance("torch", str(device)).items() if name not in ("backend", "when")}
    metadata = about | made | {"seed": config.seed, "activations": fingerprint}
    Results(config.results).write_baselines(cell, {"metadata": metadata, **measured})
