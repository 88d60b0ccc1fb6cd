"""The tables of the report's three pages, from the Findings."""

from collections.abc import Sequence

import pandas as pd

from thought_saes.analysis.findings import AtK, Findings, Recommendation
from thought_saes.analysis.relative import Order
from thought_saes.analysis.study import DEATH, ERROR, EV, FVU, has, over_seeds
from thought_saes.common.text import GAMMA, number, of, percent, small, table, with_sd
from thought_saes.results.names import AXES


def names(row: pd.Series) -> list[str]:
    return [str(int(row[axis])) for axis in AXES]


def in_words(row: pd.Series) -> str:
    return ", ".join(f"{axis} {int(row[axis])}" for axis in AXES)


def lean(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table without the columns that are the same in every row: a sentence says those that hold a value."""
    if len(rows) < 2:
        return table(headers, rows, words)
    same = [place for place in range(words, len(headers)) if len({row[place] for row in rows}) == 1]
    kept = [place for place in range(len(headers)) if place not in same]
    said = [f"{headers[place]} {rows[0][place]}" for place in same if rows[0][place] != "-"]
    if len(kept) == words and said:  # nothing is left to tabulate
        return f"The same for every {headers[0]}: {', '.join(said)}."
    text = table([headers[place] for place in kept], [[row[place] for place in kept] for row in rows], words)
    if said:
        text += f"\n\nThe same in every row: {', '.join(said)}."
    return text


def quality(findings: Findings) -> str:
    """By metric, over all SAEs."""
    saes = findings.study.saes
    rows = []
    for column in (column for column in (FVU, "fvu_train", EV, DEATH) if has(saes, column)):
        over = over_seeds(saes.assign(all=0), ["all"], column).iloc[0]
        values = saes[column].dropna()
        quartiles = [values.quantile(q) for q in (0, 0.25, 0.5, 0.75, 1)]
        rows.append([column, with_sd(over["mean"], over["sd"]), number(values.std()), *map(number, quartiles)])
    return lean(["metric", "mean", "std over SAEs", "min", "25%", "median", "75%", "max"], rows)


def by_k(findings: Findings) -> str:
    error = findings.study.error
    headers = ["k", "SAEs", f"mean {error}", "median", f"{FVU} >= 1", "mean dead share", "can collapse", "collapsed"]
    headers += ["< 1.5k alive", "< 3k alive"]
    rows = [
        [
            str(at.k),
            str(at.saes),
            with_sd(*at.error),
            number(at.median),
            "-" if at.no_better is None else str(at.no_better),
            with_sd(*at.dead, ".3f"),
            str(at.can_collapse),
            *(str(at.collapsed[times]) for times in (2.0, 1.5, 3.0)),
        ]
        for at in findings.at
    ]
    return lean(headers, rows)


def against_baselines(findings: Findings) -> str:
    study = findings.study
    compared = study.saes.dropna(subset=[FVU, "pca_fvu"])
    rows = []
    for at in findings.at:
        group = compared[compared["k"] == at.k]
        if group.empty:
            continue
        trained = over_seeds(group, ["k"], FVU).iloc[0]
        lowest = study.configs[study.configs["k"] == at.k].groupby(["layer", "position"])[[FVU, "pca_fvu"]].min()
        lowest = lowest.dropna()
        rows.append(
            [
                str(at.k),
                with_sd(trained["mean"], trained["sd"]),
                number(lowest[FVU].mean()),
                number(lowest["pca_fvu"].mean()),
                number(group["untrained_fvu"].mean()),
                number(at.relative, ".2f"),
                of((group[FVU] < group["pca_fvu"]).sum(), len(group)),
                of((lowest[FVU] < lowest["pca_fvu"]).sum(), len(lowest)),
            ]
        )
    headers = ["k", "SAE, mean fvu", "SAE, best latent_dim", "PCA of rank k", "untrained SAE", "median fvu / PCA's"]
    return lean([*headers, "SAEs better than PCA", "cells where the best is"], rows)


def controls(findings: Findings) -> str:
    rows = [
        [
            str(at.k),
            number(at.control.real, ".3f"),
            number(at.control.gaussian, ".3f"),
            of(at.control.better_on_real, at.control.cells),
        ]
        for at in findings.at
        if at.control
    ]
    return lean(["k", "fvu / PCA's, real rows", "Gaussian rows", "cells where real rows are better"], rows)


def features(findings: Findings) -> str:
    rows = [
        [
            str(at.k),
            number(at.gap, ".3f"),
            percent(at.busiest),
            "-" if at.every_row is None else of(at.every_row, at.saes),
            number(at.gamma.pooled, ".2f") if at.gamma else "-",
            within(at),
        ]
        for at in findings.at
    ]
    headers = ["k", "fvu / fvu_train", "ten busiest, of their ceiling", "ten fire on every row"]
    return lean([*headers, f"death with {GAMMA}, pooled", "within a position: median (range)"], rows)


def within(at: AtK) -> str:
    if at.gamma is None or not at.gamma.within:
        return "-"
    low, high = min(at.gamma.within.values()), max(at.gamma.within.values())
    return f"{at.gamma.median:.2f} ({low:.2f} to {high:.2f})"


def axis_effects(findings: Findings, axis: str) -> str:
    """By k: the axis's share of the variance of log error, and which of its values are first and last."""
    study = findings.study
    rows = []
    for at in findings.at:
        ranking: Order = at.layers if axis == "layer" else at.positions
        found = study.variance_by_k[at.k]
        p = found.terms["p"].get(axis) if found else None
        rows.append(
            [
                str(at.k),
                percent(found.share(axis)) if found else "-",
                percent(found.share("seeds (error term)")) if found else "-",
                small(p) if p is not None else "-",
                *ends(ranking.by_error),
                *ends(ranking.by_relative),
                number(ranking.agreement, ".2f"),
            ]
        )
    error = study.error
    headers = ["k", f"share of log {error}", "of the seed", "p", f"lowest {error} at", "highest at"]
    return lean([*headers, "lowest relative to PCA at", "highest at ", "rank correlation"], rows)


def ends(ordered: pd.Series) -> list[str]:
    """The first and the last of an ascending series, with their values."""
    if ordered.empty:
        return ["-", "-"]
    return [f"{ordered.index[place]} ({ordered.iloc[place]:.3g})" for place in (0, -1)]


def recommendations(findings: Findings) -> str:
    """By k: what to use, or why nothing."""
    rows = [[str(one.k), *recommendation(findings, one)] for one in (at.recommendation for at in findings.at)]
    headers = ["k", "use", findings.study.error, "of PCA's", "dead", "cells with one", "told apart from it"]
    return lean(headers, rows, words=2)


def recommendation(findings: Findings, one: Recommendation) -> list[str]:
    cells = of(one.cells, one.all_cells)
    if one.config is None:
        assert one.reason
        return [f"none: {one.reason.value}", "-", "-", "-", cells, "-"]
    row = one.config
    apart = "-" if one.told_apart is None else of(one.told_apart, one.others)
    quoted = with_sd(row["quoted"], row["quoted_sd"])
    return [in_words(row), quoted, number(row["relative"], ".2f"), percent(row[DEATH]), cells, apart]


def focus(findings: Findings) -> str:
    rows = [
        [
            str(at.k),
            number(at.focus.lowest),
            f"{at.focus.rank or '-'} of {at.focus.cells}",
            number(at.focus.relative, ".2f"),
            f"{at.focus.rank_relative} of {at.focus.cells}" if at.focus.rank_relative else "-",
        ]
        for at in findings.at
        if at.focus
    ]
    error = findings.study.error
    return lean(["k", f"lowest {error}", f"rank by {error}", "relative to PCA", "rank relative to PCA"], rows)


def best_of_k(findings: Findings) -> str:
    """By k, the configuration of lowest error that has not collapsed, PCA aside."""
    configs = findings.study.configs
    rows = []
    for at in findings.at:
        eligible = configs[(configs["k"] == at.k) & configs["eligible"]].sort_values(ERROR, kind="stable")
        if eligible.empty:
            rows.append([str(at.k), "none", *["-"] * 5])
            continue
        row = eligible.iloc[0]
        rows.append(
            [
                str(at.k),
                "/".join(names(row)[:3]),
                with_sd(row[ERROR], row[f"{ERROR}_sd"]),
                number(row["relative"], ".2f"),
                number(row.get("effective_rank"), ".1f"),
                number(row[EV]),
                percent(row[DEATH]),
            ]
        )
    error = findings.study.error
    headers = ["k", "layer/position/latent_dim", f"lowest {error}", "of PCA's", "effective rank", "EV", "dead"]
    return lean(headers, rows, words=2)
