"""What a grid of SAEs shows, concluded once: the report, the terminal and the figures only phrase it.

Every conclusion is drawn at each k by itself. fvu falls with k, so a "best" over all k is always at the largest; and
the spread between seeds differs by k, so no test may pool them.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.activations.cell import Cell
from thought_saes.analysis.relative import Ease, Order, Place, ease, order, place
from thought_saes.analysis.study import DEATH, ERROR, EV, FVU, RELATIVE, Study, best, has, over_seeds, rank_correlation
from thought_saes.analysis.told_apart import told_apart
from thought_saes.common.errors import InputError

# An SAE is called collapsed below 2k features; these say how the count depends on that.
THRESHOLDS = (1.5, 2.0, 3.0)
BUSIEST = 10
# The ten busiest features fire on (nearly) every row if their share of all firings reaches this part of its ceiling.
EVERY_ROW = 0.999


class Reason(Enum):
    """Why no SAE of a k is recommended."""

    COLLAPSED = "every one has collapsed or has no finite fvu"
    MEAN = "none is better than predicting the mean"
    PCA = "none that has not collapsed is better than PCA of the same k"


class Recommendation(NamedTuple):
    """What to use at one k."""

    k: int
    config: pd.Series | None  # a row of Study.configs; None where nothing is worth using
    reason: Reason | None  # why there is none
    cells: int  # that have an SAE worth using
    all_cells: int
    layers: tuple[int, ...]  # with such a cell
    against_pca: bool  # whether PCA was known to compare with
    others: int  # other configurations worth using at this k
    told_apart: int | None  # of those, by Welch's t with Holm's correction; None with one seed


class Control(NamedTuple):
    """SAEs on real rows and on Gaussian rows of the same mean and covariance, each relative to PCA; geometric means."""

    cells: int
    real: float
    gaussian: float
    better_on_real: int  # cells whose real rows are the better ones

    @property
    def shows_structure(self) -> bool:
        return self.cells > 0 and self.better_on_real > self.cells / 2 and self.real < self.gaussian


class Gamma(NamedTuple):
    """Rank correlation over cells of the dead share with gamma."""

    pooled: float
    within: dict[int, float]  # by position, over its layers; positions with at least three of them

    @property
    def median(self) -> float:
        return float(np.median(list(self.within.values()))) if self.within else float("nan")

    @property
    def turned(self) -> bool:
        """Whether pooling shows the opposite sign of most positions."""
        return bool(self.pooled * self.median < 0)


class AtK(NamedTuple):
    """What is concluded at one k."""

    k: int
    saes: int
    error: tuple[float, float]  # mean and sd over seeds
    median: float
    no_better: int | None  # SAEs no better than predicting the mean
    dead: tuple[float, float]
    can_collapse: int  # SAEs with latent_dim >= 2k
    collapsed: dict[float, int]  # of those, with fewer than so many times k features that ever fire
    relative: float  # median of fvu over that of PCA of rank k
    better_than_pca: tuple[int, int] | None  # of how many
    every_row: int | None  # SAEs whose ten busiest features fire on every row; None where k < 10 or unknown
    busiest: float  # median share of all firings that the ten busiest take, of its ceiling 10 / k
    gap: float  # geometric mean of fvu over fvu_train
    off_k: int  # SAEs whose validation rows hold more or fewer latents than k by over 5 %
    l0_off: float  # mean over those of the share by which they hold more
    layers: Order
    positions: Order
    ease: Ease
    gamma: Gamma | None
    control: Control | None
    one_size: tuple[int, float] | None  # the best single latent_dim, and its fvu over that of each cell's own best
    recommendation: Recommendation
    focus: Place | None


class Findings(NamedTuple):
    """The conclusions from a Study."""

    study: Study
    at: tuple[AtK, ...]  # by k, ascending
    focus: Cell | None  # the cell that was asked about
    identity: float | None  # largest deviation of (1 - EV) / (1 - floor) from fvu, as a share of fvu

    @property
    def recommended(self) -> list[Recommendation]:
        return [at.recommendation for at in self.at if at.recommendation.config is not None]

    @property
    def collapsed(self) -> tuple[int, int]:
        """How many SAEs have collapsed, of how many that can."""
        return sum(at.collapsed[2.0] for at in self.at), sum(at.can_collapse for at in self.at)

    @property
    def turned(self) -> list[int]:
        """The k at which the layer that is first by fvu is among the last relative to PCA."""
        return [at.k for at in self.at if at.layers.turned]


def worth_using(study: Study, k: int) -> tuple[pd.DataFrame, Reason | None]:
    """The configurations of one k that have not collapsed and are better than the mean and, where known, than PCA."""
    at_k = study.configs[study.configs["k"] == k]
    alive = at_k[~at_k["collapsed"] & at_k[ERROR].notna()]
    if alive.empty:
        return alive, Reason.COLLAPSED
    better = alive[alive[ERROR] < 1]
    if better.empty:
        return better, Reason.MEAN
    if has(alive, RELATIVE):
        better = better[~(better[RELATIVE] >= 1)]
    return better, Reason.PCA if better.empty else None


def recommend(study: Study, k: int) -> Recommendation:
    candidates, reason = worth_using(study, k)
    at_k = study.configs[study.configs["k"] == k]
    chosen = best(candidates, "choice")
    config = chosen.iloc[0] if len(chosen) else None
    apart = None
    if config is not None and study.n_seeds > 1:
        apart = int(told_apart(candidates[ERROR], candidates[f"{ERROR}_sd"], config.name, study.n_seeds).sum())
    cells = ["layer", "position"]
    return Recommendation(
        k=k,
        config=config,
        reason=reason,
        cells=len(candidates[cells].drop_duplicates()),
        all_cells=len(at_k[cells].drop_duplicates()),
        layers=tuple(sorted(map(int, candidates["layer"].unique()))),
        against_pca=has(at_k, RELATIVE),
        others=max(0, len(candidates) - 1),
        told_apart=apart,
    )


def geometric_mean(values: pd.Series) -> float:
    known = values[values > 0]
    return float(np.exp(np.log(known).mean())) if len(known) else float("nan")


def control(saes: pd.DataFrame) -> Control | None:
    """None where no cell has an SAE that was trained on Gaussian rows."""
    if not has(saes, "gaussian_fvu", "gaussian_pca_fvu", RELATIVE):
        return None
    known = saes.dropna(subset=["gaussian_fvu", "gaussian_pca_fvu", RELATIVE])
    both = known.assign(gaussian=known["gaussian_fvu"] / known["gaussian_pca_fvu"])
    cells = both.groupby(["layer", "position"])[[RELATIVE, "gaussian"]].mean()
    return Control(
        len(cells),
        geometric_mean(cells[RELATIVE]),
        geometric_mean(cells["gaussian"]),
        int((cells[RELATIVE] < cells["gaussian"]).sum()),
    )


def gamma_of(saes: pd.DataFrame) -> Gamma | None:
    """Pooled and within each position: positions differ in both, and pooling them shows the positions instead."""
    if not has(saes, "gamma", DEATH):
        return None
    cells = saes.groupby(["layer", "position"])[[DEATH, "gamma"]].mean()
    within = {
        int(position): correlation
        for position, group in cells.groupby(level="position")
        if np.isfinite(correlation := rank_correlation(group[DEATH], group["gamma"]))
    }
    return Gamma(rank_correlation(cells[DEATH], cells["gamma"]), within)


def one_size(study: Study, k: int) -> tuple[int, float] | None:
    """Which latent_dim is best at one k if all cells must have the same, and what that costs in fvu."""
    at_k = study.configs[(study.configs["k"] == k) & (study.configs[ERROR] > 0)]
    by_size = at_k.pivot_table(index=["layer", "position"], columns="latent_dim", values=ERROR).dropna()
    if by_size.empty or by_size.shape[1] < 2:
        return None
    costs = by_size.div(by_size.min(axis=1), axis=0).apply(geometric_mean)
    return int(costs.idxmin()), float(costs.min())


def at_k(study: Study, k: int, focus: Cell | None) -> AtK:
    saes = study.saes[study.saes["k"] == k]
    able = saes[saes["can_collapse"]]
    compared = saes[RELATIVE].dropna()
    shares = saes["busiest_10_share"] * max(1.0, k / BUSIEST) if has(saes, "busiest_10_share") else None
    ratios = saes[FVU] / saes["fvu_train"] if has(saes, FVU, "fvu_train") else pd.Series(dtype=float)

    def mean_sd(column: str) -> tuple[float, float]:
        over = over_seeds(saes.assign(all=0), ["all"], column).iloc[0]
        return float(over["mean"]), float(over["sd"])

    return AtK(
        k=k,
        saes=len(saes),
        error=mean_sd(ERROR),
        median=float(saes[ERROR].median()),
        no_better=int((saes[ERROR] >= 1).sum()) if study.has_fvu else None,
        dead=mean_sd(DEATH),
        can_collapse=len(able),
        collapsed={times: int((able["num_active_features"] < times * k).sum()) for times in THRESHOLDS},
        relative=float(compared.median()),
        better_than_pca=(int((compared < 1).sum()), len(compared)) if len(compared) else None,
        every_row=int((shares >= EVERY_ROW).sum()) if shares is not None and k >= BUSIEST else None,
        busiest=float(shares.median()) if shares is not None else float("nan"),
        gap=geometric_mean(ratios),
        off_k=int(saes["off_k"].sum()),
        l0_off=float(saes.loc[saes["off_k"], "l0_off"].mean()),
        layers=order(study, k, "layer"),
        positions=order(study, k, "position"),
        ease=ease(study, k),
        gamma=gamma_of(saes),
        control=control(saes),
        one_size=one_size(study, k),
        recommendation=recommend(study, k),
        focus=place(study, focus, k) if focus is not None else None,
    )


def identity(study: Study) -> float | None:
    """(1 - EV) / (1 - EV of the mean) is fvu, but for the training mean standing for that of the validation rows."""
    saes = study.saes
    if not study.has_fvu or not has(saes, "mean_explained_variance"):
        return None
    ratio = (1 - saes[EV]) / (1 - saes["mean_explained_variance"])
    return float((ratio / saes[FVU] - 1).abs().max())


def chosen_focus(study: Study, layer: int | None, position: int | None, published: Cell) -> Cell | None:
    """The cell that the report answers for: the one asked for, else the published one if the grid has it.

    Raises InputError if the grid lacks one that was asked for.
    """
    wanted = Cell(published.layer if layer is None else layer, published.position if position is None else position)
    there = set(study.configs[["layer", "position"]].itertuples(index=False, name=None))
    if tuple(wanted) in there:
        return wanted
    if layer is None and position is None:
        return None
    raise InputError(f"no SAE of layer {wanted.layer}, position {wanted.position} is in the grid to focus on")


def conclude(study: Study, focus: Cell | None = None) -> Findings:
    ks: Sequence[int] = sorted(map(int, study.saes["k"].unique()))
    return Findings(study, tuple(at_k(study, k, focus) for k in ks), focus, identity(study))
