"""Sentences of the report that depend on several findings at once."""

import re
from typing import NamedTuple

import pandas as pd

from thought_saes.analysis.findings import Findings
from thought_saes.analysis.study import DEATH, ERROR, EV, Study, best, pareto_front, pareto_per_cell
from thought_saes.analysis.variance import CROSS
from thought_saes.common.text import GAMMA, count, known, number, of, percent, with_sd
from thought_saes.reporting.origin import Origin
from thought_saes.reporting.tables import in_words


def tidy(markdown: str) -> str:
    """At most one empty line between blocks, as templates with conditions leave more."""
    return re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"


def by_k(values: dict[int, str]) -> str:
    """`0.83 (k 5), 0.95 (k 100)`."""
    return ", ".join(f"{value} (k {k})" for k, value in values.items())


def best_overall(findings: Findings) -> str:
    chosen = [one.config for one in findings.recommended if one.config is not None]
    if not chosen:
        return "none is worth using."
    row = min(chosen, key=lambda config: config["choice"])
    sd = row["quoted_sd"]
    text = f"{in_words(row)}, {findings.study.error} {with_sd(row['quoted'], sd)}"
    text += " over seeds" if known(sd) else " (one seed: no error bar)"
    if known(row["relative"]):
        text += f", {number(row['relative'], '.2f')} of PCA's"
    return f"{text}. It falls with k, so that this is the best of k = {int(row['k'])}; section 4.1 has every k."


def strategy(findings: Findings) -> str:
    """What to use, in one paragraph."""
    use, everywhere = findings.recommended, [at.recommendation for at in findings.at]
    if not use:
        reasons: dict[str, list[str]] = {}
        for one in everywhere:
            reasons.setdefault(one.reason.value if one.reason else "nothing is known", []).append(str(one.k))
        why = "; ".join(f"at k = {', '.join(ks)} {reason}" for reason, ks in reasons.items())
        return (
            f"Use none of these SAEs: {why}. Train another recipe before looking at features, and compare with "
            "`compare_runs.py`."
        )
    cells = {of(one.cells, one.all_cells) for one in use}
    parts = [f"k = {one.k}: {of(one.cells, one.all_cells)} cells" for one in use]
    if len(cells) == 1:
        parts = [f"at k = {', '.join(str(one.k) for one in use)} in {cells.pop()} cells"]
    against = "predicting the mean and PCA of the same k" if use[0].against_pca else "predicting the mean"
    text = f"Choose k by how sparse a code is wanted; SAEs that beat {against}: {'; '.join(parts)}."
    nothing = [str(one.k) for one in everywhere if one.config is None]
    if nothing:
        text += f" At k = {', '.join(nothing)} use none."
    sizes = {at.k: at.one_size for at in findings.at if at.one_size and at.recommendation.config is not None}
    if sizes:
        costs = {
            k: f"latent_dim {size}, {percent(cost - 1)} more {findings.study.error}"
            for k, (size, cost) in sizes.items()
        }
        text += f" One latent_dim for all cells costs little or much: {by_k(costs)}, against each cell's own best."
    return text


def focus_answer(findings: Findings) -> str:
    places = [at.focus for at in findings.at if at.focus]
    if not places:
        return ""
    best_at = [str(place.k) for place in places if place.is_best]
    ranks = by_k({place.k: f"number {place.rank or '-'}" for place in places})
    relative = by_k({place.k: f"{place.rank_relative}" for place in places if place.rank_relative})
    answer = f"Yes, at k = {', '.join(best_at)}: " if best_at else "No: "
    text = f"{answer}of {places[0].cells} cells it is by {findings.study.error} {ranks}"
    return text + (f", relative to PCA {relative}." if relative else ".")


def cost(study: Study, origin: Origin) -> str:
    seconds = study.saes["train_time_sec"].dropna()
    if seconds.empty:
        return "The files do not say how long training took."
    by_size = {size: group.mean() for size, group in seconds.groupby(study.saes["latent_dim"])}
    each = ", ".join(f"latent_dim {size}: {number(value, '.2f')} s" for size, value in by_size.items())
    text = (
        f"Training took {number(seconds.sum() / 60, ',.1f')} minutes summed over {count(len(seconds), 'SAE')}, "
        f"{number(seconds.mean(), '.2f')} s each on average ({each})."
    )
    for folder, run in origin.runs.items():
        if "wall_seconds" in run:
            text += (
                f" The last run into `{folder}` trained {count(run.get('n_trained', 0), 'SAE')} in "
                f"{number(run['wall_seconds'] / 60, '.1f')} minutes, "
                f"{count(run.get('workers', 1), 'worker')} on {run.get('device', 'an unrecorded device')}."
            )
    return text


def thresholds(findings: Findings) -> str:
    counts = {
        times: sum(at.collapsed[times] for at in findings.at)
        for times in (findings.at[0].collapsed if findings.at else ())
    }
    whole = findings.collapsed[1]
    return ", ".join(f"{of(number_below, whole)} below {times:g}k" for times, number_below in counts.items())


def ev_best(study: Study) -> str:
    top = best(study.configs, EV, highest=True)
    if top.empty:
        return "unknown"
    row = top.iloc[0]
    rank = study.configs[ERROR].rank(method="min")[row.name]
    place = f", number {int(rank)} of {len(study.configs):,} by {study.error}" if pd.notna(rank) else ""
    return f"{in_words(row)} (EV {number(row[EV])}){place}"


def eases(findings: Findings, name: str) -> str:
    values = {at.k: getattr(at.ease, name) for at in findings.at}
    return by_k({k: f"{value:.2f}" for k, value in values.items() if known(value)})


def control(findings: Findings) -> str:
    controls = {at.k: at.control for at in findings.at if at.control}
    if not controls:
        return ""
    shows = [str(k) for k, one in controls.items() if one.shows_structure]
    if not shows:
        return (
            "At no k do the SAEs gain more over PCA on the real rows than on such rows: no sparse structure is shown."
        )
    text = f"At k = {', '.join(shows)} the SAEs gain more over PCA on the real rows than on such rows, in most cells"
    rest = [str(k) for k, one in controls.items() if not one.shows_structure]
    return text + (f"; at k = {', '.join(rest)} they do not." if rest else ".")


class Front(NamedTuple):
    """How many configurations are on the fronts of (k, error) and (k, error, dead share)."""

    configs: int
    two: int
    three: int
    cells_two: int
    cells_three: int


def front(study: Study) -> Front | None:
    configs = study.configs[~study.configs["collapsed"]].dropna(subset=[ERROR])
    if configs.empty:
        return None
    two, three = ["k", ERROR], ["k", ERROR, DEATH]
    sizes = [
        int(of_front(configs, columns).sum())
        for of_front in (pareto_front, pareto_per_cell)
        for columns in (two, three)
    ]
    return Front(len(configs), *sizes)


def features(findings: Findings) -> str:
    at = findings.at
    parts = []
    gaps = {one.k: f"{one.gap:.3f}" for one in at if known(one.gap)}
    if gaps:
        parts.append(f"fvu on validation rows is that of training rows times {by_k(gaps)}, geometric means.")
    else:
        parts.append("The gap between training and validation rows cannot be said: these files hold no fvu_train.")
    every = [one for one in at if one.every_row]
    if every:
        listed = by_k({one.k: f"{one.every_row} of {one.saes}" for one in every})
        parts.append(
            f"In {listed} SAEs ten features fire on *every* row (their share of all firings is at its ceiling, 10/k): "
            "such features carry the mean and tell no row from another."
        )
    turned = [str(one.k) for one in at if one.gamma and one.gamma.turned]
    if any(one.gamma for one in at):
        text = (
            f"Whether {GAMMA} = ‖mean‖/‖standard deviation‖ goes with dead features is judged within positions, which "
            "differ in both"
        )
        parts.append(text + (f": at k = {', '.join(turned)} pooling them shows the opposite sign." if turned else "."))
    else:
        parts.append(f"Whether {GAMMA} goes with dead features cannot be said: there are no baselines.")
    return " ".join(parts)


def axis(findings: Findings, name: str) -> str:
    """What the table of an axis shows."""
    study = findings.study
    shares = {at.k: percent(found.share(name)) for at in findings.at if (found := study.variance_by_k[at.k])}
    shares = {k: share for k, share in shares.items() if share != "-"}
    text = (
        f"Of the variance of log {study.error} at one k, {name} has {by_k(shares)}."
        if shares
        else f"There is nothing to compare along {name}, or too few SAEs for it."
    )
    orders = {at.k: at.layers if name == "layer" else at.positions for at in findings.at}
    turned = [str(k) for k, order in orders.items() if order.turned]
    if turned:
        text += (
            f" Relative to PCA the order turns round at k = {', '.join(turned)}: the {name} of lowest {study.error} is "
            "then among the last third."
        )
    if study.n_seeds < 2:
        text += " With one seed no difference can be judged against chance."
    return text


def interactions(findings: Findings) -> str:
    study, crossed = findings.study, f"layer{CROSS}position"
    shares = {at.k: percent(found.share(crossed)) for at in findings.at if (found := study.variance_by_k[at.k])}
    shares = {k: share for k, share in shares.items() if share != "-"}
    text = f"Layer {CROSS.strip()} position has {by_k(shares)} of that variance beside the two alone." if shares else ""
    if len(study.bests):
        positions = study.bests.loc[study.bests.groupby("layer")[ERROR].idxmin(), "position"]
        commonest = int(positions.mode().iloc[0])
        text += (
            f" The lowest {study.error} of a layer lies at position {commonest} in "
            f"{of((positions == commonest).sum(), len(positions))} layers."
        )
    return text.strip() or "No interaction can be decomposed."


def lessons(findings: Findings) -> list[str]:
    """What the data say about each choice of a next grid."""
    study, found = findings.study, []
    sizes = study.grid.values("latent_dim")
    if len(sizes) > 1 and len(study.bests):
        ends = [of((study.bests["latent_dim"] == size).sum(), len(study.bests)) for size in (sizes[0], sizes[-1])]
        found.append(
            f"**Range of latent_dim**: a cell's lowest {study.error} is at the largest ({sizes[-1]}) in {ends[1]} "
            f"cells, at the smallest ({sizes[0]}) in {ends[0]}."
        )
    none = [str(at.k) for at in findings.at if at.recommendation.config is None]
    if none:
        found.append(
            f"**Recipe before grid**: at k = {', '.join(none)} no SAE is worth using; more of the same will not be."
        )
    if study.n_seeds > 1:
        noise = {at.k: f"{at_noise(findings, at.k):.1%}" for at in findings.at}
        found.append(f"**Seeds**: the median spread of {study.error} over seeds, as a share of it, is {by_k(noise)}.")
    else:
        found.append("**Seeds**: a second one comes before any finer comparison.")
    gaps = {at.k: f"{at.gap:.3f}" for at in findings.at if known(at.gap) and at.gap > 1.05}
    if gaps:
        found.append(
            f"**More rows or less training**: fvu is above that of the training rows by a factor of {by_k(gaps)}."
        )
    return found


def at_noise(findings: Findings, k: int) -> float:
    """Median over configurations of the spread between seeds as a share of the error."""
    configs = findings.study.configs
    here = configs[configs["k"] == k]
    return float((here[f"{ERROR}_sd"] / here[ERROR]).median())
