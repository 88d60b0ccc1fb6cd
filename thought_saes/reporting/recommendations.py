"""Section 4 of the report: what to use, and what the data say about a next grid."""

import numpy as np
import pandas as pd

from thought_saes.analysis.study import DEATH, ERROR, EV, FEW_DEAD, FVU, Study, best, has, not_told_apart
from thought_saes.analysis.variance import CROSS
from thought_saes.common.text import number, of, percent, section, table, with_sd
from thought_saes.reporting.results import matrix_table
from thought_saes.results.names import AXES


def ranking(study: Study, axis: str) -> pd.DataFrame:
    """Mean over the other of layer and position of the cells' lowest error, with its spread over seeds.

    A value that lacks a recommended configuration in some cell comes last: its mean is over easier cells.
    """
    groups = study.bests.groupby(axis)
    table = pd.DataFrame(
        {
            "mean": groups[ERROR].mean(),
            "sd": groups[f"{ERROR}_sd"].agg(lambda sds: np.sqrt((sds**2).sum(skipna=False)) / len(sds)),
            "cells": groups.size(),
        }
    )
    return table.sort_values(["cells", "mean"], ascending=[False, True], kind="stable")


def recommended_axis(study: Study, axis: str) -> tuple[str, str]:
    """A sentence and a table."""
    ranks = ranking(study, axis)
    if ranks.empty:
        return f"No {axis} can be recommended.", ""
    first = ranks.index[0]
    text = f"{axis.capitalize()} {first} has the lowest mean of its cells' best ({with_sd(*ranks.iloc[0][:2])})"
    if len(ranks) == 1:
        text += "; there is no other to compare it with."
    elif study.n_seeds < 2:
        text += "; with one seed its lead cannot be judged."
    else:
        leader = ranks.iloc[0]
        equal = [
            str(value)
            for value, row in ranks.iloc[1:].iterrows()
            if row["mean"] - leader["mean"] < np.hypot(row["sd"], leader["sd"])
        ]
        text += (
            f"; not told apart from it: {', '.join(equal)}."
            if equal
            else "; every other one is worse by more than the spread between seeds."
        )
    rows = [[str(value), with_sd(row["mean"], row["sd"]), str(int(row["cells"]))] for value, row in ranks.iterrows()]
    return text, table([axis, f"mean of the lowest {study.error}", "cells with one"], rows)


def recommended_per_layer(study: Study) -> tuple[str, str]:
    """A sentence and a table: the configuration of lowest error, and the one with few dead features."""
    rows, n_some, n_few = [], 0, 0
    floor = "mean_explained_variance"
    for layer in study.grid.values("layer"):
        configs = study.configs[study.configs["layer"] == layer]
        eligible = configs[configs["eligible"]]
        low, few = best(eligible), best(eligible[eligible[DEATH] <= FEW_DEAD])
        n_some, n_few = n_some + len(low), n_few + len(few)
        ev = best(configs, EV, highest=True)
        left, right, published = ["-"] * 2, ["-"] * 2, ["-"] * 3
        near = "-"
        if len(low):
            row = low.iloc[0]
            left = [short(row), f"{with_sd(row[ERROR], row[f'{ERROR}_sd'])}"]
            near = str(not_told_apart(eligible, row)) if study.n_seeds > 1 else "-"
        if len(few):
            row = few.iloc[0]
            right = [short(row), f"{with_sd(row[ERROR], row[f'{ERROR}_sd'])}"]
        dead = percent(low.iloc[0][DEATH]) if len(low) else "-"
        if len(ev):
            row = ev.iloc[0]
            published = [
                short(row) + (" collapsed" if row["collapsed"] else ""),
                f"{number(row[EV])} ({number(row.get(floor))})",
                number(row[ERROR]),
            ]
        rows.append([str(layer), *left, dead, near, *right, *published])
    headers = [
        "layer",
        "recommended: position/latent_dim/k",
        study.error,
        "dead",
        "not told apart",
        f"with at most {FEW_DEAD:.0%} dead",
        f"its {study.error}",
        "highest EV",
        "EV (floor)",
        f"{study.error} there",
    ]
    text = (
        f"{of(n_some, len(rows))} layers have a configuration that has not collapsed and has {study.error} below 1; "
        f"{n_few} of them have one with at most {FEW_DEAD:.0%} dead features."
    )
    return text, table(headers, rows)


def short(row: pd.Series) -> str:
    return "/".join(str(int(row[axis])) for axis in AXES[1:])


def recommendations(study: Study) -> str:
    (layers, layer_table), (positions, position_table) = (
        recommended_axis(study, axis) for axis in ("layer", "position")
    )
    per_layer, per_layer_table = recommended_per_layer(study)
    note = (
        f"The order is by {study.error}; a layer or position that lacks a recommended configuration in some cell comes "
        "after those that have one in each. `not told apart`: configurations of the layer whose difference from the "
        "recommended one is smaller than the spread between seeds. The published ranking, by explained_variance, is "
        "on the right" + (" with the floor of its cell." if has(study.saes, "mean_explained_variance") else ".")
    )
    finding = f"{layers} {positions} {per_layer}"
    eligible = study.configs[study.configs["eligible"]]
    lowest = eligible.pivot_table(index="layer", columns="k", values=ERROR, aggfunc="min").reindex(
        index=study.grid.values("layer"), columns=study.grid.values("k")
    )
    sparser = f"For those who need a sparser code: the lowest {study.error} of each layer at each k:"
    blocks = [layer_table, position_table, per_layer_table, note, sparser, matrix_table(lowest)]
    return section("### 4.1 For Mechanistic Interpretability", finding, *blocks)


def lessons(study: Study) -> list[list[str]]:
    """What the data say about each choice of a next grid: question, answer."""
    configs, bests, saes = study.configs, study.bests, study.saes
    rows = []
    for axis in ("k", "latent_dim"):
        values = study.grid.values(axis)
        if len(values) > 1 and len(bests):
            ends = [of((bests[axis] == value).sum(), len(bests)) for value in (values[0], values[-1])]
            rows.append(
                [
                    f"Does the range of {axis} end too early?",
                    f"A cell's lowest {study.error} is at the largest {axis} ({values[-1]}) in {ends[1]} cells, at the "
                    f"smallest ({values[0]}) in {ends[0]}; beyond these nothing was trained.",
                ]
            )
    collapsed = configs.groupby("k")["collapsed"].mean()
    listed = ", ".join(f"k {k}: {percent(share)}" for k, share in collapsed.items())
    rows.append(["Does this training recipe reach every k?", f"Collapsed configurations: {listed}."])
    if study.n_seeds > 1:
        noise = configs[f"{ERROR}_sd"].median()
        gaps = bests.groupby("layer")[ERROR].mean().sort_values().diff().abs().median()
        answer = (
            f"The median standard deviation of {study.error} over {study.n_seeds} seeds is {number(noise)}; ordered by "
            f"the mean of their cells' lowest {study.error}, neighbouring layers are a median of {number(gaps)} apart."
        )
    else:
        answer = "Unknown: one seed. A second one comes before any finer comparison."
    rows.append(["How many seeds?", answer])
    if has(saes, FVU, "fvu_train"):
        gap = (saes[FVU] - saes["fvu_train"]).groupby(saes["latent_dim"]).mean()
        listed = ", ".join(f"latent_dim {size}: {number(value)}" for size, value in gap.items())
        rows.append(["Would more training rows help?", f"Mean gap fvu - fvu_train: {listed}."])
    if has(saes, FVU, "pca_fvu"):
        worse = (saes[FVU] >= saes["pca_fvu"]).groupby(saes["k"]).mean()
        listed = ", ".join(f"k {k}: {percent(share)}" for k, share in worse.items())
        rows.append(["Is PCA already as good?", f"SAEs whose fvu is no lower than that of PCA of rank k: {listed}."])
    decomposition = next(iter(study.variance.values()))
    if decomposition is not None:
        shares = decomposition.terms["share"]
        own = {axis: shares[[name for name in shares.index if axis in name.split(CROSS)]].sum() for axis in AXES}
        listed = ", ".join(f"{axis} {percent(share)}" for axis, share in own.items() if axis in shares)
        rows.append(
            [
                "Which axis could be thinned?",
                f"Share of the variance of {decomposition.metric} in which an axis has part, alone or with one other: "
                f"{listed}. The smallest costs least to thin.",
            ]
        )
    return rows


def future(study: Study) -> str:
    configs = study.configs
    finding = (
        f"{percent(configs['eligible'].mean())} of the configurations could be recommended at all (not collapsed, "
        f"{study.error} below 1); what the run says about each choice of a next grid:"
    )
    return section(
        "### 4.2 For Future Experiments", finding, table(["question", "what this run shows"], lessons(study), words=2)
    )


def recommended(study: Study) -> str:
    return "\n\n".join(["## 4. Recommendations", recommendations(study), future(study)])
