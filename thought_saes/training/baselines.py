"""Measure what the SAEs of a cell are compared with, unless that was done."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import DamagedFile
from thought_saes.common.helpers import helpers, made_ahead
from thought_saes.results.names import SLICE_LATENT_DIM, SaeKey
from thought_saes.results.provenance import provenance
from thought_saes.results.recipe import Run
from thought_saes.results.store import Results
from thought_saes.saes.baselines import measure_baselines, moment_matched_rows, score
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.config import TrainConfig
from thought_saes.training.prepared import Prepared
from thought_saes.training.rows import about_rows, load_cells
from thought_saes.training.run import train_saes
from thought_saes.training.start import epoch_orders


def control_size(latent_dims: Sequence[int]) -> int:
    """The latent_dim of the SAEs on Gaussian rows: that of the single heatmaps, else the middle one."""
    return SLICE_LATENT_DIM if SLICE_LATENT_DIM in latent_dims else sorted(latent_dims)[len(latent_dims) // 2]


def baselines_are_there(
    results: Results,
    cell: Cell,
    run: Run,
    latent_dims: Sequence[int],
    k_values: Sequence[int],
    gaussian_control: bool = False,
) -> bool:
    """Whether the cell's baselines file is whole, of these activations and seed, and has every k and latent_dim.

    With `gaussian_control` it must hold the SAEs on Gaussian rows, too.
    """
    try:
        content = results.baselines(cell)
    except DamagedFile:
        return False
    if content is None:
        return False
    there = content["metadata"].get("activations"), content["metadata"].get("seed")
    by_latent_dim = [content["untrained"].get(str(latent_dim)) for latent_dim in latent_dims]
    if gaussian_control:
        by_latent_dim.append((content.get("gaussian") or {}).get(str(control_size(latent_dims))))
    return there == (run.activations, run.seed) and all(
        isinstance(by_k, dict) and str(k) in by_k for by_k in by_latent_dim for k in k_values
    )


def baselines_of(
    cell: Cell,
    latent_dims: Sequence[int],
    fingerprint: str,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
) -> dict[str, Any]:
    """Measure what the SAEs of a cell are to be compared with."""
    x_train, x_validation = (x[0] for x in load_cells(cache, [cell], device))
    keys = (SaeKey(cell, latent_dim, k) for latent_dim in latent_dims for k in config.k_values)
    prepared = Prepared(x_train, config.settings, fingerprint=fingerprint)

    def untrained() -> Iterator[SparseAutoencoder]:
        for sae in made_ahead(pool, partial(prepared.start, seed=config.seed), keys, ahead):
            prepared.finish(sae.to(device))
            yield sae

    with helpers(device) as pool:
        ahead = 0 if device.type == "cpu" else torch.get_num_threads()
        return measure_baselines(x_train, x_validation, config.k_values, untrained(), pool)


def gaussian_control(
    cell: Cell,
    latent_dim: int,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """By latent_dim and k, the fvu of an SAE of the same recipe and of PCA on Gaussian rows of the same two moments.

    Both are fitted on as many rows as the cell's own, and scored on as many others.
    """
    x_train, x_validation = (x[0] for x in load_cells(cache, [cell], device))
    sizes = len(x_train), len(x_validation)
    train, validation = moment_matched_rows(x_train, sizes, (config.seed, *cell))
    pca = measure_baselines(train, validation, config.k_values, [])["pca"]

    def orders(_: int) -> Iterator[np.ndarray]:
        return epoch_orders(len(train), config.epochs, config.seed, cell)

    prepared, by_k = Prepared(train, config.settings), {}
    for k in config.k_values:
        sae = prepared.start(SaeKey(cell, latent_dim, k), config.seed).to(device)
        trained = train_saes([sae], [0], prepared.x[None], orders, config, backend, lambda n: None)
        prepared.finish(sae)
        found = score(validation, sae) if trained[0].finite else dict.fromkeys(("explained_variance", "fvu"), math.nan)
        by_k[str(k)] = found | {"pca_fvu": pca[str(k)]["fvu"]}
    return {str(latent_dim): by_k}


def measure_cell(
    cell: Cell,
    latent_dims: Sequence[int],
    fingerprint: str,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
) -> None:
    """Write the baselines of one cell."""
    measured = baselines_of(cell, latent_dims, fingerprint, config, cache, device)
    if config.gaussian_control:
        size = control_size(latent_dims)
        measured["gaussian"] = gaussian_control(cell, size, config, cache, device, backend)
    about = {"position": cell.position, "layer": cell.layer, **about_rows(cache)}
    made = {name: value for name, value in provenance("torch", str(device)).items() if name not in ("backend", "when")}
    metadata = about | made | {"seed": config.seed, "activations": fingerprint}
    Results(config.results).write_baselines(cell, {"metadata": metadata, **measured})
