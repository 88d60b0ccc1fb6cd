"""Section 2 of the report: how good the SAEs are, which are best, and against what."""

import pandas as pd

from thought_saes.analysis.study import (
    DEATH,
    ERROR,
    EV,
    FVU,
    Study,
    best,
    better_than_pca,
    has,
    not_told_apart,
    over_seeds,
    pareto_front,
    pareto_per_cell,
    rank_correlation,
)
from thought_saes.common.text import GAMMA, count, number, of, percent, section, table, with_sd
from thought_saes.results.names import AXES

TOP = 10


def names(row: pd.Series) -> list[str]:
    return [str(int(row[axis])) for axis in AXES]


def in_words(row: pd.Series) -> str:
    return ", ".join(f"{axis} {int(row[axis])}" for axis in AXES)


def quality(study: Study) -> str:
    saes = study.saes
    overall = over_seeds(saes.assign(all=0), ["all"], ERROR).iloc[0]
    n_bad, n_collapsed = int((saes[ERROR] >= 1).sum()), int(saes["collapsed"].sum())
    finding = (
        f"{of(n_bad, len(saes))} SAEs are no better than predicting the mean ({study.error} >= 1). "
        if study.has_fvu
        else "How many SAEs are worse than predicting the mean cannot be said: these files hold no fvu. "
    )
    finding += (
        f"{of(n_collapsed, len(saes))} have collapsed: fewer than 2k of their features ever fire, so nearly the "
        f"same ones on every row, and little is left of choosing k. Mean {study.error} is "
        f"{with_sd(overall['mean'], overall['sd'])}, its median "
        f"{number(saes[ERROR].median())}; {percent(saes[DEATH].mean())} of an SAE's features are dead on average."
    )
    columns = [column for column in (FVU, "fvu_train", EV, DEATH) if has(saes, column)]
    spread_rows = []
    for column in columns:
        over = over_seeds(saes.assign(all=0), ["all"], column).iloc[0]
        values = saes[column].dropna()
        quartiles = [values.quantile(q) for q in (0, 0.25, 0.5, 0.75, 1)]
        spread_rows.append([column, with_sd(over["mean"], over["sd"]), number(values.std()), *map(number, quartiles)])
    by_k = []
    for k, group in saes.groupby("k"):
        error, death = (over_seeds(group, ["k"], column).iloc[0] for column in (ERROR, DEATH))
        by_k.append(
            [
                str(k),
                str(len(group)),
                with_sd(error["mean"], error["sd"]),
                number(group[ERROR].median()),
                *([str(int((group[ERROR] >= 1).sum()))] if study.has_fvu else []),
                str(int(group["collapsed"].sum())),
                with_sd(death["mean"], death["sd"], ".3f"),
            ]
        )
    headers = ["metric", "mean", "std over SAEs", "min", "25%", "median", "75%", "max"]
    no_better = [f"{FVU} >= 1"] if study.has_fvu else []
    k_headers = ["k", "SAEs", f"mean {study.error}", "median", *no_better, "collapsed", "mean dead share"]
    return section("### 2.1 Overall Quality Distribution", finding, table(headers, spread_rows), table(k_headers, by_k))


def best_configurations(study: Study) -> str:
    configs, n_seeds = study.configs, study.n_seeds
    eligible = configs[configs["eligible"]]
    by_ev = best(configs, EV, highest=True, count=TOP)
    by_error = best(eligible, count=TOP)
    ev_rank = configs[EV].rank(ascending=False, method="min")
    error_rank = configs[ERROR].rank(method="min")
    if by_error.empty:
        finding = f"No configuration can be recommended: each has collapsed or has {study.error} >= 1."
    else:
        first = by_error.iloc[0]
        finding = (
            f"The lowest {study.error} of a configuration that has not collapsed is "
            f"{with_sd(first[ERROR], first[f'{ERROR}_sd'])}, at {in_words(first)}"
        )
        if n_seeds < 2:
            finding += "; with one seed it cannot be said whether the next ones are worse."
        elif near := not_told_apart(eligible, first):
            finding += f"; {count(near, 'other')} differ from it by less than the spread between seeds."
        else:
            finding += "; every other one differs from it by more than the spread between seeds."
    disagreement = ""
    if study.has_fvu:
        common = len(set(by_ev.index) & set(best(configs, count=len(by_ev)).index))
        top = by_ev.iloc[0]
        disagreement = (
            f"By the published {EV} the best would be {in_words(top)} (EV {number(top[EV])}), which is number "
            f"{int(error_rank[top.name])} of {len(configs):,} by fvu. Over all configurations the two rankings have a "
            f"rank correlation (Spearman, high EV against low fvu) of "
            f"{number(rank_correlation(configs[EV], -configs[ERROR]), '.3f')}; of the {len(by_ev)} highest EV {common} "
            f"are among the {len(by_ev)} lowest fvu, and {int(by_ev['collapsed'].sum())} have collapsed."
        )
    if has(configs, "mean_explained_variance"):
        disagreement += (
            " The floor of a cell is the EV of predicting the training mean: the rank correlation of EV with it is "
            f"{number(rank_correlation(configs[EV], configs['mean_explained_variance']), '.3f')}, and "
            f"{of((configs[EV] < configs['mean_explained_variance']).sum(), len(configs))} configurations lie below it."
        )

    def row(config: pd.Series) -> list[str]:
        floor = config.get("mean_explained_variance")
        return [
            *names(config),
            with_sd(config[ERROR], config[f"{ERROR}_sd"]),
            str(int(error_rank[config.name])) if pd.notna(error_rank[config.name]) else "-",
            number(config[EV]),
            str(int(ev_rank[config.name])),
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
            tables += [title, table(headers, [row(config) for _, config in top.iterrows()])]
    deaths = best(configs, DEATH)
    least = ""
    if not deaths.empty:
        shared = int((configs[DEATH] == deaths.iloc[0][DEATH]).sum())
        least = (
            f"The lowest feature death is {percent(deaths.iloc[0][DEATH])}, at {in_words(deaths.iloc[0])}"
            f" ({study.error} {number(deaths.iloc[0][ERROR])})"
            + (f", the first of {shared:,} that share it." if shared > 1 else ".")
        )
    ranks = f"`rank` (by {study.error}) and `EV rank` are among all {len(configs):,} configurations."
    blocks = [disagreement.strip(), ranks, *tables, least]
    return section("### 2.2 Best Configurations", finding, *blocks)


def matrix_table(matrix: pd.DataFrame) -> str:
    rows = [[str(layer), *map(number, values)] for layer, values in zip(matrix.index, matrix.to_numpy(), strict=True)]
    return table(["layer", *(f"{matrix.columns.name} {value}" for value in matrix.columns)], rows)


def matrices(study: Study) -> str:
    """Layer x position at the chosen k and latent_dim, as the heatmaps show."""
    grid, chosen = study.grid, study.chosen
    here = f"k = {chosen.k}, latent_dim = {chosen.latent_dim}" + (", mean over seeds" if study.n_seeds > 1 else "")
    wanted = {
        FVU: FVU,
        EV: EV,
        "mean_explained_variance": "explained_variance of predicting the training mean (the floor)",
        DEATH: DEATH,
    }
    there = {
        title: grid.layer_position_matrix(column, chosen.latent_dim, chosen.k)
        for column, title in wanted.items()
        if has(grid.table, column)
    }
    leading = there[FVU] if FVU in there else 1 - there[EV]
    flat = leading.stack()
    if flat.empty:
        finding = f"No cell has a value at {here}."
    else:
        (low_layer, low_position), (high_layer, high_position) = flat.idxmin(), flat.idxmax()
        finding = (
            f"At {here}, {study.error} goes from {number(flat.min())} (layer {low_layer}, position {low_position}) to "
            f"{number(flat.max())} (layer {high_layer}, position {high_position})."
        )
    if FVU in there and EV in there:
        correlation = rank_correlation(there[EV].stack(), -flat)
        finding += (
            f" The cells' order by {EV} agrees with that by fvu with a rank correlation of {number(correlation, '.3f')}"
        )
        floor = there.get("explained_variance of predicting the training mean (the floor)")
        if floor is not None:
            correlation = rank_correlation(there[EV].stack(), floor.stack())
            finding += f", and with that of their floors with {number(correlation, '.3f')}"
        finding += "."
    note = f"Note: {chosen.note}." if chosen.note else ""
    blocks = [block for title, matrix in there.items() for block in (f"`{title}`:", matrix_table(matrix))]
    return section("### 2.3 Layer and Position Effects", finding, note, *blocks)


def baselines(study: Study) -> str:
    heading = "### 2.4 Baselines"
    saes = study.saes
    if not has(saes, "mean_explained_variance"):
        return section(
            heading,
            "These results hold no baselines (`baselines_pos*_layer*.json`): what predicting the mean, PCA and "
            "untrained SAEs score is not known, and what needs it is left out of this report.",
        )
    floor = saes.drop_duplicates(["layer", "position"])["mean_explained_variance"].dropna()
    finding = (
        f"Predicting the training mean scores an {EV} of {number(floor.min())} to {number(floor.max())} "
        f"(median {number(floor.median())}) over the {count(len(floor), 'cell')}."
    )
    beat_pca = better_than_pca(saes)
    if beat_pca is None:
        return section(heading, finding + " These files hold no fvu to compare with PCA.")
    finding += f" {of(*beat_pca)} SAEs have a lower fvu than PCA of rank k."
    compared = saes.dropna(subset=[FVU, "pca_fvu"])
    rows = []
    for k, group in compared.groupby("k"):
        trained = over_seeds(group, ["k"], FVU).iloc[0]
        lowest = study.configs[study.configs["k"] == k].groupby(["layer", "position"])[[FVU, "pca_fvu"]].min().dropna()
        rows.append(
            [
                str(k),
                with_sd(trained["mean"], trained["sd"]),
                number(lowest[FVU].mean()),
                number(lowest["pca_fvu"].mean()),
                number(group["untrained_fvu"].mean()),
                of((group[FVU] < group["pca_fvu"]).sum(), len(group)),
                of((lowest[FVU] < lowest["pca_fvu"]).sum(), len(lowest)),
            ]
        )
    headers = [
        "k",
        "SAE, mean fvu",
        "SAE, best latent_dim",
        "PCA of rank k",
        "untrained SAE",
        "SAEs better than PCA",
        "cells where the best is",
    ]
    note = (
        "Means over layers and positions. PCA uses the same k directions for every row, an SAE chooses k of latent_dim "
        "for each: where its fvu is no lower, the choice has gained nothing."
    )
    return section(heading, finding, table(headers, rows), note)


def pareto(study: Study) -> str:
    configs = study.configs[~study.configs["collapsed"]].dropna(subset=[ERROR])
    left_out = len(study.configs) - len(configs)
    if configs.empty:
        return section("### 2.5 Pareto Fronts", "Every configuration has collapsed: there is no front.")
    fronts = {"two": ["k", ERROR], "three": ["k", ERROR, DEATH]}
    whole = {name: pareto_front(configs, columns) for name, columns in fronts.items()}
    cells = {name: pareto_per_cell(configs, columns) for name, columns in fronts.items()}
    finding = (
        f"Of {count(len(configs), 'configuration')} that have not collapsed, {int(whole['two'].sum())} are "
        f"Pareto-optimal in (k, {study.error}) and {int(whole['three'].sum())} in (k, {study.error}, dead share); "
        f"within their own layer and position {int(cells['two'].sum()):,} and {int(cells['three'].sum()):,} are. "
        f"{of(left_out, len(study.configs))} are left out as collapsed or without a value."
    )
    front = configs[whole["two"]].sort_values("k", kind="stable")
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
    note = (
        "A configuration is dominated if another is at least as good in every quantity and better in one. "
        f"The front of the whole grid in (k, {study.error}):"
    )
    return section(
        "### 2.5 Pareto Fronts",
        finding,
        note,
        table([*AXES, study.error, "dead"], rows),
        "On the front of its own layer and position, in how many cells:",
        table(["k", "latent_dim", "cells", f"(k, {study.error})", f"(k, {study.error}, dead)"], share),
    )


def features(study: Study) -> str:
    """Dead features against gamma, and the gap between training and validation rows."""
    saes, blocks, findings = study.saes, [], []
    if has(saes, "gamma"):
        cells = saes.groupby(["k", "layer", "position"])[[DEATH, "gamma"]].mean()
        correlations = {k: rank_correlation(group[DEATH], group["gamma"]) for k, group in cells.groupby(level="k")}
        gamma = saes.drop_duplicates(["layer", "position"])["gamma"].dropna()
        listed = "; ".join(f"k {k}: {number(value, '.2f')}" for k, value in correlations.items())
        findings.append(
            f"{GAMMA} = ‖mean‖/‖standard deviation‖ of a cell runs from {number(gamma.min(), '.2f')} to "
            f"{number(gamma.max(), '.2f')}; over the {count(len(gamma), 'cell')} its rank correlation with the share "
            f"of dead features is, by k: {listed}."
        )
    else:
        findings.append(f"Whether {GAMMA} goes with dead features cannot be said: there are no baselines.")
    if has(saes, FVU, "fvu_train"):
        gap = saes[FVU] - saes["fvu_train"]
        findings.append(
            f"The gap fvu - fvu_train is {number(gap.mean())} on average (median {number(gap.median())}); it is "
            f"positive in {of((gap > 0).sum(), len(gap))} SAEs."
        )
        rows = []
        for (k, latent_dim), group in saes.assign(gap=gap).groupby(["k", "latent_dim"]):
            trained, held_out, lost = (over_seeds(group, ["k"], column).iloc[0] for column in ("fvu_train", FVU, "gap"))
            rows.append(
                [
                    str(k),
                    str(latent_dim),
                    *(with_sd(over["mean"], over["sd"]) for over in (trained, held_out, lost)),
                    number(group["num_active_features"].mean(), ".1f"),
                    percent(group["busiest_10_share"].mean()) if has(group, "busiest_10_share") else "-",
                ]
            )
        headers = ["k", "latent_dim", "fvu_train", "fvu", "gap", "features alive", "firings of the 10 busiest"]
        blocks += ["Means over layers and positions:", table(headers, rows)]
    else:
        findings.append("The gap between training and validation rows cannot be said: these files hold no fvu_train.")
    return section("### 2.6 Features and Generalisation", " ".join(findings), *blocks)


def results(study: Study) -> str:
    sections = [quality, best_configurations, matrices, baselines, pareto, features]
    return "\n\n".join(["## 2. Results", *(one(study) for one in sections)])
