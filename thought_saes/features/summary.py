"""The coverage of every SAE as a table, and what goes with it over the grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thought_saes.common.schema import read_checked
from thought_saes.features.formats import ConceptScores
from thought_saes.results.names import AXES

# Where interpret_features.py puts the scores in a results folder, if it is not told another place.
SCORES_FILE = "features/concept_scores.json"
COMPARED = ("untrained", "shuffled", "raw", "pca", "probe")


class Relation(NamedTuple):
    """Spearman's rank correlation of something with coverage."""

    overall: float  # over all SAEs
    within_cells: float  # the mean over cells of that over a cell's SAEs
    positive: int  # cells in which it is above zero
    cells: int  # cells with three SAEs or more


def read_scores(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The scores of the first folder that has them. Raises DamagedFile."""
    path = next((folder / SCORES_FILE for folder in folders if (folder / SCORES_FILE).exists()), None)
    return None if path is None else read_checked(path, ConceptScores, "run interpret_features.py again")


def coverage_table(scores: Mapping[str, Any]) -> pd.DataFrame:
    """A row an SAE: AXES, fvu, `coverage` with `low` and `high`, the coverage of COMPARED, and the other scores."""
    cells = {(cell["layer"], cell["position"]): cell for cell in scores["cells"]}
    rows = []
    for sae in scores["saes"]:
        both = cells[sae["layer"], sae["position"]] | sae
        rows.append(
            {axis: sae[axis] for axis in AXES}
            | {"fvu": sae["fvu"], "death": sae["feature_death_rate"]}
            | sae["sae"]
            | {name: both[name]["coverage"] for name in COMPARED}
            | {"over_raw": sae["over_raw"]["difference"], "over_raw_low": sae["over_raw"]["low"]}
            | {"over_untrained": sae["over_untrained"]["difference"]}
            | {"over_untrained_low": sae["over_untrained"]["low"]}
            | {name: sae[name] for name in ("best_family", "monosemantic_share", "splitting")}
        )
    table = pd.DataFrame(rows).drop(columns="families")
    return table.sort_values(AXES, ignore_index=True).astype({"fvu": float, "monosemantic_share": float})


def relation(table: pd.DataFrame, column: str) -> Relation:
    """How `column` goes with coverage, over all SAEs and within cells."""
    within = pd.Series(
        [
            cell[column].corr(cell["coverage"], method="spearman")
            for _, cell in table.groupby(["layer", "position"])
            if len(cell) >= 3 and cell[column].nunique() > 1
        ],
        dtype=float,
    )
    overall = table[column].corr(table["coverage"], method="spearman")
    return Relation(overall, within.mean(), int((within > 0).sum()), len(within))
