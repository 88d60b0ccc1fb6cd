"""Several results folders read as one grid: each holds the same SAEs, trained from another seed.

The baselines of a cell (`baselines_pos*_layer*.json`) become columns of its SAEs: `mean_*` is predicting the
training mean, `pca_*` PCA of rank k, `untrained_*` an untrained SAE of the same shape, each as explained_variance and
as fvu; `gaussian_fvu` and `gaussian_pca_fvu` are of an SAE and of PCA on Gaussian rows of the same mean and covariance;
`gamma`, `effective_rank` and `mean_norm` describe the cell. Without such files the columns are absent.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thought_saes.activations.cell import Cell
from thought_saes.analysis.grid import Grid, load_grid
from thought_saes.common.errors import InputError
from thought_saes.common.text import compact
from thought_saes.results.names import AXES, baselines_path
from thought_saes.results.recipe import Recipe
from thought_saes.results.store import Results

# Replicates differ in the seed and in nothing else that decides what is trained.
SAME_SETTINGS = ["n_train", "n_val", "input_dim", *(field.name for field in dataclasses.fields(Recipe))]
SAME_SETTINGS += ["activations", "position_0"]
SCORES = ("explained_variance", "fvu")
# These do not depend on the seed of an SAE, so one folder's files serve all.
CELL_BASELINES = [
    *(f"{baseline}_{score}" for baseline in ("mean", "pca") for score in SCORES),
    "gamma",
    "effective_rank",
    "mean_norm",
]
BASELINES = [*CELL_BASELINES, *(f"untrained_{score}" for score in SCORES), "gaussian_fvu", "gaussian_pca_fvu"]


def shown(path: Path) -> str:
    """A path as it may stand in what is written: as typed, or the last name of an absolute one."""
    return path.name if path.is_absolute() else str(path)


def recorded(config: Any) -> dict[str, Any]:
    """The flags of an analysis or its figures as they go into what is written: no path of this machine."""
    paths = {"results": [shown(path) for path in config.results], "output": config.output and shown(config.output)}
    record = dataclasses.asdict(config) | paths
    del record["dry_run"]  # what is written was no dry run
    return record


def read_baselines(results: Path, table: pd.DataFrame, metadata: pd.DataFrame) -> pd.DataFrame:
    """BASELINES of each SAE of `table`, NaN where there is no finite value; no columns where no cell has a file.

    Raises InputError if a file is damaged or is of other activations than the cell's SAEs.
    """
    store = Results(results)
    cells = sorted({Cell(*pair) for pair in table[["layer", "position"]].itertuples(index=False, name=None)})
    contents = {cell: content for cell in cells if (content := store.baselines(cell)) is not None}
    if not contents:
        return pd.DataFrame(index=table.index)
    for cell, content in contents.items():
        here = metadata[(metadata["layer"] == cell.layer) & (metadata["position"] == cell.position)]
        theirs = content["metadata"].get("activations")
        if "activations" in here and theirs is not None and not here["activations"].dropna().eq(theirs).all():
            raise InputError(
                f"{baselines_path(results, cell)} is of other activations ({theirs}) than the SAEs "
                f"({here['activations'].iloc[0]}): make it anew"
            )

    def of_one(sae: Any) -> dict[str, float | None]:
        content = contents.get(Cell(sae.layer, sae.position))
        if content is None:
            return {}
        scored: dict[str, Mapping[str, float]] = {
            "mean": content["mean"],
            "pca": content["pca"].get(str(sae.k), {}),
            "untrained": content["untrained"].get(str(sae.latent_dim), {}).get(str(sae.k), {}),
        }
        gaussian = (content.get("gaussian") or {}).get(str(sae.latent_dim), {}).get(str(sae.k), {})
        scores = {f"{name}_{score}": values.get(score) for name, values in scored.items() for score in SCORES}
        scores |= {f"gaussian_{score}": gaussian.get(score) for score in ("fvu", "pca_fvu")}
        return scores | {name: content.get(name) for name in ("gamma", "effective_rank", "mean_norm")}

    columns = pd.DataFrame([of_one(sae) for sae in table.itertuples()], index=table.index, columns=BASELINES)
    return columns.apply(pd.to_numeric).replace([np.inf, -np.inf], np.nan)


def difference(folder: Path, grid: Grid, first_folder: Path, first: Grid) -> str | None:
    """In words, the first way in which `grid` is no replicate of `first`; None if it is one."""
    for axis in AXES:
        there, here = first.values(axis), grid.values(axis)
        if there != here:
            return f"{folder} has {axis} {compact(here)}, {first_folder} has {compact(there)}"
    files = ["layer", "position"]
    cells, first_cells = (
        table.reindex(columns=[*files, *SAME_SETTINGS]).drop_duplicates(files).set_index(files).sort_index()
        for table in (grid.metadata, first.metadata)
    )
    for name in SAME_SETTINGS:
        both = pd.concat([first_cells[name], cells[name]], axis=1, keys=["first", "this"]).dropna(how="all")
        unlike = both[both["first"].ne(both["this"])].loc[lambda rows: rows.index.isin(first_cells.index)]
        unlike = unlike.loc[unlike.index.isin(cells.index)]
        if not unlike.empty:
            (layer, position), values = unlike.index[0], unlike.iloc[0]
            where = f"layer {layer}, position {position}"
            return f"at {where} {name} is {values['this']} in {folder} and {values['first']} in {first_folder}"
    return None


def load_replicates(folders: Sequence[Path], allow_partial: bool = False) -> Grid:
    """The SAEs of every folder as one grid, with their baselines.

    Raises InputError, naming the difference, if the folders are not the same grid trained from different seeds.
    """
    grids = [load_grid(folder, allow_partial) for folder in folders]
    first_folder, first = folders[0], grids[0]
    for folder, grid in zip(folders, grids, strict=True):
        if len(folders) > 1 and not grid.seeds:
            raise InputError(f"the metrics files in {folder} record no seed: analyse that folder alone")
    for number, (folder, grid) in enumerate(zip(folders, grids, strict=True)):
        for earlier_folder, earlier in zip(folders[:number], grids[:number], strict=True):
            if earlier.seeds == grid.seeds:
                raise InputError(f"{earlier_folder} and {folder} are both of seed {grid.seeds[0]}: give one of them")
        if unlike := difference(folder, grid, first_folder, first):
            raise InputError(f"the folders are no replicates of one grid: {unlike}")
    tables = [
        grid.table.join(read_baselines(folder, grid.table, grid.metadata))
        for folder, grid in zip(folders, grids, strict=True)
    ]
    by = [*AXES, *(["seed"] if first.seeds else [])]
    table = pd.concat(tables).sort_values(by, ignore_index=True)
    known = [name for name in CELL_BASELINES if name in table]
    if known:
        table[known] = table.groupby(AXES)[known].transform("first")
    return Grid(
        table=table,
        missing=sorted(sae for grid in grids for sae in grid.missing),
        position_0=first.position_0,
        metadata=pd.concat([grid.metadata for grid in grids], ignore_index=True),
        seeds=tuple(sorted(seed for grid in grids for seed in grid.seeds)),
        folders=tuple(folders),
    )
