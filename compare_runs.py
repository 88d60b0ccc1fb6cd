"""Compare two sets of runs over the same grid, seed by seed: do they differ by more than seeds do?

    python compare_runs.py --results fused/seed0 fused/seed1 fused/seed2 --against plain/seed0 plain/seed1 plain/seed2

For every configuration and metric: mean ± standard deviation over the seeds of both sets, and the difference of the
means in units of the seeds' spread, the root of the sum of both variances: at most 1 is within it. SAEs that only one
set holds are left out. Prints a Markdown table; `--output` writes it to a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import DEATH, EV, over_seeds
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_bytes
from thought_saes.common.flags import option, parse_config
from thought_saes.common.text import number, table, with_sd
from thought_saes.results.names import AXES

METRICS = {EV: ".5f", DEATH: ".4f"}


@dataclass(frozen=True)
class CompareConfig:
    results: tuple[Path, ...] = option(help="folders of the first set, each of another seed, two at least")
    against: tuple[Path, ...] = option(help="folders of the second set")
    output: Path | None = option(None, help="Markdown file to write")

    def __post_init__(self) -> None:
        for name in ("results", "against"):
            if len(getattr(self, name)) < 2:
                raise InputError(f"--{name} needs two folders at least: one seed has no spread")


def statistics(folders: Sequence[Path]) -> pd.DataFrame:
    """Mean and sd over seeds of each of METRICS, by configuration."""
    saes = load_replicates(folders, allow_partial=True).table
    return pd.concat({metric: over_seeds(saes, AXES, metric) for metric in METRICS}, axis=1)


def spreads(both: pd.DataFrame, metric: str) -> pd.Series:
    """|difference of the means| / sqrt(sd² + sd²), by configuration; 0 where nothing differs."""
    first, second = both["first"][metric], both["second"][metric]
    apart, spread = (first["mean"] - second["mean"]).abs(), np.hypot(first["sd"], second["sd"])
    return (apart / spread).where(apart > 0, 0.0)


def comparison(config: CompareConfig) -> str:
    """The table and its summary in Markdown. Raises InputError if the sets have no configuration in common."""
    sets = {"first": statistics(config.results), "second": statistics(config.against)}
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


def main() -> int:
    config = parse_config(CompareConfig, __doc__ or "")
    text = comparison(config)
    if config.output:
        write_bytes(config.output, (text + "\n").encode())
    print(text)
    return 0


if __name__ == "__main__":
    run(main)
