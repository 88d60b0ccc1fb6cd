"""What a grid of SAEs shows: tables on the terminal, and results/analysis_summary.json with the same numbers.

    python analyze_all_layers.py --results results/ --k 20 --latent-dim 1024

Overall statistics, best configurations and recommendations are over every SAE. The effects of layer and of
position, and the layer x position matrix, are over the SAEs of one --k and --latent-dim; the effect of k is over
every k of that latent_dim. Every std is the sample standard deviation. Of equal values the first counts, by layer,
position, latent_dim, k.

Missing on purpose: tests of significance. One run has no error bars.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from command_line import InputError, check_at_least, compact, option, package_versions, parse_config, run
from files import write_json
from grid import AXES, SLICE_K, SLICE_LATENT_DIM, Grid, choose_slice, describe_missing, load_grid

EV = "explained_variance"
DEATH = "feature_death_rate"
# At most this share of dead features, for a recommendation to those who study single features.
FEW_DEAD = 0.10
WIDTH = 100  # columns of the terminal
POSITIONS_A_BLOCK = 12  # of the matrix on the terminal, 7 columns each

Json = dict[str, Any]


@dataclass(frozen=True)
class AnalysisConfig:
    """The flags of this script."""

    results: Path = option(Path("results"), help="folder with the metrics files; the summary goes there too")
    k: int = option(SLICE_K, help="k of the slice for layer and position effects")
    latent_dim: int = option(SLICE_LATENT_DIM, help="latent_dim of the slice")
    allow_partial: bool = option(False, help="analyse what is there of an incomplete grid")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "k", "latent_dim")


def plain(value: Any) -> Any:
    """`value` for strict JSON: NumPy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def statistics(values: pd.Series) -> Json:
    """Over the finite values; None where there are too few (the standard deviation takes two)."""
    both_ends = {"min": values.min(), "max": values.max()}
    return plain({"mean": values.mean(), "std": values.std(ddof=1)} | both_ends)


def best_row(saes: pd.DataFrame, metric: str, highest: bool = True) -> Json | None:
    """The first SAE with the highest (or lowest) value of `metric`, as the whole row; None if no SAE has one."""
    values = saes[metric].dropna()
    if values.empty:
        return None
    row = saes.loc[[values.idxmax() if highest else values.idxmin()]]
    return plain(row.to_dict("records")[0])


def effects(saes: pd.DataFrame, axis: str, values: Sequence[int]) -> list[Json]:
    """For each value of `axis`, the statistics of the SAEs that share it."""
    groups = {value: saes[saes[axis] == value] for value in values}
    return [
        {axis: value, "saes": len(group), EV: statistics(group[EV]), DEATH: statistics(group[DEATH])}
        for value, group in groups.items()
    ]


def best_effect(group: Sequence[Json], highest: bool = True) -> Json | None:
    """The first with the highest (or lowest) mean explained variance; None if no member has one."""
    known = [effect for effect in group if effect[EV]["mean"] is not None]
    sign = 1 if highest else -1
    return max(known, key=lambda effect: sign * effect[EV]["mean"], default=None)


def recommend(saes: pd.DataFrame) -> Json:
    """The SAE of highest explained variance: of all, and of those with few dead features."""
    few_dead = best_row(saes[saes[DEATH] <= FEW_DEAD], EV)
    return {
        "highest_ev": best_row(saes, EV),
        "highest_ev_few_dead": few_dead,
        "note": None if few_dead else f"no SAE has at most {FEW_DEAD:.0%} dead features",
    }


def analyse(grid: Grid, k: int, latent_dim: int) -> Json:
    """The content of analysis_summary.json: the original's keys, then ours.

    Raises InputError if the grid has no such slice, or no SAE with a finite explained variance.
    """
    chosen = choose_slice(grid, k, latent_dim)
    table = grid.table
    if table[EV].isna().all():
        raise InputError(f"none of the {len(table):,} SAEs has a finite {EV}: nothing to analyse")
    same_latent_dim = table[table["latent_dim"] == chosen.latent_dim]
    saes = same_latent_dim[same_latent_dim["k"] == chosen.k]
    layers, positions = grid.values("layer"), grid.values("position")
    layer_effects = effects(saes, "layer", layers)
    position_effects = effects(saes, "position", positions)
    lowest_death = best_row(table, DEATH, highest=False)
    matrix = {
        metric: plain(grid.layer_position_matrix(metric, chosen.latent_dim, chosen.k).to_numpy().tolist())
        for metric in (EV, DEATH)
    }
    return {
        "total_saes": len(table),
        "layers": layers,
        "positions": positions,
        "k_values": grid.values("k"),
        "latent_dims": grid.values("latent_dim"),
        "overall_stats": {EV: statistics(table[EV]), DEATH: statistics(table[DEATH])},
        "best_configs": {"highest_ev": best_row(table, EV), "lowest_death": lowest_death},
        "lowest_death_shared_by": int((table[DEATH] == table[DEATH].min()).sum()),
        "slice": {
            "k": chosen.k,
            "latent_dim": chosen.latent_dim,
            "saes": len(saes),
            "k_stood_in": chosen.k != k,
            "latent_dim_stood_in": chosen.latent_dim != latent_dim,
            "note": chosen.note or None,
        },
        "layer_effects": layer_effects,
        "position_effects": position_effects,
        "k_effects": effects(same_latent_dim, "k", grid.values("k")),
        "layer_position_matrix": {"layers": layers, "positions": positions} | matrix,
        "best_layer": best_effect(layer_effects),
        "worst_layer": best_effect(layer_effects, highest=False),
        "best_position": best_effect(position_effects),
        "worst_position": best_effect(position_effects, highest=False),
        "recommended": {
            "few_dead": FEW_DEAD,
            "overall": recommend(table),
            "layers": [{"layer": layer} | recommend(table[table["layer"] == layer]) for layer in layers],
        },
        "position_0": grid.position_0,
        "not_finite": {metric: int(table[metric].isna().sum()) for metric in (EV, DEATH)},
        "missing": {
            "count": len(grid.missing),
            "saes": [dict(zip(AXES, sae, strict=True)) for sae in grid.missing],
        },
    }


def number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    return number(value, ".1%")


def section(title: str, finding: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading, one sentence, and a table with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headers, *rows]
    ]
    return "\n".join([title, textwrap.fill(finding, WIDTH), "", *lines])


def overall_section(summary: Json) -> str:
    ev, death = summary["overall_stats"][EV], summary["overall_stats"][DEATH]
    finding = (
        f"Explained variance is {number(ev['mean'])} on average, from {number(ev['min'])} to "
        f"{number(ev['max'])}; on average {percent(death['mean'])} of an SAE's features are dead."
    )
    rows = [
        ["explained variance", *map(number, ev.values())],
        ["dead features", *map(percent, death.values())],
    ]
    return section(f"Overall (SAEs: {summary['total_saes']:,})", finding, ["", *ev], rows)


def best_section(summary: Json) -> str:
    highest, lowest = summary["best_configs"].values()
    few_dead = summary["recommended"]["overall"]["highest_ev_few_dead"]
    finding = (
        f"The highest explained variance is {number(highest[EV])}, with {percent(highest[DEATH])} of the "
        f"features dead; with at most {FEW_DEAD:.0%} dead "
        + (f"it is {number(few_dead[EV])}." if few_dead else "there is no SAE.")
    )
    if lowest and summary["lowest_death_shared_by"] > 1:
        finding += f" {summary['lowest_death_shared_by']:,} SAEs share the lowest death rate: the first is shown."
    choices = {
        "highest explained variance": highest,
        "lowest feature death": lowest,
        f"highest EV, at most {FEW_DEAD:.0%} dead": few_dead,
    }
    rows = [
        [name, *(str(row[axis]) for axis in AXES), number(row[EV]), percent(row[DEATH]), loss]
        for name, row in choices.items()
        if row and (loss := number(row["reconstruction_loss"], ".3g"))
    ]
    return section("Best configurations", finding, ["", *AXES, "EV", "dead", "loss"], rows)


def effect_section(title: str, group: Sequence[Json]) -> str:
    axis = next(iter(group[0]))
    best, worst = best_effect(group), best_effect(group, highest=False)
    if best is None or worst is None:
        finding = f"No {axis} has a finite explained variance here."
    elif best is worst:
        finding = f"Only {axis} {best[axis]} has values: there is nothing to compare."
    else:
        finding = (
            f"Mean explained variance is highest at {axis} {best[axis]} ({number(best[EV]['mean'])}) "
            f"and lowest at {axis} {worst[axis]} ({number(worst[EV]['mean'])})."
        )
    rows = [
        [
            str(effect[axis]),
            str(effect["saes"]),
            *map(number, effect[EV].values()),
            *map(percent, effect[DEATH].values()),
        ]
        for effect in group
    ]
    names = ["std", "min", "max"]
    return section(title, finding, [axis, "SAEs", "EV mean", *names, "dead mean", *names], rows)


def matrix_sections(title: str, summary: Json) -> list[str]:
    """The matrix of explained variance, in blocks of positions that fit the terminal."""
    matrix = summary["layer_position_matrix"]
    layers, positions = matrix["layers"], matrix["positions"]
    known = [[-math.inf if value is None else value for value in row] for row in matrix[EV]]
    winners = [positions[row.index(max(row))] for row in known if max(row) > -math.inf]
    finding = "No cell has a finite explained variance."
    if winners:
        position = max(positions, key=winners.count)
        finding = (
            f"The position of a layer's highest explained variance is most often {position}: "
            f"in {winners.count(position)} of {len(winners)} layers."
        )
    blocks = []
    for start in range(0, len(positions), POSITIONS_A_BLOCK):
        part = slice(start, start + POSITIONS_A_BLOCK)
        rows = [
            [str(layer), *(number(value, ".3f") for value in row[part])]
            for layer, row in zip(layers, matrix[EV], strict=True)
        ]
        headers = ["layer", *(f"p{n}" for n in positions[part])]
        blocks.append(section(title, "(further positions)" if start else finding, headers, rows))
    return blocks


def recommended_section(summary: Json) -> str:
    def cells(row: Json | None) -> list[str]:
        if row is None:
            return ["none", "", "", "", ""]
        return [*(str(row[axis]) for axis in AXES[1:]), number(row[EV]), percent(row[DEATH])]

    choices = summary["recommended"]["layers"]
    there = sum(choice["highest_ev_few_dead"] is not None for choice in choices)
    finding = (
        f"{there} of {len(choices)} layers have an SAE with at most {FEW_DEAD:.0%} dead features. Left: the "
        "layer's highest explained variance; right: the highest of those with so few dead."
    )
    rows = [
        [str(choice["layer"]), *cells(choice["highest_ev"]), "|", *cells(choice["highest_ev_few_dead"])]
        for choice in choices
    ]
    headers = ["position", "latent_dim", "k", "EV", "dead"]
    title = "Recommended per layer (of every position, latent_dim and k)"
    return section(title, finding, ["layer", *headers, "|", *headers], rows)


def describe(summary: Json, grid: Grid) -> str:
    """All tables, for a person at a terminal of WIDTH columns."""
    chosen, missing = summary["slice"], len(grid.missing)
    axes = [f"{axis} {compact(grid.values(axis))}" for axis in AXES[:2]]
    axes += [f"{axis} {' '.join(map(str, grid.values(axis)))}" for axis in AXES[2:]]
    notes = [f"Grid: {', '.join(axes)}. Position 0 is the {grid.position_0}, position p the p-th thought."]
    if chosen["note"]:
        notes.append(f"Note: {chosen['note']}.")
    if missing:
        notes.append(
            f"Incomplete: {missing:,} of {missing + len(grid.table):,} SAEs are missing: "
            f"{describe_missing(grid.missing)}. Means are over those that are there (column SAEs)."
        )
    for metric, count in summary["not_finite"].items():
        if count:
            notes.append(f"Note: {count:,} SAEs have no finite {metric}; its statistics leave them out.")
    here = f"k {chosen['k']}, latent_dim {chosen['latent_dim']}"
    over_k = f"Effect of k (latent_dim {chosen['latent_dim']}, over layers and positions)"
    sections = [
        "\n".join(textwrap.fill(note, WIDTH) for note in notes),
        overall_section(summary),
        best_section(summary),
        effect_section(f"Layer effects ({here}, over positions)", summary["layer_effects"]),
        effect_section(f"Position effects ({here}, over layers)", summary["position_effects"]),
        *matrix_sections(f"Explained variance, layer x position ({here})", summary),
        effect_section(over_k, summary["k_effects"]),
        recommended_section(summary),
    ]
    return "\n\n\n".join(sections)


def main() -> int:
    config = parse_config(AnalysisConfig, __doc__ or "")
    grid = load_grid(config.results, config.allow_partial)
    summary = analyse(grid, config.k, config.latent_dim)
    origin = {
        "config": asdict(config) | {"results": str(config.results)},
        "versions": package_versions("numpy", "pandas"),
    }
    path = config.results / "analysis_summary.json"
    write_json(path, summary | origin)
    print(f"{describe(summary, grid)}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    run(main)
