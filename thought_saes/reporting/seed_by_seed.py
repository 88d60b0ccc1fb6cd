"""Two sets of runs over the same grid, seed by seed: do they differ by more than seeds do?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import DEATH, EV, over_seeds
from thought_saes.common.errors import InputError
from thought_saes.common.text import number, table, with_sd
from thought_saes.results.names import AXES

METRICS = {EV: ".5f", DEATH: ".4f"}


def statistics(folders: Sequence[Path]) -> pd.DataFrame:
    """Mean and sd over seeds of each of METRICS, by configuration."""
    saes = load_replicates(folders, allow_partial=True).table
    return pd.concat({metric: over_seeds(saes, AXES, metric) for metric in METRICS}, axis=1)


def spreads(both: pd.DataFrame, metric: str) -> pd.Series:
    """|difference of the means| / sqrt(sd² + sd²), by configuration; 0 where nothing differs."""
    first, second = both["first"][metric], both["second"][metric]
    apart, spread = (first["mean"] - second["mean"]).abs(), np.hypot(first["sd"], second["sd"])
    return (apart / spread).where(apart > 0, 0.0)


def against(first: Sequence[Path], second: Sequence[Path]) -> str:
    """The table and its summary in Markdown. Raises InputError if the sets have no configuration in common."""
    sets = {"first": statistics(first), "second": statistics(second)}
    both = pd.concat(sets, axis=1, join="inner")
    if both.empty:
        raise InputError("the two sets of folders have no SAE in common")
    units = {metric: spreads(both, metric) for metric in METRICS}
    rows = []
    for sae in both.index:
        row = [", ".join(map(str, sae))]
        for metric, form in METRICS.items():
            found = [both.loc[sae][part][metric] for part in sets]
            row += [with_sd(values["mean"], values["sd"], form) for values in found]
            row.append(number(units[metric][sae], ".2f"))
        rows.append(row)
    headers = [", ".join(AXES)]
    for metric in METRICS:
        headers += [f"{metric}, first", "second", "apart"]
    apart = pd.concat(units.values())
    summary = (
        f"{(apart <= 1).sum()} of {len(apart)} differ by no more than the seeds do, the most by {apart.max():.2f}."
    )
    return f"{table(headers, rows)}\n\n{summary}"
