"""How much of a metric's variance layer, position, latent_dim, k and their interactions explain.

The grid is a balanced factorial design, so the terms' sums of squares are orthogonal and add up to the total. Main
effects and two-way interactions come from statsmodels, the interactions of higher order are what else differs between
configurations, and the variation between seeds within a configuration is the error term of every F: it is what
training again from another seed changes (initial weights and the order of the batches). It holds no variation between
questions, splits or models, so p says nothing about those. The batches of one layer x position come in the same order
for each of its SAEs of a seed; their errors are taken as independent.
With one seed there is no error term, hence no F and no p.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution
from statsmodels.formula.api import ols  # type: ignore[import-untyped]
from statsmodels.stats.anova import anova_lm  # type: ignore[import-untyped]

from thought_saes.common.text import TIMES
from thought_saes.results.names import AXES

CROSS = f" {TIMES} "
ERROR = "seeds (error term)"
HIGHER = "interactions of three or four"
HIGHER_AND_SEED = "interactions of three or four, and seed"


class Decomposition(NamedTuple):
    """The analysis of variance of one metric."""

    metric: str
    terms: pd.DataFrame  # a row a term, its name the index: sum_sq, df, share of the total sum of squares, F, p
    left_out: list[int]  # layers with a missing SAE: the rest is balanced

    def without_tests(self) -> "Decomposition":
        """The shares alone, for a table whose spread between seeds is not the same everywhere."""
        return self._replace(terms=self.terms.assign(F=np.nan, p=np.nan))

    def share(self, term: str) -> float:
        """A term's share of the total sum of squares; NaN where the table has no such term."""
        return float(self.terms["share"].get(term, np.nan))


def balanced(table: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, list[int]]:
    """The layers of which every SAE of every seed has a value, and the layers left out."""
    per_layer = table[metric].notna().groupby(table["layer"]).sum()
    n_seeds = table["seed"].nunique() if "seed" in table else 1
    full = int(np.prod([table[axis].nunique() for axis in AXES[1:]])) * n_seeds
    left_out = sorted(int(layer) for layer in per_layer.index[per_layer != full])
    return table[~table["layer"].isin(left_out)], left_out


def decompose(table: pd.DataFrame, metric: str) -> Decomposition | None:
    """None if no balanced part of the table has two values of an axis and some variance."""
    saes, left_out = balanced(table, metric)
    factors = [axis for axis in AXES if saes[axis].nunique() > 1]
    if not factors or saes[metric].max() == saes[metric].min():
        return None
    sums: dict[str, tuple[float, float]] = {}
    for pair in combinations(factors, min(2, len(factors))):
        # Means over all else: each stands for as many SAEs, and a small design matrix gives the same sums of squares.
        means = saes.groupby(list(pair))[metric].mean().rename("value").reset_index()
        formula = "value ~ " + " * ".join(f"C({axis})" for axis in pair)
        for name, term in anova_lm(ols(formula, means).fit(method="qr"), typ=1, test=None).iterrows():
            label = name.replace("C(", "").replace(")", "").replace(":", CROSS)
            sums[label] = term["sum_sq"] * len(saes) / len(means), term["df"]
    del sums["Residual"]  # of means over all else, each with a parameter of its own: none
    cells = saes.groupby(AXES)[metric]
    n_cells = cells.ngroups
    error_sum, error_df = float(((saes[metric] - cells.transform("mean")) ** 2).sum()), len(saes) - n_cells
    total = float(((saes[metric] - saes[metric].mean()) ** 2).sum())
    terms = pd.DataFrame.from_dict(sums, orient="index", columns=["sum_sq", "df"])
    terms = terms.loc[sorted(sums, key=lambda name: name.count(CROSS))]
    known_sum, known_df = terms["sum_sq"].sum(), terms["df"].sum()
    if higher_df := round(n_cells - 1 - known_df):
        higher = max(total - error_sum - known_sum, 0.0)
        terms.loc[HIGHER if error_df else HIGHER_AND_SEED] = [higher, higher_df]
    if error_df:
        terms.loc[ERROR] = [error_sum, error_df]
    terms["share"] = terms["sum_sq"] / terms["sum_sq"].sum()
    terms["F"] = terms["p"] = np.nan
    if error_df and error_sum > 0:
        tested = terms.index[:-1]
        terms.loc[tested, "F"] = terms["sum_sq"] / terms["df"] / (error_sum / error_df)
        terms.loc[tested, "p"] = f_distribution.sf(terms.loc[tested, "F"], terms.loc[tested, "df"], error_df)
    return Decomposition(metric, terms, left_out)
