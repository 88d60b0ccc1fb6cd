"""The tables of the report's appendix: everything that its pages rest on and figures do not show."""

from collections.abc import Sequence

import pandas as pd

from thought_saes.analysis.findings import Findings
from thought_saes.analysis.relative import ranking
from thought_saes.analysis.study import (
    DEATH,
    ERROR,
    EV,
    FEW_DEAD,
    Study,
    best,
    has,
    over_seeds,
    pareto_front,
    pareto_per_cell,
)
from thought_saes.analysis.told_apart import ALPHA, told_apart
from thought_saes.analysis.variance import Decomposition
from thought_saes.common.text import GAMMA, count, number, of, percent, small, table, with_sd
from thought_saes.reporting.tables import in_words, lean, names
from thought_saes.results.names import AXES

TOP = 10


def compare_ends(study: Study, axis: str) -> str:
    """The two ends of the means by `axis`, and how many values are told apart from the lowest."""
    means = over_seeds(study.saes, [axis], ERROR).droplevel([]).dropna(subset=["mean"])
    means = means.sort_values("mean", kind="stable")
    if len(means) < 2:
        return f"there is nothing to compare: {count(len(means), axis)} with values"
    first, last = means.iloc[0], means.iloc[-1]
    value = {end: means.index[place] for end, place in (("first", 0), ("last", -1))}
    text = (
        f"lowest at {axis} {value['first']} ({with_sd(first['mean'], first['sd'])}) and highest at {axis} "
        f"{value['last']} ({with_sd(last['mean'], last['sd'])})"
    )
    if study.n_seeds < 2:
        return text + "; with one seed no difference can be judged against chance"
    apart = told_apart(means["mean"], means["sd"], means.index[0], study.n_seeds)
    return text + (
        f"; {int(apart.sum())} of the {count(len(apart), 'other')} differ from the lowest by more than chance (Welch's "
        f"t with Holm's correction, {ALPHA:.0%})"
    )


def effect(study: Study, axis: str) -> str:
    """A finding and the table of an axis over everything else."""
    saes = study.saes
    finding = f"Averaged over all other axes, {study.error} is {compare_ends(study, axis)}."
    ranks = ranking(study, axis)
    floors, gammas, sizes = (has(saes, name) for name in ("mean_explained_variance", "gamma", "effective_rank"))
    rows = []
    for value, group in saes.groupby(axis):
        errors, death = (over_seeds(group, [axis], column).iloc[0] for column in (ERROR, DEATH))
        low = best(study.configs[(study.configs[axis] == value) & study.configs["eligible"]])
        own = ranks.loc[value] if value in ranks.index else None
        rows.append(
            [
                str(value),
                with_sd(errors["mean"], errors["sd"]),
                number(group[ERROR].median()),
                with_sd(*low.iloc[0][[ERROR, f"{ERROR}_sd"]]) if len(low) else "-",
                f"{with_sd(own['mean'], own['sd'])} ({int(own['cells'])})" if own is not None else "-",
                *([str(int((group[ERROR] >= 1).sum()))] if study.has_fvu else []),
                f"{int(group['collapsed'].sum())}/{int(group['can_collapse'].sum())}",
                with_sd(death["mean"], death["sd"], ".3f"),
                number(group[EV].mean()),
                *([number(group["mean_explained_variance"].mean())] if floors else []),
                *([number(group["gamma"].mean(), ".2f")] if gammas else []),
                *([number(group["effective_rank"].mean(), ".1f")] if sizes else []),
            ]
        )
    optional = [*(["EV floor"] if floors else []), *([GAMMA] if gammas else []), *(["effective rank"] if sizes else [])]
    headers = [axis, f"mean {study.error}", "median", "lowest", "mean of cells' lowest (cells)"]
    headers += [*(["fvu >= 1"] if study.has_fvu else []), "collapsed", "mean dead share", "mean EV", *optional]
    note = f"`lowest` is that of a configuration that has not collapsed and has {study.error} below 1."
    if study.grid.missing:
        note += " SAEs are missing, so not every row of this table is a mean over the same cells."
    return f"{finding}\n\n{lean(headers, rows)}\n\n{note}"


def per_layer(study: Study) -> str:
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
        if len(low):
            row = low.iloc[0]
            left = [short(row), f"{with_sd(row[ERROR], row[f'{ERROR}_sd'])}"]
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
        rows.append([str(layer), *left, dead, *right, *published])
    headers = [
        "layer",
        "lowest: position/latent_dim/k",
        study.error,
        "dead",
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
    return f"{text}\n\n{lean(headers, rows)}"


def short(row: pd.Series) -> str:
    return "/".join(str(int(row[axis])) for axis in AXES[1:])


def top(study: Study) -> str:
    """The configurations of lowest error and those of highest explained variance."""
    configs = study.configs
    eligible = configs[configs["eligible"]]
    by_ev, by_error = best(configs, EV, highest=True, count=TOP), best(eligible, count=TOP)
    ev_rank = configs[EV].rank(ascending=False, method="min")
    error_rank = configs[ERROR].rank(method="min")

    def row(config: pd.Series) -> list[str]:
        floor = config.get("mean_explained_variance")
        return [
            *names(config),
            with_sd(config[ERROR], config[f"{ERROR}_sd"]),
            str(int(error_rank[config.name])) if pd.notna(error_rank[config.name]) else "-",
            number(config[EV]),
            str(int(ev_rank[config.name])) if pd.notna(ev_rank[config.name]) else "-",
            number(floor),
            percent(config[DEATH]),
            "yes" if config["collapsed"] else "no",
        ]

    headers = [*AXES, study.error, "rank", "EV", "EV rank", "EV floor", "dead", "collapsed"]
    tables = []
    for title, top in (
        (f"By {study.error}, those that have not collapsed:", by_error),
        (f"By the published {EV}, all:", by_ev),
    ):
        if not top.empty:
            tables += [title, lean(headers, [row(config) for _, config in top.iterrows()])]
    deaths = best(configs, DEATH)
    if not deaths.empty:
        shared = int((configs[DEATH] == deaths.iloc[0][DEATH]).sum())
        tables.append(
            f"The lowest feature death is {percent(deaths.iloc[0][DEATH])}, at {in_words(deaths.iloc[0])}"
            f" ({study.error} {number(deaths.iloc[0][ERROR])})"
            + (f", the first of {shared:,} that share it." if shared > 1 else ".")
        )
    ranks = f"`rank` (by {study.error}) and `EV rank` are among all {len(configs):,} configurations."
    return "\n\n".join([ranks, *tables])


def pareto(study: Study) -> str:
    """Which configurations nothing else dominates."""
    configs = study.configs[~study.configs["collapsed"]].dropna(subset=[ERROR])
    if configs.empty:
        return "Every configuration has collapsed: there is no front."
    fronts = {"two": ["k", ERROR], "three": ["k", ERROR, DEATH]}
    whole = pareto_front(configs, fronts["two"])
    cells = {name: pareto_per_cell(configs, columns) for name, columns in fronts.items()}
    front = configs[whole].sort_values("k", kind="stable")
    rows = [[*names(row), with_sd(row[ERROR], row[f"{ERROR}_sd"]), percent(row[DEATH])] for _, row in front.iterrows()]
    share = [
        [
            str(k),
            str(latent_dim),
            str(len(group)),
            str(int(cells["two"][group.index].sum())),
            str(int(cells["three"][group.index].sum())),
        ]
        for (k, latent_dim), group in configs.groupby(["k", "latent_dim"])
    ]
    return "\n\n".join(
        [
            f"The front of the whole grid in (k, {study.error}):",
            lean([*AXES, study.error, "dead"], rows),
            "On the front of its own layer and position, in how many cells:",
            lean(["k", "latent_dim", "cells", f"(k, {study.error})", f"(k, {study.error}, dead)"], share, words=2),
        ]
    )


def variance_block(title: str, decomposition: Decomposition | None) -> list[str]:
    if decomposition is None:
        return [f"{title} cannot be decomposed: no balanced part of the grid in which it varies."]
    terms = decomposition.terms
    tested = bool(terms["F"].notna().any())
    headers = ["term", "sum of squares", "df", "share of variance", *(["F", "p"] if tested else [])]
    rows = [
        [
            str(name),
            number(term["sum_sq"], ".4g"),
            str(int(term["df"])),
            percent(term["share"]),
            *([number(term["F"], ".1f"), small(term["p"])] if tested else []),
        ]
        for name, term in terms.iterrows()
    ]
    left_out = (
        f" Without the layers of which SAEs are missing: {', '.join(map(str, decomposition.left_out))}."
        if decomposition.left_out
        else ""
    )
    return [f"{title}:{left_out}", table(headers, rows)]


def variance(study: Study) -> str:
    """The decompositions: raw and of the logarithm over every k, then the logarithm at each k with its tests."""
    blocks = [block for metric, terms in study.variance.items() for block in variance_block(f"`{metric}`", terms)]
    blocks += variance_block(f"log {study.error}, every k", study.log_variance)
    for k, terms in study.variance_by_k.items():
        blocks += variance_block(f"log {study.error} at k = {k}", terms)
    return "\n\n".join(blocks)


def files(findings: Findings, kinds: dict[str, int], written: Sequence[str]) -> str:
    rows = [[f"`{name}`", f"{there:,}"] for name, there in kinds.items()] + [[f"`{name}`", "1"] for name in written]
    return table(["file", "number"], rows)
