"""A comparison of recipes as Markdown."""

from collections.abc import Mapping, Sequence

import pandas as pd

from thought_saes.analysis.covered import Covered
from thought_saes.analysis.recipes import Difference, common, differences, summary, winners
from thought_saes.common.text import number, of, percent, table
from thought_saes.reporting.tables import lean

MARK = "\\* some of these SAEs hold more or fewer latents than k by over 5 % on validation rows."


def verdict(one: Difference) -> str:
    """Which of the two is better at one k, as far as the interval says."""
    if one.high < 1:
        return f"{one.second} is better"
    return f"{one.first} is better" if one.low > 1 else "not told apart"


def by_coverage(rows: Sequence[Covered]) -> str:
    """Which recipe's single features tell more of the known concepts."""
    headers = ["recipe", "coverage", "less the first's", "interval", "monosemantic halves"]
    told = [
        [
            one.recipe,
            number(one.coverage, ".3f"),
            number(one.difference, "+.3f"),
            f"{number(one.low, '+.3f')} to {number(one.high, '+.3f')}" if one.low == one.low else "-",
            percent(one.monosemantic),
        ]
        for one in rows
    ]
    return (
        f"Coverage of known concepts (`interpret_features.py`), means over the {rows[0].saes:,} SAEs that all have; "
        f"the difference is paired by SAE, its 95 % interval from resampling cells:\n\n{table(headers, told)}"
    )


def compare(recipes: Mapping[str, pd.DataFrame], coverages: Sequence[Covered] = ()) -> str:
    """Tables of what each recipe gives by k, who wins how many cells, and the paired differences with the first."""
    shared = common(recipes)
    summed = summary(shared)
    rows = [
        [
            str(row.k),
            row.recipe,
            str(row.saes),
            number(row.error),
            number(row.relative, ".2f"),
            of(row.cells_below_pca, row.cells) if row.cells else "-",
            percent(row.dead),
            of(row.collapsed, row.can_collapse),
            number(1 + row.l0_off, ".3f") + ("*" if row.off_k else ""),
            number(row.alive, ".1f"),
            number(row.gap, ".3f"),
            number(row.seconds, ".2f"),
        ]
        for row in summed.itertuples()
    ]
    headers = ["k", "recipe", "SAEs", "mean fvu", "median of PCA's", "cells below PCA", "dead", "collapsed"]
    headers += ["L0 / k", "alive", "fvu / fvu_train", "seconds"]
    found = differences(shared)
    paired = [
        [
            str(one.k),
            one.second,
            number(one.ratio, ".3f"),
            f"{number(one.low, '.3f')} to {number(one.high, '.3f')}",
            of(one.wins, one.cells),
            verdict(one),
        ]
        for one in found
    ]
    base = next(iter(shared))
    won = winners(shared)
    wins = [[str(k), *(str(won.loc[k, name]) for name in won.columns)] for k in won.index]
    parts = [
        f"# {' against '.join(shared)}",
        f"Of the {len(shared[base]):,} SAEs of {base} that all have, of the same seeds where any are shared.",
        lean(headers, rows, words=2),
        *([MARK] if summed["off_k"].any() else []),
        "Cells won, by the lowest fvu over latent_dim:",
        lean(["k", *won.columns], wins),
    ]
    if paired:
        parts += [
            f"Paired by configuration with {base}: the geometric mean of fvu over its fvu (below 1: better), with a "
            "95 % interval from resampling cells:",
            lean(["k", "recipe", f"fvu / {base}'s", "interval", "cells in which it is lower", "so"], paired, words=2),
        ]
    if coverages:
        parts.append(by_coverage(coverages))
    return "\n\n".join(parts)
