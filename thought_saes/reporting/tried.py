"""A search for recipes as Markdown."""

import pandas as pd

from thought_saes.analysis.tried import gains
from thought_saes.common.text import number, percent
from thought_saes.reporting.tables import lean


def describe_tried(table: pd.DataFrame, base: str) -> str:
    """What every recipe gains over `base` on the SAEs that both have."""
    rows = [
        [
            one.recipe,
            one.k,
            f"{one.pairs} of {one.cells} cell{'' if one.cells == 1 else 's'}",
            f"{one.ratio - 1:+.1%}",
            f"{number(one.low - 1, '+.1%')} to {number(one.high - 1, '+.1%')}",
            f"{percent(one.dead[0])} to {percent(one.dead[1])}",
        ]
        for one in gains(table, base)
    ]
    headers = ["recipe", "k", "pairs", f"fvu against {base}'s", "95 % t interval over cells", "dead"]
    return (
        f"{len(table):,} SAEs of {table['recipe'].nunique()} recipes. fvu is that of the half of the validation rows "
        f"that recipes are reported on: geometric mean over cells.\n\n{lean(headers, rows, words=2)}"
    )
