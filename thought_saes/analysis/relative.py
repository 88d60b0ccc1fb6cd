"""Cells judged against what is easy in them: by fvu, and by fvu over that of PCA of the same k.

The fvu of a cell's best SAE follows how few dimensions the cell has: a cell that PCA reconstructs well is one that an
SAE reconstructs well. Relative to PCA of rank k it says what the SAE adds.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.activations.cell import Cell
from thought_saes.analysis.study import ERROR, RELATIVE, Study, rank_correlation


def cell_lowest(study: Study, k: int, column: str = ERROR) -> pd.Series:
    """By (layer, position), the lowest of `column` over latent_dim at one k; NaN where no configuration has one."""
    at_k = study.configs[study.configs["k"] == k]
    return at_k.groupby(["layer", "position"])[column].min()


def axis_means(cells: pd.Series, axis: str) -> pd.Series:
    """Geometric mean of the cells by layer or position, ascending: the first is best. Cells without a value are out."""
    known = cells[cells > 0]
    return np.exp(np.log(known).groupby(level=axis).mean()).sort_values(kind="stable")


def ranking(study: Study, axis: str) -> pd.DataFrame:
    """Mean over the other of layer and position of the cells' lowest error, with its spread over seeds.

    A value that lacks a recommended configuration in some cell comes last: its mean is over easier cells.
    """
    groups = study.bests.groupby(axis)
    table = pd.DataFrame(
        {
            "mean": groups[ERROR].mean(),
            "sd": groups[f"{ERROR}_sd"].agg(lambda sds: np.sqrt((sds**2).sum(skipna=False)) / len(sds)),
            "cells": groups.size(),
        }
    )
    return table.sort_values(["cells", "mean"], ascending=[False, True], kind="stable")


class Order(NamedTuple):
    """How layers (or positions) are ordered at one k by the geometric mean of their cells' lowest value."""

    axis: str
    by_error: pd.Series
    by_relative: pd.Series  # empty without baselines
    agreement: float  # rank correlation of the two orders

    @property
    def turned(self) -> bool:
        """Whether the first by error is in the last third relative to PCA."""
        n = len(self.by_relative)
        return n > 2 and bool(self.by_relative.index.get_loc(self.by_error.index[0]) >= n - n / 3)


def order(study: Study, k: int, axis: str) -> Order:
    by_error = axis_means(cell_lowest(study, k), axis)
    by_relative = axis_means(cell_lowest(study, k, RELATIVE), axis)
    return Order(axis, by_error, by_relative, rank_correlation(by_error, by_relative))


class Ease(NamedTuple):
    """Rank correlations over cells of their lowest error at one k with what is easy in them; NaN if unknown."""

    pca: float  # fvu of PCA of rank k
    effective_rank: float


def ease(study: Study, k: int) -> Ease:
    cells = study.configs[study.configs["k"] == k].groupby(["layer", "position"]).min(numeric_only=True)

    def with_lowest(name: str) -> float:
        return rank_correlation(cells[ERROR], cells[name]) if name in cells else float("nan")

    return Ease(with_lowest("pca_fvu"), with_lowest("effective_rank"))


class Place(NamedTuple):
    """Where one cell stands among all at one k; ranks from 1, None if unknown."""

    k: int
    lowest: float  # its lowest error over latent_dim
    rank: int | None
    relative: float
    rank_relative: int | None
    cells: int  # with a value

    @property
    def is_best(self) -> bool:
        return self.rank == 1 and self.rank_relative in (1, None)


def place(study: Study, cell: Cell, k: int) -> Place:
    """Raises KeyError if the grid has no such cell."""
    lowest, relative = cell_lowest(study, k), cell_lowest(study, k, RELATIVE)

    def rank(values: pd.Series) -> int | None:
        mine = values[cell]
        return None if pd.isna(mine) else int((values < mine).sum()) + 1

    return Place(k, float(lowest[cell]), rank(lowest), float(relative[cell]), rank(relative), int(lowest.notna().sum()))
