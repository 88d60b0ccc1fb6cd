"""The grid of SAEs: its values, the names of its files, and its metrics as one table.

The experiment trains one SAE for every layer x position x latent_dim x k. This is the only place that knows the
published values, the file names, and how the metrics files are read.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.common.errors import InputError
from thought_saes.results.names import AXES, SLICE_K, SLICE_LATENT_DIM
from thought_saes.results.store import Results
from thought_saes.saes.measures import ADDED_METRICS, PUBLISHED_METRICS


class Grid(NamedTuple):
    """Every SAE that the results hold, of one seed or of several, and those they should hold but do not."""

    # One row an SAE, sorted by AXES: the four AXES, its seed if recorded, then its metrics. NaN is a metric absent
    # or not finite.
    table: pd.DataFrame
    missing: list[tuple[int, int, int, int]]  # in the order of AXES; one entry for each seed that lacks the SAE
    position_0: str  # 'bot token' or 'last question token'
    metadata: pd.DataFrame  # one row a metrics file
    seeds: tuple[int, ...] = ()  # those recorded: none by the original
    folders: tuple[Path, ...] = ()  # the results folders it was read from

    def values(self, axis: str) -> list[int]:
        """The values along one of AXES, ascending, those of missing SAEs included."""
        index = AXES.index(axis)
        return sorted(set(self.table[axis].tolist()) | {sae[index] for sae in self.missing})

    def describe_files(self, folders: Sequence[Path]) -> str:
        """What was read, for a dry run."""
        missing = f"; {len(self.missing):,} are missing" if self.missing else ""
        where = ", ".join(map(str, folders))
        return f"read: {len(self.table):,} SAEs from {len(self.metadata):,} metrics files in {where}{missing}"

    def layer_position_matrix(self, metric: str, latent_dim: int, k: int) -> pd.DataFrame:
        """One metric of one (latent_dim, k), mean over seeds: a row a layer, a column a position, NaN where absent."""
        saes = self.table[(self.table["latent_dim"] == latent_dim) & (self.table["k"] == k)]
        matrix = saes.pivot_table(index="layer", columns="position", values=metric, aggfunc="mean")
        return matrix.reindex(index=self.values("layer"), columns=self.values("position")).astype(float)


class Slice(NamedTuple):
    """Every SAE of one (k, latent_dim): what layer and position effects and single heatmaps show."""

    k: int
    latent_dim: int
    note: str  # says which value stands in for a published one that the grid lacks; else empty


def load_grid(results: Path, allow_partial: bool = False) -> Grid:
    """Read every metrics file in `results`, ours or the original experiment's.

    The full grid is every combination of the values that were planned or found. Raises InputError if there
    is no metrics file, if one is damaged, if two hold the same SAE, or, without `allow_partial`, if an SAE
    is missing.
    """
    store = Results(results)
    rows, files = [], []
    position_0 = "bot token"  # the original wrote no such key, and its model had one
    for file in store.metrics_files():
        position_0 = file.metadata.get("position_0", position_0)
        seed = {} if file.run.seed is None else {"seed": file.run.seed}
        files.append({**file.metadata, **file.run.recipe.record(), "file": file.path.name})
        for k, metrics in file.by_k.items():
            rows.append({**file.cell._asdict(), **seed, "latent_dim": file.latent_dim, "k": k} | metrics)
    if not files:
        raise InputError(f"no metrics in {results}: train_all_layers_positions.py writes them")
    if not rows:
        raise InputError(f"the metrics files in {results} hold no SAE")
    table = pd.DataFrame(rows).sort_values(AXES, ignore_index=True)
    seeds = sorted(set(table["seed"].dropna().astype(int))) if "seed" in table else []
    if len(seeds) > 1 or (seeds and table["seed"].isna().any()):
        raise InputError(
            f"the metrics files in {results} are of several seeds ({', '.join(map(str, seeds))}"
            f"{', none' if table['seed'].isna().any() else ''}): keep each seed in a folder of its own"
        )
    for metric in [*PUBLISHED_METRICS, *(name for name in ADDED_METRICS if name in table)]:
        try:
            numbers = pd.to_numeric(table.get(metric, pd.Series(np.nan, table.index)))
        except (ValueError, TypeError) as problem:
            raise InputError(f"a metrics file in {results} has a {metric} that is no number ({problem})") from problem
        table[metric] = numbers.replace([np.inf, -np.inf], np.nan)
    if (repeated := table.duplicated(AXES)).any():
        sae = ", ".join(f"{axis} {table.loc[repeated.idxmax(), axis]}" for axis in AXES)
        raise InputError(f"two metrics files in {results} hold the SAE of {sae}: remove one of them")
    planned = store.plan()
    values = [sorted(set(table[axis].tolist()) | set(planned.get(axis, []))) for axis in AXES]
    present = set(table[AXES].itertuples(index=False, name=None))
    missing = [sae for sae in product(*values) if sae not in present]
    if missing and not allow_partial:
        raise InputError(
            f"{len(missing):,} of {len(missing) + len(table):,} SAEs are missing in {results}: "
            f"{describe_missing(missing)}; train them, or use --allow-partial"
        )
    return Grid(table, missing, position_0, pd.DataFrame(files), tuple(seeds), (results,))


def describe_missing(missing: Sequence[tuple[int, int, int, int]], at_most: int = 8) -> str:
    """The missing SAEs in words, those of one (layer, position) together."""
    by_cell: dict[tuple[int, int], list[str]] = {}
    for layer, position, latent_dim, k in missing:
        by_cell.setdefault((layer, position), []).append(f"d{latent_dim}_k{k}")
    shown = [
        f"layer {layer} position {position} ({', '.join(saes) if len(saes) <= 3 else f'{len(saes)} SAEs'})"
        for (layer, position), saes in list(by_cell.items())[:at_most]
    ]
    return "; ".join(shown) + (f"; and {len(by_cell) - at_most} more cells" if len(by_cell) > at_most else "")


def stand_in(wanted: int, published: int, available: Sequence[int], name: str) -> int:
    """`wanted` if the grid has it; the middle value where the grid lacks the published one.

    Raises InputError if another value was asked for that the grid lacks.
    """
    if wanted in available:
        return wanted
    if wanted != published:
        raise InputError(f"the grid has no {name} {wanted}; it has {', '.join(map(str, available))}")
    return sorted(available)[len(available) // 2]


def choose_slice(grid: Grid, k: int, latent_dim: int) -> Slice:
    """The wanted slice, or the middle values where the grid lacks the published ones.

    Raises InputError if the grid lacks another value that was asked for, or has no SAE of the slice yet.
    """
    notes = []
    chosen = {}
    for axis, wanted, published in (("k", k, SLICE_K), ("latent_dim", latent_dim, SLICE_LATENT_DIM)):
        chosen[axis] = stand_in(wanted, published, grid.values(axis), axis)
        if chosen[axis] != wanted:
            notes.append(f"no {axis} {wanted}: {chosen[axis]} stands in")
    note = f"this grid has {'; '.join(notes)}" if notes else ""
    picked = Slice(chosen["k"], chosen["latent_dim"], note)
    trained = grid.table[(grid.table["k"] == picked.k) & (grid.table["latent_dim"] == picked.latent_dim)]
    if trained.empty:
        pairs = grid.table[["k", "latent_dim"]].drop_duplicates().itertuples(index=False, name=None)
        there = ", ".join(f"--k {k} --latent-dim {latent_dim}" for k, latent_dim in sorted(pairs))
        raise InputError(f"no SAE of k {picked.k}, latent_dim {picked.latent_dim} is trained yet; there are {there}")
    return picked
