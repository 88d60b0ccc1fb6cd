"""Several recipes over the same grid, each of one seed or of several, paired by cell.

A pair is a layer, position, latent_dim and k that all recipes have, of the seeds that all have; a recipe's value is the
geometric mean over them (an arithmetic one would be the larger the more it varies, and so the more seeds). The cells
of a grid are not independent draws, so an interval is a bootstrap over cells, all pairs of a cell together: it says how
the difference would vary over other cells of the same kind, not over other models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import DEATH, ERROR, RELATIVE, judged
from thought_saes.common.errors import InputError
from thought_saes.results.names import AXES

N_RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


class Difference(NamedTuple):
    """Of log error, second recipe minus first, as a ratio: below 1 the second is better."""

    k: int
    first: str
    second: str
    pairs: int
    ratio: float  # geometric mean over pairs
    low: float  # a 95 % interval over cells
    high: float
    wins: int  # cells in which the second's lowest error over latent_dim is lower
    cells: int


def read_recipes(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Folders grouped by recipe: those of one parent that are replicates, else each by its own name; a row an SAE.

    A folder that holds metrics is a recipe of one seed; a folder of such folders is a recipe of several seeds.
    Raises InputError if one holds neither, or two have the same name.
    """
    found: dict[str, pd.DataFrame] = {}
    for folder in folders:
        seeds = (
            [folder]
            if any(folder.glob("grid_metrics_*.json"))
            else sorted(child for child in folder.glob("*/") if any(child.glob("grid_metrics_*.json")))
        )
        if not seeds:
            raise InputError(f"no metrics in {folder}, nor in the folders in it")
        if folder.name in found:
            raise InputError(f"two recipes are called {folder.name}: give folders of different names")
        found[folder.name] = judged(load_replicates(seeds, allow_partial=True).table)
    return found


def common(recipes: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Each recipe's SAEs that all of them have, of the same seeds if any are shared, else of whatever seeds.

    Raises InputError if there is none.
    """
    with_seeds = {name: table.assign(seed=table.get("seed", -1)) for name, table in recipes.items()}
    for by in ([*AXES, "seed"], AXES):
        indices = [pd.MultiIndex.from_frame(table[by].drop_duplicates()) for table in with_seeds.values()]
        shared = indices[0]
        for index in indices[1:]:
            shared = shared.intersection(index)
        if len(shared):
            return {
                name: table[pd.MultiIndex.from_frame(table[by]).isin(shared)].sort_values([*AXES, "seed"])
                for name, table in with_seeds.items()
            }
    raise InputError("the recipes have no SAE in common")


def errors(saes: pd.DataFrame) -> pd.Series:
    """By configuration (AXES), the geometric mean of its error over seeds; those of no positive error are left out."""
    known = saes[saes[ERROR] > 0]
    return np.exp(np.log(known[ERROR]).groupby([known[axis] for axis in AXES]).mean())


def summary(recipes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each k and recipe: medians and means over its SAEs."""
    rows = []
    for name, saes in recipes.items():
        for k, group in saes.groupby("k"):
            alive = group["num_active_features"] if "num_active_features" in group else pd.Series(dtype=float)
            able = group[group["can_collapse"]]
            gap = group["fvu"] / group["fvu_train"] if {"fvu", "fvu_train"} <= set(group) else pd.Series(dtype=float)
            best = group.groupby(["layer", "position"])[RELATIVE].min().dropna()
            rows.append(
                {
                    "k": int(k),
                    "recipe": name,
                    "saes": len(group),
                    "error": group[ERROR].mean(),
                    "relative": group[RELATIVE].median(),
                    "cells_below_pca": int((best < 1).sum()),
                    "cells": len(best),
                    "dead": group[DEATH].mean(),
                    "collapsed": int(able["collapsed"].sum()),
                    "can_collapse": len(able),
                    "l0_off": group["l0_off"].mean(),
                    "off_k": int(group["off_k"].sum()),
                    "alive": alive.mean(),
                    "gap": float(np.exp(np.log(gap[gap > 0]).mean())) if len(gap) else float("nan"),
                    "seconds": group["train_time_sec"].mean(),
                }
            )
    return pd.DataFrame(rows).sort_values(["k"], kind="stable", ignore_index=True)


def interval_over_cells(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(low, high) of the mean over all pairs when cells are resampled; sums and counts (cells,) of each one's pairs."""
    draws = np.random.default_rng(0).integers(len(sums), size=(N_RESAMPLES, len(sums)))
    return np.quantile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), INTERVAL)


def difference(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], k: int) -> Difference | None:
    """None where no pair of that k has a positive error on both sides. Both tables as `common` gives them."""
    cells = ["layer", "position"]
    both = pd.concat({"first": errors(first), "second": errors(second)}, axis=1).dropna().reset_index()
    both = both[both["k"] == k]
    if both.empty:
        return None
    logs = np.log(both["second"] / both["first"])
    by_cell = logs.groupby([both[cell] for cell in cells])
    sums, counts = by_cell.sum().to_numpy(), by_cell.size().to_numpy()
    low, high = np.exp(interval_over_cells(sums, counts)) if len(sums) > 1 else (float("nan"), float("nan"))
    lowest = both.groupby(cells)[["first", "second"]].min()
    return Difference(
        k,
        *names,
        len(both),
        float(np.exp(logs.mean())),
        float(low),
        float(high),
        int((lowest["second"] < lowest["first"]).sum()),
        len(lowest),
    )


def differences(recipes: Mapping[str, pd.DataFrame]) -> list[Difference]:
    """Each recipe against the first, at every k."""
    (base, reference), *others = recipes.items()
    ks = sorted(map(int, reference["k"].unique()))
    found = [difference(reference, configs, (base, name), k) for name, configs in others for k in ks]
    return [one for one in found if one is not None]


def winners(recipes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """By k (rows) and recipe (columns): the cells in which its lowest error over latent_dim is the lowest of all."""
    by_cell = ["k", "layer", "position"]
    lowest = pd.concat({name: errors(saes).groupby(by_cell).min() for name, saes in recipes.items()}, axis=1).dropna()
    best = lowest.idxmin(axis=1)
    return pd.crosstab(best.index.get_level_values("k"), best).reindex(columns=list(recipes), fill_value=0)
