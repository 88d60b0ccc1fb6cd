"""What a notebook wants in one line each; `import thought_saes as ts` gives all of it.

ts.script("train_grid.py", layer=14, position=3, results="results")      a script, its flags by keyword
ts.load_metrics("results")                                               every metric of every SAE, a DataFrame
ts.sae("results", layer=14, position=3, latent_dim=512, k=20)            one SAE
ts.heatmap("results", "fvu", latent_dim=512, k=20)                       layer x position, a figure
ts.top_rows(sae, "activations", feature=7)                               the questions on which a feature is largest
ts.export(sae, "folder", "saelens"); ts.load_sae("folder")               to SAELens and back
reasoner.answers(tokens, edits=[ts.Edit(3, layer=14, function=sae)])     a thought replaced by its reconstruction
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.analysis import load_metrics
from thought_saes.analysis.grid import load_grid
from thought_saes.common.errors import InputError
from thought_saes.exports.export import write_sae
from thought_saes.exports.libraries import LIBRARIES
from thought_saes.exports.library import Exported, Origin
from thought_saes.exports.weights import Weights
from thought_saes.features.collect import rows_of
from thought_saes.figures.heatmaps import Quantity, draw
from thought_saes.figures.maps import EXPLAINED_VARIANCE, FEATURE_DEATH, FVU, MEAN_ACTIVATION, RECONSTRUCTION_LOSS
from thought_saes.models.reasoner import Edit, LatentReasoner
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.saes.checkpoint import load_sae
from thought_saes.saes.sae import SparseAutoencoder

__all__ = [
    "Edit",
    "LatentReasoner",
    "export",
    "heatmap",
    "load_metrics",
    "load_sae",
    "sae",
    "script",
    "top_rows",
]

PROJECT = Path(__file__).parents[1]
QUANTITIES = {
    quantity.metric: quantity
    for quantity in (EXPLAINED_VARIANCE, FEATURE_DEATH, FVU, MEAN_ACTIVATION, RECONSTRUCTION_LOSS)
}


def script(name: str, **flags: Any) -> None:
    """Run a script of the project in a process of its own; `latent_dims=(64, 128)` is `--latent-dims 64 128`.

    Raises InputError with what it said last if it fails.
    """
    words = [sys.executable, PROJECT / name]
    for flag, value in flags.items():
        values = value if isinstance(value, list | tuple) else () if value is True else (value,)
        words += ["--" + flag.replace("_", "-"), *values]
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([*map(str, words)], env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{name} ended with {done.returncode}: {(done.stderr.splitlines() or ['no word'])[-1]}")


def sae(results: Path | str, *, layer: int, position: int, latent_dim: int, k: int) -> SparseAutoencoder:
    """One SAE of a results folder. Raises FileNotFoundError, or ValueError if its file is damaged."""
    return load_sae(checkpoint_path(Path(results), SaeKey(Cell(layer, position), latent_dim, k)))


def heatmap(results: Path | str, metric: str = "fvu", *, latent_dim: int, k: int) -> Figure:
    """A metric of the SAEs of one latent_dim and k by layer and position; hatched where there is none.

    Raises InputError if the folder has no such metric.
    """
    grid = load_grid(Path(results), allow_partial=True)
    if metric not in grid.table:
        raise InputError(f"the SAEs in {results} have no metric '{metric}'; there are {', '.join(grid.table.columns)}")
    quantity = QUANTITIES.get(metric, Quantity(metric, metric, metric, "viridis"))
    matrix = grid.layer_position_matrix(metric, latent_dim, k)
    return draw(quantity, [("", matrix)], [f"k = {k}; latent_dim = {latent_dim}"], grid.position_0)


@torch.inference_mode()
def top_rows(sae: SparseAutoencoder, activations: Path | str, feature: int, n: int = 10) -> pd.DataFrame:
    """The n rows of its cell on which a feature of the SAE is largest in magnitude, with their questions.

    Columns: row, latent (signed), and those of examples.jsonl where the folder has it. The SAE's config says its cell.
    Raises InputError if the activations are damaged or lack the cell.
    """
    cache = ActivationCache(Path(activations))
    latents = sae.encode(rows_of(cache, Cell(sae.config["layer"], sae.config["position"])))[:, feature].numpy()
    order = np.argsort(-np.abs(latents), kind="stable")[:n]
    found = pd.DataFrame({"row": order, "latent": latents[order]})
    if not (cache.folder / "examples.jsonl").exists():
        return found
    examples = cache.examples()
    return found.join(pd.DataFrame([examples[row] for row in order]))


def export(sae: SparseAutoencoder, folder: Path | str, library: str = "saelens") -> Path:
    """Write one SAE for another library (saelens, sparsify or dictionary_learning) into `folder`, and return it.

    Raises InputError if the library has no class that computes what the SAE does.
    """
    cell = Cell(sae.config["layer"], sae.config["position"])
    key = SaeKey(cell, sae.latent_dim, sae.k)
    exported = Exported(key, Weights.of(sae), sae.config, sae.metrics, Origin(None, None, None))
    write_sae(exported, LIBRARIES[library], Path(folder))
    return Path(folder)
