"""A search for recipes: single SAEs, a line of JSON each, and what a recipe gains over another on the same SAEs."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from thought_saes.common.errors import InputError
from thought_saes.common.files import read_json_lines
from thought_saes.results.names import AXES

NUMBERS = ("fvu_report_half", "fvu_validation", "dead_share", "pca_fvu")
COLUMNS = ("recipe", "settings", *AXES, "seed", *NUMBERS)
CONFIDENCE = 0.95
# What the search went through, and the settings that its lines have then; all else is `OTHER`.
SMOOTH: dict[str, Any] = {"start": "pcares", "npca_k": 2, "decay": "lin:1"}
STEPS: dict[str, dict[str, Any]] = {
    "published": {"centre": False},
    "centred": {},
    "random tied start": {"start": "tied"},
    "2k components, rate falls": SMOOTH,
    "improved": {"recipe": "improved"},
    "improved, rows whitened": {"recipe": "improved", "whiten": 0.5},
    "improved, AuxK": {"recipe": "improved", "aux_alpha": 1 / 32},
    "improved, weight decay": {"recipe": "improved", "weight_decay": 1.0},
}
SAME_AS_IMPROVED = SMOOTH | {"reswhite": 0.5}  # in the search's own words
OTHER = "other"


class Gain(NamedTuple):
    """A recipe against another on SAEs of the same cell, latent_dim, k and seed."""

    recipe: str
    k: str  # or "all"
    pairs: int
    cells: int
    ratio: float  # of fvu on the half that recipes are reported on: geometric mean over cells of that over pairs
    low: float  # 95 % t interval over cells; NaN with one cell
    high: float
    dead: tuple[float, float]  # mean share, before and after


def read_tried(path: Path) -> pd.DataFrame:
    """A row an SAE, with its `step`. Raises InputError if a line lacks something or is no number."""
    table = pd.DataFrame(list(read_json_lines(path)))
    if absent := [name for name in COLUMNS if name not in table or table[name].isna().any()]:
        raise InputError(f"{path}: not every line has {', '.join(absent)}")
    for name in (*NUMBERS, *AXES, "seed"):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{path}: a {name} is no number")
    data = table["data"] if "data" in table else pd.Series(None, table.index, dtype=object)
    return table.assign(
        data=data.fillna("SmolLM2"),
        step=table["settings"].map(step_of),
        # The search's own code cut the validation rows into other halves than the project does.
        halves=table["settings"].map(lambda settings: "project" if "recipe" in settings else "search"),
        relative=table["fvu_validation"] / table["pca_fvu"],
    )


def step_of(settings: dict[str, Any]) -> str:
    """The step of the search that settings are."""
    if settings == SAME_AS_IMPROVED:
        return "improved"
    return next((name for name, own in STEPS.items() if settings == own), OTHER)


def gains(table: pd.DataFrame, base: str) -> list[Gain]:
    """Every recipe that has SAEs in common with `base`, on the same halves, at each k and over all.

    Raises InputError if there is no recipe of that name.
    """
    key = ["data", "halves", *AXES, "seed"]
    by_recipe = {str(name): own.drop_duplicates(key).set_index(key) for name, own in table.groupby("recipe")}
    if base not in by_recipe:
        raise InputError(f"no recipe {base} was tried; there are {', '.join(by_recipe)}")
    found = []
    for name, own in by_recipe.items():
        both = own.join(by_recipe[base], suffixes=("_own", "_base"), how="inner").reset_index()
        if name == base or both.empty:
            continue
        logs = np.log(both["fvu_report_half_own"] / both["fvu_report_half_base"])
        of_k = [(str(k), both["k"] == k) for k in sorted(both["k"].unique())]
        for k, chosen in [*of_k, *([("all", both["k"] > 0)] if len(of_k) > 1 else [])]:
            here = both[chosen]
            by_cell = logs[chosen].groupby([here["data"], here["layer"], here["position"]]).mean()
            low, high = interval(by_cell.to_numpy())
            dead = float(here["dead_share_base"].mean()), float(here["dead_share_own"].mean())
            middle = float(np.exp(by_cell.mean()))
            found.append(Gain(name, k, len(here), len(by_cell), middle, low, high, dead))
    return found


def interval(logs: np.ndarray) -> tuple[float, float]:
    """A t interval of the geometric mean, from logarithms (n,)."""
    if len(logs) < 2:
        return float("nan"), float("nan")
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))
