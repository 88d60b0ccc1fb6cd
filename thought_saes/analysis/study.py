"""Which configurations are good, judged by `fvu`: pure functions from the table of SAEs to tables.

A configuration is a (layer, position, latent_dim, k); with several seeds it has an SAE of each. Its quality is its
error: the mean over seeds of `fvu`, or of 1 - explained_variance where the files hold no fvu. Low is good.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.activations.cell import Cell
from thought_saes.analysis.grid import Grid, Slice
from thought_saes.analysis.variance import Decomposition, decompose
from thought_saes.results.names import AXES

EV = "explained_variance"
DEATH = "feature_death_rate"
FVU = "fvu"
ERROR = "error"
RELATIVE = "relative"
# fvu on the halves of the validation rows: configurations are chosen on the first and quoted on the second.
HALVES = ("fvu_selection", "fvu_report")
# At most this share of dead features, for a recommendation to those who study single features.
FEW_DEAD = 0.10
# An SAE in which fewer than this many times k features ever fire uses (nearly) the same ones on every row: with only k
# of them it is an affine map of rank k, and chooses nothing.
COLLAPSED_BELOW = 2
# A validation row that holds more or fewer latents than k by more than this share: the SAE is of another sparsity.
OFF_K = 0.05


def has(table: pd.DataFrame, *columns: str) -> bool:
    """Whether each of `columns` is there with at least one finite value."""
    return all(column in table and bool(table[column].notna().any()) for column in columns)


def error_metric(table: pd.DataFrame) -> str:
    return FVU if has(table, FVU) else EV


def error_name(table: pd.DataFrame) -> str:
    return FVU if has(table, FVU) else "1 - explained_variance"


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what the conclusions are drawn from.

    - `error`: fvu, or 1 - explained_variance where the files hold no fvu.
    - `choice`, `quoted`: its value on the half of the validation rows that configurations are chosen on, and on the
      half that the chosen ones are quoted on; both `error` where the files do not tell the halves apart.
    - `relative`: fvu over that of PCA of rank k, NaN without baselines: below 1 the SAE is better.
    - `can_collapse`: whether latent_dim is at least 2k; below, fewer than 2k features fire by definition.
    - `collapsed`: fewer than 2k features ever fire though it could be more; False where the number is unknown.
    - `l0_off`: by what share of k the number of latents of a validation row is more than k; `off_k`: whether it is more
      or less by over 5 %. False where it is unknown. An SAE is brought to k latents a row on its training rows.
    """
    error = table[FVU] if has(table, FVU) else 1 - table[EV]
    halves = table[list(HALVES)] if has(table, *HALVES) else pd.DataFrame(dict.fromkeys(HALVES, error))
    l0_off = table["l0_mean"] / table["k"] - 1 if has(table, "l0_mean") else pd.Series(np.nan, table.index)
    can_collapse = table["latent_dim"] >= COLLAPSED_BELOW * table["k"]
    return table.assign(
        error=error,
        choice=halves[HALVES[0]],
        quoted=halves[HALVES[1]],
        relative=table[FVU] / table["pca_fvu"] if has(table, FVU, "pca_fvu") else np.nan,
        can_collapse=can_collapse,
        collapsed=can_collapse & (table["num_active_features"] < COLLAPSED_BELOW * table["k"]),
        l0_off=l0_off,
        off_k=l0_off.abs() > OFF_K,
    )


def better_than_pca(saes: pd.DataFrame) -> tuple[int, int] | None:
    """How many SAEs have a lower fvu than PCA of rank k, of how many with both known; None where none has."""
    if not has(saes, FVU, "pca_fvu"):
        return None
    compared = saes.dropna(subset=[FVU, "pca_fvu"])
    return int((compared[FVU] < compared["pca_fvu"]).sum()), len(compared)


def over_seeds(saes: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean of `column` for each value of `by`, within each seed; of these the `mean` and the `sd` over seeds."""
    seeds = saes["seed"] if "seed" in saes else pd.Series(0, saes.index, name="seed")
    per_seed = saes[column].groupby([*(saes[axis] for axis in by), seeds]).mean()
    groups = per_seed.groupby(level=list(range(len(by))))
    return pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=1)})


def configurations(grid: Grid) -> pd.DataFrame:
    """A row a configuration: AXES, the mean over seeds of every metric, and of some the `<metric>_sd` over seeds.

    `collapsed` and `off_k` if it is so in any seed; `eligible` for a recommendation if it has collapsed in none and its
    error is below 1, that of predicting the mean.
    """
    saes = judged(grid.table)
    groups = saes.groupby(AXES)
    numbers = [name for name in saes.select_dtypes("number") if name not in [*AXES, "seed"]]
    table = groups[numbers].mean()
    spreads = [name for name in (ERROR, "quoted", EV, DEATH, "fvu_train") if name in table]
    table = table.join(groups[spreads].std(ddof=1).add_suffix("_sd"))
    table["can_collapse"] = groups["can_collapse"].all()
    table["collapsed"] = groups["collapsed"].any()
    table["off_k"] = groups["off_k"].any()
    table["saes"] = groups.size()
    table["eligible"] = ~table["collapsed"] & (table[ERROR] < 1)
    return table.reset_index()


def best(configs: pd.DataFrame, column: str = ERROR, highest: bool = False, count: int = 1) -> pd.DataFrame:
    """The `count` rows of lowest (or highest) `column`; of equal ones the first."""
    return configs.dropna(subset=[column]).sort_values(column, ascending=not highest, kind="stable").head(count)


def cell_bests(configs: pd.DataFrame) -> pd.DataFrame:
    """Of each layer x position the eligible configuration of lowest error; cells without one are absent."""
    eligible = configs[configs["eligible"]]
    return eligible.loc[eligible.groupby(["layer", "position"])[ERROR].idxmin()]


def pareto_front(points: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Whether each row is on the front of `columns`, each of which is better the lower it is.

    A row is dominated if another is at most as high in every column and lower in at least one; equal rows do not
    dominate each other. A row with a NaN is not on the front and dominates none.
    """
    values = points[list(columns)].to_numpy(dtype=float)
    on_front = ~np.isnan(values).any(axis=1)
    for row, value in enumerate(values):
        if on_front[row]:
            # A comparison with NaN is False.
            dominating = (values <= value).all(axis=1) & (values < value).any(axis=1)
            on_front[row] = not dominating.any()
    return pd.Series(on_front, points.index)


def pareto_per_cell(configs: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Like `pareto_front`, each layer x position judged by itself, collapsed configurations left out as absent."""
    on_front = pd.Series(False, configs.index)
    for _, cell in configs[~configs["collapsed"]].groupby(["layer", "position"]):
        on_front[cell.index] = pareto_front(cell, columns)
    return on_front


def rank_correlation(left: pd.Series, right: pd.Series) -> float:
    """Spearman's, over the rows that have both; NaN where one of them is constant or fewer than three have both."""
    both = pd.concat([left, right], axis=1).dropna()
    if len(both) < 3 or both.nunique().min() < 2:
        return float("nan")
    return float(both.iloc[:, 0].corr(both.iloc[:, 1], method="spearman"))


class Study(NamedTuple):
    """What the sections of the report are computed from."""

    grid: Grid
    chosen: Slice  # the one k and latent_dim of the layer x position matrices
    saes: pd.DataFrame  # grid.table with `error` and `collapsed`
    configs: pd.DataFrame  # see `configurations`
    bests: pd.DataFrame  # see `cell_bests`
    error: str  # what `error` is: 'fvu' or '1 - explained_variance'
    variance: dict[str, Decomposition | None]  # by metric, over every k: shares only
    log_variance: Decomposition | None  # of the logarithm of the error, over every k: shares only
    variance_by_k: dict[int, Decomposition | None]  # of the logarithm of the error, F and p from the k's own seeds

    @property
    def folders(self) -> tuple[Path, ...]:
        """The results folders."""
        return self.grid.folders

    @property
    def n_seeds(self) -> int:
        return max(1, len(self.grid.seeds))

    @property
    def has_fvu(self) -> bool:
        return self.error == FVU

    @property
    def has_halves(self) -> bool:
        """Whether configurations are chosen on other validation rows than they are quoted on."""
        return has(self.saes, *HALVES)

    @property
    def flat_cells(self) -> list[Cell]:
        """The cells of which no SAE has a finite error: their activations are constant, or their files damaged."""
        known = self.saes.groupby(["layer", "position"])[ERROR].count()
        return [Cell(*map(int, pair)) for pair in known.index[known == 0]]


def make_study(grid: Grid, chosen: Slice) -> Study:
    configs, saes = configurations(grid), judged(grid.table)
    pooled = {metric: decompose(grid.table, metric) for metric in (error_metric(grid.table), DEATH)}
    logs = saes.assign(log_error=np.log(saes[ERROR].where(saes[ERROR] > 0)))
    log_variance = decompose(logs, "log_error")
    return Study(
        grid=grid,
        chosen=chosen,
        saes=saes,
        configs=configs,
        bests=cell_bests(configs),
        error=error_name(grid.table),
        # The spread between seeds differs by k: one error term for all of them would make F and p wrong.
        variance={metric: found and found.without_tests() for metric, found in pooled.items()},
        log_variance=log_variance and log_variance.without_tests(),
        variance_by_k={k: decompose(logs[logs["k"] == k], "log_error") for k in grid.values("k")},
    )
