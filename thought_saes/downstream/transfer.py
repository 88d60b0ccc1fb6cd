"""How well SAEs of one data set, A, reconstruct the thoughts of another, B, beside B's own SAEs, the mean and PCA.

A gap, fvu(A on B) - fvu(B on B), is that of two SAEs of the same cell, latent_dim and k on the same rows: B's
validation rows, with their own mean. Its interval resamples cells, since the SAEs of a cell share their rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.common.flags import Selection
from thought_saes.common.text import compact
from thought_saes.downstream.job import saes_there
from thought_saes.downstream.statistics import INTERVAL, N_RESAMPLES
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.results.recipe import Recipe
from thought_saes.results.store import Results
from thought_saes.saes.baselines import measure_baselines
from thought_saes.saes.measures import evaluate
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.rows import load_cells

TRANSFER_FILE = "transfer.json"
FEWEST_ROWS = 20  # validation rows of B


@dataclass(frozen=True)
class Transfer:
    """What is measured on what. Raises InputError if the parts do not belong together."""

    results: Path  # the SAEs of A
    cache: ActivationCache  # the rows of B
    against: Path | None  # the SAEs of B
    training: ActivationCache | None  # the rows of A

    def __post_init__(self) -> None:
        if (n_rows := len(self.cache.split.validation)) < FEWEST_ROWS:
            raise InputError(f"{self.cache.folder} has {n_rows} validation rows: transfer needs {FEWEST_ROWS}")
        if self.training is None:
            return
        here, there = self.training, self.cache
        if here.input_dim != there.input_dim:
            raise InputError(f"{here.folder} has {here.input_dim} columns, {there.folder} {there.input_dim}")
        models = {cache.metadata.get("model_fingerprint") for cache in (here, there)} - {None}
        if len(models) > 1:
            raise InputError(f"{here.folder} and {there.folder} are of different models")

    @cached_property
    def there(self) -> list[SaeKey]:
        """The SAEs of A at cells that B has."""
        found = [key for key in saes_there(self.results) if key.cell in self.cache.cells]
        if not found:
            raise InputError(f"{self.results} and {self.cache.folder} have no layer and position in common")
        return found

    def choose(
        self, layers: Selection, positions: Selection, latent_dims: Sequence[int] | None, k_values: Sequence[int] | None
    ) -> list[SaeKey]:
        """The chosen SAEs of A. Raises InputError if none is there, or if B's own lack one of them."""
        axes = [sorted(set(axis)) for axis in zip(*(key.values for key in self.there), strict=True)]
        chosen = [
            layers.resolve(axes[0], f"layers of the SAEs in {self.results}"),
            positions.resolve(axes[1], f"positions of the SAEs in {self.results}"),
        ]
        for flag, wanted, available in (("latent-dims", latent_dims, axes[2]), ("k-values", k_values, axes[3])):
            if absent := sorted(set(wanted or ()) - set(available)):
                raise InputError(f"{self.results} has no SAEs of --{flag} {absent[0]}; it has {compact(available)}")
            chosen.append(tuple(wanted or available))
        keys = [
            key for key in self.there if all(value in values for value, values in zip(key.values, chosen, strict=True))
        ]
        if not keys:
            raise InputError(f"{self.results} has no SAE of all that was chosen")
        if self.against is not None and (lacking := sorted(set(keys) - set(saes_there(self.against)))):
            raise InputError(f"{self.against} lacks {len(lacking)} of {len(keys)} SAEs, first {lacking[0]}")
        if self.training is not None and (cells := sorted({key.cell for key in keys} - set(self.training.cells))):
            raise InputError(f"{self.training.folder} lacks {len(cells)} cells of the SAEs, first {cells[0]}")
        return keys

    def sae(self, folder: Path, key: SaeKey, fingerprint: str | None) -> SparseAutoencoder:
        """An SAE of the folder; `fingerprint` is of the rows it must have been trained on, if it says so."""
        sae = Results(folder).sae(key, self.cache.input_dim)
        if fingerprint is not None and sae.config.get("activations", fingerprint) != fingerprint:
            raise InputError(f"{checkpoint_path(folder, key)} was trained on other activations than those given for it")
        return sae

    def cell(self, cell: Cell, keys: Sequence[SaeKey]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The records of a cell's SAEs, and its baselines."""
        device = torch.device("cpu")
        of_b = self.cache.fingerprint(cell)
        of_a = self.training.fingerprint(cell) if self.training else None
        train, validation = (rows[0] for rows in load_cells(self.cache, [cell], device))
        where = {"layer": cell.layer, "position": cell.position}
        records = []
        for key in keys:
            sae = self.sae(self.results, key, of_a)
            record = where | {"latent_dim": key.latent_dim, "k": key.k} | evaluate(sae, train, validation)
            # As its training measured it on A's validation rows: what the change of data takes is not all of the gap.
            record |= {"fvu_at_home": sae.metrics.get("fvu"), "own": None, "gap": None}
            if self.against is not None:
                own = self.sae(self.against, key, of_b)
                if differ := Recipe.of(sae.config).differences(Recipe.of(own.config)):
                    raise InputError(
                        f"{self.results} and {self.against} were trained by different recipes ({', '.join(differ)}): "
                        f"the gap would be theirs too"
                    )
                record["own"] = evaluate(own, train, validation)
                record["gap"] = record["fvu"] - record["own"]["fvu"]
            records.append(record)
        k_values = sorted({key.k for key in keys})
        baselines: dict[str, Any] = dict(where)
        fitted_on = {"a": None, "b": train}
        if self.training is not None:
            fitted_on["a"] = load_cells(self.training, [cell], device)[0][0]
        for name, rows in fitted_on.items():
            found = measure_baselines(rows, validation, k_values, []) if rows is not None else {}
            baselines |= {f"mean_of_{name}": found.get("mean"), f"pca_of_{name}": found.get("pca")}
        return records, baselines


def measure_transfer(
    transfer: Transfer, keys: Sequence[SaeKey], seed: int, on_progress: Callable[[int], object]
) -> dict[str, Any]:
    """Everything of `transfer.json` but its metadata. `on_progress(1)`: a cell is done."""
    records, baselines = [], []
    for cell in sorted({key.cell for key in keys}):
        of_cell, beside = transfer.cell(cell, [key for key in keys if key.cell == cell])
        records += of_cell
        baselines.append(beside)
        on_progress(1)
    return {"gaps": gaps(records, seed) if transfer.against else [], "records": records, "baselines": baselines}


def gaps(records: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The mean gap over all SAEs, `latent_dim` and `k` None, then that of each configuration, with intervals.

    SAEs without one, as of a cell whose rows are all equal, are left out.
    """
    known = [record for record in records if np.isfinite(record["gap"])]
    families: dict[tuple[int | None, int | None], list[dict[str, Any]]] = {(None, None): known} if known else {}
    for record in known:
        families.setdefault((record["latent_dim"], record["k"]), []).append(record)
    found = []
    for (latent_dim, k), family in families.items():
        values = np.array([record["gap"] for record in family])
        cells = [(record["layer"], record["position"]) for record in family]
        found.append(
            {
                "latent_dim": latent_dim,
                "k": k,
                "n_saes": len(family),
                "n_cells": len(set(cells)),
                "fvu": float(np.mean([record["fvu"] for record in family])),
                "fvu_own": float(np.mean([record["own"]["fvu"] for record in family])),
                "gap": float(values.mean()),
                "gap_interval": interval_over_cells(values, cells, seed),
            }
        )
    return found


def interval_over_cells(values: np.ndarray, cells: Sequence[tuple[int, int]], seed: int) -> list[float] | None:
    """The percentile interval of 95 % of the mean of values (n,), cells drawn with replacement; None for one cell."""
    names, cell_of = np.unique(np.array(cells), axis=0, return_inverse=True)
    n_cells = len(names)
    if n_cells < 2:
        return None
    sums = np.bincount(cell_of.ravel(), values, n_cells)
    sizes = np.bincount(cell_of.ravel(), minlength=n_cells)
    draws = np.random.default_rng([seed, 6]).integers(n_cells, size=(N_RESAMPLES, n_cells))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    return [float(value) for value in np.percentile(means, INTERVAL)]
