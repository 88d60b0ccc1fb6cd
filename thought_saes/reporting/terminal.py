"""The tables of an analysis for a person at a terminal, WIDTH columns wide, from the content of its summary."""

import math
import textwrap
from collections.abc import Sequence

from thought_saes.analysis.grid import Grid, describe_missing
from thought_saes.analysis.study import DEATH, ERROR, EV, FEW_DEAD, FVU
from thought_saes.analysis.summary import Json, best_effect
from thought_saes.common.text import compact, number, percent
from thought_saes.results.names import AXES

WIDTH = 100
WHY_NONE = {"collapsed": "all have collapsed", "mean": "the mean is better", "pca": "PCA is better"}
POSITIONS_A_BLOCK = 12  # of the matrix, 7 columns each


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
    judged = summary["by_error"]
    finding += f" {judged['collapsed']:,} SAEs have collapsed: fewer than 2k of their features ever fire."
    if judged["off_k"]:
        finding += f" {judged['off_k']:,} have validation rows of more or fewer latents than k by over 5 %."
    if judged["no_better_than_the_mean"] is None:
        finding += " The files hold no fvu: 1 - explained_variance stands in for it."
    else:
        finding += f" {judged['no_better_than_the_mean']:,} are no better than predicting the mean (fvu >= 1)."
    rows = [
        [judged["error"], *map(number, judged["overall"].values())],
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
    lowest_error = summary["by_error"]["best"]
    choices = {
        f"lowest {summary['by_error']['error']}, not collapsed": lowest_error,
        "highest explained variance": highest,
        "lowest feature death": lowest,
        f"highest EV, at most {FEW_DEAD:.0%} dead": few_dead,
    }
    rows = [
        [
            name,
            *(str(row[axis]) for axis in AXES),
            number(row.get(FVU)),
            number(row[EV]),
            percent(row[DEATH]),
            number(row["reconstruction_loss"], ".3g"),
        ]
        for name, row in choices.items()
        if row
    ]
    return section("Best configurations", finding, ["", *AXES, "fvu", "EV", "dead", "loss"], rows)


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
    names = ["std", "min", "max"]
    headers = [axis, "SAEs", "EV mean", *names, "dead mean", *names]
    rows = [
        [
            str(effect[axis]),
            str(effect["saes"]),
            *(number(effect[EV][name]) for name in ("mean", *names)),
            *(percent(effect[DEATH][name]) for name in ("mean", *names)),
        ]
        for effect in group
    ]
    if FVU in group[0]:
        several = any(effect[FVU]["sd_over_seeds"] is not None for effect in group)
        headers += ["fvu", *(["± seeds"] if several else [])]
        for row, effect in zip(rows, group, strict=True):
            row += [number(effect[FVU]["mean"]), *([number(effect[FVU]["sd_over_seeds"])] if several else [])]
    return section(title, finding, headers, rows)


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


def use_section(summary: Json) -> str:
    """What to use at each k."""
    error = summary["by_error"]["error"]
    rows = []
    for at in summary["by_k"]:
        cells = f"{at['cells']} of {at['all_cells']}"
        if row := at["use"]:
            relative = number(row["relative"], ".2f")
            rows.append([str(at["k"]), *(str(row[axis]) for axis in AXES[:3]), number(row[ERROR]), relative, cells, ""])
        else:
            rows.append([str(at["k"]), *["-"] * 5, cells, WHY_NONE[at["why_none"]]])
    there = sum(at["use"] is not None for at in summary["by_k"])
    finding = f"{there} of {len(rows)} k have an SAE worth using: better than the mean and, where known, than PCA."
    headers = ["k", *AXES[:3], "fvu" if error == FVU else "1 - EV", "of PCA's", "cells", "why none"]
    return section("What to use at each k", finding, headers, rows)


def recommended_section(summary: Json) -> str:
    error = summary["by_error"]["error"]

    def cells(row: Json | None) -> list[str]:
        if row is None:
            return ["none", "", "", "", ""]
        return [*(str(row[axis]) for axis in AXES[1:]), number(row[ERROR]), percent(row[DEATH])]

    choices = summary["by_error"]["layers"]
    there = sum(choice["best_few_dead"] is not None for choice in choices)
    finding = (
        f"{there} of {len(choices)} layers have a configuration with at most {FEW_DEAD:.0%} dead features. Left: the "
        f"layer's lowest {error}; right: the lowest of those with so few dead. Collapsed ones are left out, and those "
        "no better than predicting the mean."
    )
    rows = [[str(choice["layer"]), *cells(choice["best"]), "|", *cells(choice["best_few_dead"])] for choice in choices]
    headers = ["position", "latent_dim", "k", "fvu" if error == FVU else "1 - EV", "dead"]
    title = f"Lowest {error} of each layer (of every position, latent_dim and k)"
    return section(title, finding, ["layer", *headers, "|", *headers], rows)


def describe(summary: Json, grid: Grid) -> str:
    """All tables, for a person at a terminal of WIDTH columns."""
    chosen, missing = summary["slice"], len(grid.missing)
    axes = [f"{axis} {compact(grid.values(axis))}" for axis in AXES[:2]]
    axes += [f"{axis} {' '.join(map(str, grid.values(axis)))}" for axis in AXES[2:]]
    if len(summary["seeds"]) > 1:
        axes.append(f"seeds {' '.join(map(str, summary['seeds']))}")
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
        use_section(summary),
    ]
    return "\n\n\n".join(sections)
