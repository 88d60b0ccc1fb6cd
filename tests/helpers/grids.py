"""Results folders to analyse, written from a few numbers."""

import json
import math
import random
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from thought_saes.activations.cell import Cell
from thought_saes.results.names import baselines_path, metrics_path
from thought_saes.saes.measures import ADDED_METRICS, PUBLISHED_METRICS

Sae = tuple[int, int, int, int]  # layer, position, latent_dim, k


def write_metrics_files(
    results: Path, metrics: dict[Sae, dict[str, Any]], metadata: dict[str, Any], *, fingerprints: bool = False
) -> Path:
    """A metrics file for each (layer, position, latent_dim) of `metrics`, which it holds as they are."""
    results.mkdir(parents=True, exist_ok=True)
    for layer, position, latent_dim in sorted({sae[:3] for sae in metrics}):
        own: dict[str, Any] = {"position": position, "layer": layer}
        if fingerprints:
            own["activations"] = f"l{layer}p{position}"
        by_k = {str(sae[3]): of_one for sae, of_one in metrics.items() if sae[:3] == (layer, position, latent_dim)}
        content = {"metadata": own | metadata, "results": {str(latent_dim): by_k}}
        metrics_path(results, Cell(layer, position), latent_dim).write_text(json.dumps(content))
    return results


def write_grid(results: Path, metrics: dict[Sae, dict[str, Any]], **metadata: Any) -> Path:
    """Our metrics files: `metrics` over those of a middling SAE with all features alive."""
    middling = {name: 0.5 for name in PUBLISHED_METRICS} | {"feature_death_rate": 0.0, "epochs": 25}
    filled = {
        sae: middling | {"num_active_features": sae[2], "l0_mean": float(sae[3])} | own for sae, own in metrics.items()
    }
    sizes = {"n_train": 80, "n_val": 20, "input_dim": 12, "epochs": 25, "batch_size": 16, "lr": 0.001}
    return write_metrics_files(results, filled, sizes | metadata, fingerprints=True)


def write_original_grid(results: Path, metrics: dict[Sae, dict[str, Any]], **metadata: Any) -> Path:
    """Metrics files as the original experiment wrote them: `metrics` over those of a middling SAE."""
    filled = {
        sae: {name: 0.5 for name in PUBLISHED_METRICS} | {"epochs": 25, "l0_mean": sae[3]} | own
        for sae, own in metrics.items()
    }
    sizes = {"n_train": 5978, "n_val": 1495, "input_dim": 2048, "epochs": 25, "batch_size": 256}
    return write_metrics_files(results, filled, sizes | metadata)


def write_baselines(
    results: Path, cells: Iterable[tuple[int, int]], latent_dims: Iterable[int], k_values: Iterable[int]
) -> None:
    """Plausible ones: a floor, gamma and PCA of each (layer, position) that differ from cell to cell."""
    k_values, latent_dims = list(k_values), list(latent_dims)
    for layer, position in cells:
        floor = 0.9 + 0.01 * layer + 0.001 * position
        pca = {
            str(k): {"explained_variance": 1 - (1 - floor) / (1 + k), "fvu": 1 / (1 + 0.1 * k + 0.01 * layer)}
            for k in k_values
        }
        content = {
            "metadata": {"position": position, "layer": layer, "activations": f"l{layer}p{position}"},
            "mean": {"explained_variance": floor, "fvu": 1.001},
            "pca": pca,
            "untrained": {
                str(d): {str(k): {"explained_variance": -1.0, "fvu": 30.0 + layer} for k in k_values}
                for d in latent_dims
            },
            "gaussian": {
                str(d): {str(k): {"fvu": 0.9 / (1 + 0.1 * k), "pca_fvu": 1 / (1 + 0.1 * k)} for k in k_values}
                for d in latent_dims
            },
            "gamma": 3.0 + layer + 2.0 * position,
            "effective_rank": 5.0,
            "mean_norm": 7.0,
        }
        baselines_path(results, Cell(layer, position)).write_text(json.dumps(content))


def write_seed(
    results: Path,
    seed: int,
    axes: tuple[Iterable[int], Iterable[int], Iterable[int], Iterable[int]],
    baselines: bool = True,
) -> dict[Sae, dict[str, float]]:
    """A whole grid with fvu; returns the metrics by SAE. Some have collapsed, and some have fvu above 1."""
    layers, positions, latent_dims, k_values = map(list, axes)
    numbers, others = random.Random(100 + seed), random.Random(200 + seed)  # apart: a new metric changes no fvu
    metrics: dict[Sae, dict[str, float]] = {}
    for layer, position, latent_dim, k in product(layers, positions, latent_dims, k_values):
        fvu = (0.3 + 0.1 * layer + 0.05 * position + latent_dim / 1e4) / math.log2(k) * math.exp(numbers.gauss(0, 0.1))
        active = k + 1 if k == min(k_values) and position == 0 else round(0.7 * latent_dim)
        own = {name: others.random() for name in ADDED_METRICS}
        own |= {
            "fvu": fvu,
            "fvu_train": 0.9 * fvu,
            "explained_variance": 1 - 0.1 * fvu * numbers.random(),
            "num_active_features": active,
            "num_dead_features": latent_dim - active,
            "feature_death_rate": 1 - active / latent_dim,
            "train_time_sec": numbers.random(),
        }
        if (layer, position, latent_dim) == (layers[-1], positions[-1], latent_dims[-1]):
            own["fvu"] += 1
        metrics[layer, position, latent_dim, k] = own
    write_grid(results, metrics, seed=seed, position_0="last question token")
    if baselines:
        write_baselines(results, product(layers, positions), latent_dims, k_values)
    return metrics
