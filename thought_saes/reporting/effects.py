"""Section 3 of the report: what layer, position and the rest do."""

import numpy as np
import pandas as pd

from thought_saes.analysis.study import DEATH, ERROR, EV, Study, best, has, over_seeds, rank_correlation
from thought_saes.analysis.variance import CROSS, Decomposition
from thought_saes.common.text import GAMMA, TIMES, count, number, of, percent, section, small, table, with_sd
from thought_saes.reporting.results import matrix_table
from thought_saes.results.names import AXES


def compare_ends(study: Study, effects: pd.DataFrame, axis: str) -> str:
    """The two ends of a column of means by `axis`, and the runner-up, each difference judged."""
    ordered = effects.dropna(subset=["mean"]).sort_values("mean", kind="stable")
    if len(ordered) < 2:
        return f"there is nothing to compare: {count(len(ordered), axis)} with values"
    first, second, last = ordered.iloc[0], ordered.iloc[1], ordered.iloc[-1]
    apart = last["mean"] - first["mean"]
    text = (
        f"lowest at {axis} {first.name} ({with_sd(first['mean'], first['sd'])}) and highest at {axis} {last.name} "
        f"({with_sd(last['mean'], last['sd'])}), {number(apart)} apart: {study.judge(apart, last['sd'], first['sd'])}"
    )
    if len(ordered) > 2 and study.n_seeds > 1:
        ahead = second["mean"] - first["mean"]
        text += (
            f". Next after {axis} {first.name} comes {second.name}, {number(ahead)} higher: "
            f"{study.judge(ahead, second['sd'], first['sd'])}"
        )
    return text


def effect(study: Study, axis: str, heading: str) -> str:
    saes = study.saes
    errors = over_seeds(saes, [axis], ERROR)
    errors.index = errors.index.get_level_values(0)
    finding = f"Averaged over all other axes, {study.error} is {compare_ends(study, errors, axis)}."
    if study.has_fvu:
        ranks = rank_correlation(saes.groupby(axis)[EV].mean(), -errors["mean"])
        best_by_ev = saes.groupby(axis)[EV].mean().idxmax()
        finding += f" By {EV} the best is {axis} {best_by_ev}"
        finding += f"; the two orders have a rank correlation of {number(ranks, '.3f')}." if np.isfinite(ranks) else "."
    rows = []
    floors, gammas = has(saes, "mean_explained_variance"), has(saes, "gamma")
    for value, group in saes.groupby(axis):
        death = over_seeds(group, [axis], DEATH).iloc[0]
        eligible = study.configs[(study.configs[axis] == value) & study.configs["eligible"]]
        low = best(eligible)
        rows.append(
            [
                str(value),
                with_sd(*errors.loc[value]),
                number(group[ERROR].median()),
                with_sd(*low.iloc[0][[ERROR, f"{ERROR}_sd"]]) if len(low) else "-",
                *([str(int((group[ERROR] >= 1).sum()))] if study.has_fvu else []),
                f"{int(group['collapsed'].sum())}/{len(group)}",
                with_sd(death["mean"], death["sd"], ".3f"),
                number(group[EV].mean()),
                *([number(group["mean_explained_variance"].mean())] if floors else []),
                *([number(group["gamma"].mean(), ".2f")] if gammas else []),
            ]
        )
    bad = ["fvu >= 1"] if study.has_fvu else []
    optional = [*(["EV floor"] if floors else []), *([GAMMA] if gammas else [])]
    headers = [
        axis,
        f"mean {study.error}",
        "median",
        "lowest",
        *bad,
        "collapsed",
        "mean dead share",
        "mean EV",
        *optional,
    ]
    note = f"`lowest` is that of a configuration that has not collapsed and has {study.error} below 1."
    if study.grid.missing:
        note += " SAEs are missing, so not every row of this table is a mean over the same cells."
    if axis == "position":
        note += f" Position 0 is the {study.grid.position_0}, position p the p-th continuous thought."
    return section(heading, finding, table(headers, rows), note)


def variance_block(study: Study, metric: str, decomposition: Decomposition | None) -> list[str]:
    if decomposition is None:
        return [f"The variance of `{metric}` cannot be decomposed: no balanced part of the grid in which it varies."]
    terms = decomposition.terms
    with_error = study.n_seeds > 1
    headers = ["term", "sum of squares", "df", "share of variance", *(["F", "p"] if with_error else [])]
    rows = [
        [
            str(name),
            number(term["sum_sq"], ".4g"),
            str(int(term["df"])),
            percent(term["share"]),
            *([number(term["F"], ".1f"), small(term["p"])] if with_error else []),
        ]
        for name, term in terms.iterrows()
    ]
    left_out = (
        f" Without the layers of which SAEs are missing: {', '.join(map(str, decomposition.left_out))}."
        if decomposition.left_out
        else ""
    )
    return [f"Variance of `{metric}`:{left_out}", table(headers, rows)]


def variance_finding(study: Study) -> str:
    sentences = []
    for metric, decomposition in study.variance.items():
        if decomposition is None:
            continue
        shares = decomposition.terms["share"]
        between = shares[[name for name in shares.index if "seed" not in name]].sort_values(ascending=False)
        single = [name for name in between.index if name in AXES]
        listed = ", ".join(f"{name} {percent(value)}" for name, value in between.head(3).items())
        sentences.append(
            f"Of the variance of {metric} the largest shares are {listed}; the single axes have "
            f"{percent(between[single].sum())} together."
        )
        crossed = f"layer{CROSS}position"
        if crossed in shares:
            term = decomposition.terms.loc[crossed]
            tested = "" if np.isnan(term["p"]) else f" (F {number(term['F'], '.1f')}, p {small(term['p'])})"
            sentences[-1] += f" {crossed.capitalize()} has {percent(term['share'])}{tested}."
    return " ".join(sentences) or "No variance can be decomposed."


def interactions(study: Study) -> str:
    finding = variance_finding(study)
    bests = study.bests
    if len(bests):
        positions = bests.loc[bests.groupby("layer")[ERROR].idxmin(), "position"]
        commonest = int(positions.mode().iloc[0])
        finding += (
            f" The lowest {study.error} of a layer lies at position {commonest} in "
            f"{of((positions == commonest).sum(), len(positions))} layers"
            + (" (the commonest)." if positions.nunique() > 1 else ".")
        )
    error_term = (
        "The error term is the variation between seeds within a configuration: initial weights and order of the "
        "batches. So p is about training again, not about other questions or another model. The SAEs of a cell and a "
        "seed share the order of their batches; their errors are taken as independent."
        if study.n_seeds > 1
        else "One seed: there is no error term, hence no F and no p; what the seed does is inside the last row."
    )
    blocks = [block for metric, terms in study.variance.items() for block in variance_block(study, metric, terms)]
    lowest = bests.pivot(index="layer", columns="position", values=ERROR).reindex(
        index=study.grid.values("layer"), columns=study.grid.values("position")
    )
    title = f"Lowest {study.error} in each cell over k and latent_dim, of what has not collapsed and is below 1:"
    return section(
        f"### 3.3 Layer {TIMES} Position Interactions", finding, *blocks, error_term, title, matrix_table(lowest)
    )


def analysis(study: Study) -> str:
    layer, position = (
        effect(study, "layer", "### 3.1 Layer Effects"),
        effect(study, "position", "### 3.2 Position Effects"),
    )
    return "\n\n".join(["## 3. Analysis", layer, position, interactions(study)])
