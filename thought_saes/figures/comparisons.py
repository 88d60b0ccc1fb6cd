"""Figures that set SAEs against each other and against baselines: fvu against k, Pareto front, death against gamma,
training against validation rows, shares of variance.

Each takes a Study and raises NotThere, with the reason, where the files do not hold its data. Points are means over
seeds and bars their standard deviation, where there are several seeds.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from thought_saes.analysis.study import DEATH, ERROR, FVU, Study, has, over_seeds, pareto_front, rank_correlation
from thought_saes.common.text import GAMMA
from thought_saes.figures.style import (
    COLORS,
    MARKERS,
    SMALL,
    TEXT,
    NotThere,
    k_axis,
    log_scale,
    new_figure,
    ordered_colors,
    plain_axes,
    seeds_note,
)

PANELS_A_ROW = 5


def fvu_against_k(study: Study) -> Figure:
    """A panel for each layer: each latent_dim, and PCA of rank k."""
    if not study.has_fvu:
        raise NotThere("the files hold no fvu")
    grid, saes = study.grid, study.saes
    layers, sizes, k_values = grid.values("layer"), grid.values("latent_dim"), grid.values("k")
    with_pca = has(saes, "pca_fvu")
    columns = min(PANELS_A_ROW, math.ceil(math.sqrt(len(layers))))
    rows = math.ceil(len(layers) / columns)
    subtitle = f"mean over positions of all SAEs, {seeds_note(study)}; 1 is predicting the mean" + (
        "" if with_pca else "; no baselines, so no curve of PCA"
    )
    height = 1.1 + rows * max(1.25, min(2.2, 6.6 / columns))
    figure = new_figure(height, "Fraction of variance unexplained against k, by layer", subtitle)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lowest, highest = 1.0, 1.0
    for place, panel in enumerate(panels.flat):
        if place >= len(layers):
            panel.set_axis_off()
            continue
        here = saes[saes["layer"] == layers[place]]
        for number, size in enumerate(sizes):
            over = over_seeds(here[here["latent_dim"] == size], ["k"], FVU).dropna(subset=["mean"])
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            bars = over["sd"] if study.n_seeds > 1 else None
            k = over.index.get_level_values(0)
            panel.errorbar(k, over["mean"], yerr=bars, markersize=3, linewidth=1, elinewidth=0.8, capsize=1.5, **style)
            lowest, highest = min(lowest, over["mean"].min()), max(highest, over["mean"].max())
        if with_pca:
            pca = here.groupby("k")["pca_fvu"].mean().dropna()
            panel.plot(pca.index, pca, color="black", linestyle="--", linewidth=1)
            lowest, highest = min(lowest, pca.min()), max(highest, pca.max())
        panel.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        panel.set_title(f"layer {layers[place]}", fontsize=TEXT, pad=3)
        last_row = place + columns >= len(layers)
        plain_axes(panel, "k" if last_row else "", "fvu" if place % columns == 0 else "")
        panel.tick_params(labelbottom=last_row)
    panels.flat[0].set_ylim(max(lowest, 1e-6) * 0.8, highest * 1.25)
    k_axis(panels.flat[0], k_values)
    log_scale(panels.flat[0], "y")
    handles = [
        Line2D([], [], color=COLORS[n % len(COLORS)], marker=MARKERS[n % len(MARKERS)], markersize=4, linewidth=1)
        for n in range(len(sizes))
    ]
    labels = [f"SAE, latent_dim {size}" for size in sizes]
    if with_pca:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1))
        labels.append("PCA of rank k")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=TEXT, frameon=False)
    return figure


def pareto(study: Study) -> Figure:
    """Every configuration by k and error; the front is a line, the dead share a colour."""
    configs = study.configs.dropna(subset=[ERROR])
    alive = configs[~configs["collapsed"]]
    if alive.empty:
        raise NotThere("every configuration has collapsed")
    sizes = study.grid.values("latent_dim")
    figure = new_figure(
        4.6, "Pareto fronts of the whole grid", f"a point is a configuration, {seeds_note(study)}; low and left is good"
    )
    axes = figure.subplots()
    # The latent_dims of a k stand side by side.
    shift = {size: 1.09 ** (place - (len(sizes) - 1) / 2) for place, size in enumerate(sizes)}
    collapsed = configs[configs["collapsed"]]
    axes.scatter(
        collapsed["k"] * collapsed["latent_dim"].map(shift),
        collapsed[ERROR],
        marker="x",
        color="0.6",
        s=10,
        linewidth=0.6,
    )
    front, wide_front = pareto_front(alive, ["k", ERROR]), pareto_front(alive, ["k", ERROR, DEATH])
    scale = Normalize(0, 1)
    for place, size in enumerate(sizes):
        here = alive[alive["latent_dim"] == size]
        x = here["k"] * shift[size]
        if study.n_seeds > 1:
            bars = here[f"{ERROR}_sd"]
            axes.errorbar(x, here[ERROR], yerr=bars, fmt="none", ecolor="0.75", elinewidth=0.5, zorder=1)
        edges = np.where(wide_front[here.index], "black", "none").tolist()
        marker = MARKERS[place % len(MARKERS)]
        axes.scatter(x, here[ERROR], c=here[DEATH], cmap="cividis", norm=scale, s=18, marker=marker, edgecolors=edges)
    line = alive[front].sort_values("k")
    axes.plot(line["k"] * line["latent_dim"].map(shift), line[ERROR], color="#D55E00", linewidth=1.2, zorder=3)
    if study.has_fvu:
        axes.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
    plain_axes(axes, "k", study.error)
    k_axis(axes, study.grid.values("k"))
    if (configs[ERROR] > 0).all():
        axes.set_ylim(0.8 * configs[ERROR].min(), 1.25 * configs[ERROR].max())
        log_scale(axes, "y")
    bar = figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, pad=0.01)
    bar.set_label("dead features, share of latent_dim", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    points: dict[str, Any] = {"color": "0.4", "linestyle": "none", "markersize": 4.5}
    handles = [Line2D([], [], marker=MARKERS[n % len(MARKERS)], **points) for n in range(len(sizes))]
    labels = [f"latent_dim {size}" for size in sizes]
    handles += [
        Line2D([], [], color="#D55E00", linewidth=1.2),
        Line2D([], [], marker="o", markeredgecolor="black", markerfacecolor="white", linestyle="none", markersize=5),
        Line2D([], [], marker="x", color="0.6", linestyle="none", markersize=4),
    ]
    labels += [f"front of (k, {study.error})", f"ringed: front of (k, {study.error}, dead)", "collapsed, on no front"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=TEXT, frameon=False)
    return figure


def death_against_gamma(study: Study) -> Figure:
    """A point for each layer x position and k."""
    if not has(study.saes, "gamma", DEATH):
        raise NotThere("there are no baselines")
    figure = new_figure(
        4.0,
        f"Dead features against {GAMMA} of the cell",
        f"a point is a layer and position, mean over latent_dim, {seeds_note(study)}",
    )
    axes = figure.subplots()
    k_values = study.grid.values("k")
    colors = ordered_colors(k_values)
    gamma = study.saes.groupby(["layer", "position"])["gamma"].first()
    for place, k in enumerate(k_values):
        over = over_seeds(study.saes[study.saes["k"] == k], ["layer", "position"], DEATH)
        x = gamma.reindex(over.index)
        correlation = rank_correlation(x, over["mean"])
        label = f"k = {k}" + (f", rank correlation {correlation:.2f}" if math.isfinite(correlation) else "")
        bars = over["sd"] if study.n_seeds > 1 else None
        style: dict[str, Any] = {"color": colors[k], "marker": MARKERS[place % len(MARKERS)], "label": label}
        axes.errorbar(x, over["mean"], yerr=bars, linestyle="none", markersize=4, elinewidth=0.7, capsize=1.5, **style)
    axes.set_ylim(-0.03, 1.03)
    plain_axes(axes, f"{GAMMA} = ‖mean‖ / ‖standard deviation‖, training rows", "dead features, share of latent_dim")
    if gamma.min() > 0 and gamma.max() > 5 * gamma.min():
        log_scale(axes, "x")
    figure.legend(loc="outside lower center", ncols=2, fontsize=TEXT, frameon=False)
    return figure


def train_validation_gap(study: Study) -> Figure:
    """fvu on validation rows against fvu on training rows, a point for each configuration."""
    configs = study.configs
    if not has(configs, FVU, "fvu_train"):
        raise NotThere("the files hold no fvu_train and fvu")
    configs = configs.dropna(subset=[FVU, "fvu_train"])
    figure = new_figure(
        5.0, "Training against validation rows", f"a point is a configuration, {seeds_note(study)}; on the line: no gap"
    )
    axes = figure.subplots()
    k_values, sizes = study.grid.values("k"), study.grid.values("latent_dim")
    colors = ordered_colors(k_values)
    for place, size in enumerate(sizes):
        for k in k_values:
            here = configs[(configs["k"] == k) & (configs["latent_dim"] == size)]
            bars = {"xerr": here["fvu_train_sd"], "yerr": here[f"{ERROR}_sd"]} if study.n_seeds > 1 else {}
            style: dict[str, Any] = {"color": colors[k], "marker": MARKERS[place % len(MARKERS)], "alpha": 0.8}
            axes.errorbar(here["fvu_train"], here[FVU], linestyle="none", markersize=3, elinewidth=0.4, **bars, **style)
    both = configs[[FVU, "fvu_train"]]
    ends = [both.min().min() * 0.9, both.max().max() * 1.1]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlim=ends, ylim=ends)
    plain_axes(axes, "fvu, training rows", "fvu, validation rows")
    if ends[0] > 0:
        log_scale(axes, "x")
        log_scale(axes, "y")
    axes.set_aspect("equal")
    handles = [Line2D([], [], marker="o", color=colors[k], linestyle="none", markersize=5) for k in k_values]
    handles += [
        Line2D([], [], marker=MARKERS[n % len(MARKERS)], color="0.4", linestyle="none", markersize=4)
        for n in range(len(sizes))
    ]
    labels = [*(f"k = {k}" for k in k_values), *(f"latent_dim {size}" for size in sizes)]
    figure.legend(handles, labels, loc="outside right center", fontsize=TEXT, frameon=False)
    return figure


def variance_shares(study: Study) -> Figure:
    """A panel for each metric, a bar for each term."""
    known = {metric: found.terms["share"] for metric, found in study.variance.items() if found is not None}
    if not known:
        raise NotThere("no balanced part of the grid in which a metric varies")
    names = list(dict.fromkeys(name for shares in known.values() for name in shares.index))
    subtitle = (
        f"shares of the total sum of squares; error term: variation between {study.n_seeds} seeds"
        if study.n_seeds > 1
        else "shares of the total sum of squares; one seed, so no error term"
    )
    figure = new_figure(1.2 + 0.24 * len(names), "What the variance goes with", subtitle)
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    limit = max(float(shares.max()) for shares in known.values()) * 1.22
    for panel, (metric, shares) in zip(panels, known.items(), strict=True):
        values = shares.reindex(names)
        error_rows = pd.Index(names).str.contains("seed")
        panel.barh(range(len(names)), values, color=np.where(error_rows, "0.65", COLORS[0]), height=0.7)
        for place, value in enumerate(values):
            if math.isfinite(value):
                panel.text(value + 0.01 * limit, place, f"{value:.1%}", fontsize=SMALL, va="center")
        panel.set_title(metric, fontsize=TEXT, pad=3)
        plain_axes(panel, "share of variance", "")
        panel.set_xlim(0, limit)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
        panel.grid(visible=False, axis="y")
    panels[0].set_yticks(
        range(len(names)), [name.replace(", and seed", ",\nand seed") for name in names], fontsize=SMALL
    )
    panels[0].invert_yaxis()
    return figure
