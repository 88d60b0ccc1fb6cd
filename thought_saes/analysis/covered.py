"""Recipes by what single features tell of known concepts, where their folders hold the scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thought_saes.analysis.recipes import interval_over_cells
from thought_saes.features.summary import coverage_table, read_scores
from thought_saes.results.names import AXES


class Covered(NamedTuple):
    """One recipe; the difference is its coverage less the first one's, paired by SAE, NaN of the first itself."""

    recipe: str
    saes: int
    coverage: float
    monosemantic: float  # share of halves
    difference: float
    low: float  # a 95 % interval over cells
    high: float


def read_coverages(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """`coverage_table` of each folder that has scores, by its name. Raises DamagedFile."""
    found = {folder.name: read_scores([folder]) for folder in folders}
    return {name: coverage_table(scores) for name, scores in found.items() if scores is not None}


def covered(coverages: Mapping[str, pd.DataFrame]) -> list[Covered]:
    """A row a recipe, over the SAEs that all have; empty for fewer than two recipes, or if they share none."""
    by_sae = {name: table.set_index(AXES)[["coverage", "monosemantic_share"]] for name, table in coverages.items()}
    both = pd.concat(by_sae, axis=1, join="inner") if len(by_sae) > 1 else pd.DataFrame()
    if both.empty:
        return []
    first = next(iter(by_sae))
    rows = []
    for name in by_sae:
        by_cell = (both[name, "coverage"] - both[first, "coverage"]).groupby(level=["layer", "position"]).mean()
        cells = by_cell.to_numpy()
        low, high = interval_over_cells(cells, np.ones_like(cells))
        apart = (float("nan"),) * 3 if name == first else (float(cells.mean()), float(low), float(high))
        coverage, monosemantic = both[name].mean()
        rows.append(Covered(name, len(both), float(coverage), float(monosemantic), *apart))
    return rows
