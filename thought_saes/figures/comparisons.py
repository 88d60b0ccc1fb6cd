"""Figures that set SAEs against each other and against baselines: fvu against k, Pareto front, death against gamma,
training against validation rows, shares of variance.

Each takes a Study and raises NotThere, with the reason, where the files do not hold its data. Points are means over
seeds and bars their standard deviation, where there are several seeds.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thought_saes.analysis.findings import gamma_of
from thought_saes.analysis.study import DEATH, ERROR, FVU, RELATIVE, Study, has, over_seeds, pareto_front
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
    """A row for each latent_dim, a column for each k: error against the dead share, a point a cell; fronts as lines."""
    configs = study.configs.dropna(subset=[ERROR, DEATH])
    if configs[~configs["collapsed"]].empty:
        raise NotThere("every configuration has collapsed")
    sizes, k_values = study.grid.values("latent_dim"), study.grid.values("k")
    figure = new_figure(
        1.3 + 1.35 * len(sizes),
        "Pareto fronts of error and dead features",
        f"a point is a layer and position, {seeds_note(study)}; low and left is good",
    )
    panels = figure.subplots(len(sizes), len(k_values), sharex=True, sharey=True, squeeze=False)
    for (row, column), panel in np.ndenumerate(panels):
        size, k = sizes[row], k_values[column]
        here = configs[(configs["latent_dim"] == size) & (configs["k"] == k)]
        gone, alive = here[here["collapsed"]], here[~here["collapsed"]]
        panel.scatter(gone[DEATH], gone[ERROR], marker="x", color="0.6", s=8, linewidth=0.6)
        panel.scatter(alive[DEATH], alive[ERROR], color=COLORS[0], s=7, linewidth=0)
        front = alive[pareto_front(alive, [ERROR, DEATH])].sort_values(DEATH)
        panel.plot(front[DEATH], front[ERROR], color=COLORS[4], linewidth=1.2, marker="o", markersize=2.5)
        if study.has_fvu:
            panel.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        if row == 0:
            panel.set_title(f"k = {k}", fontsize=TEXT, pad=3)
        label = f"latent_dim {size}\n{study.error}" if column == 0 else ""
        plain_axes(panel, "dead share" if row == len(sizes) - 1 else "", label)
    panels[0, 0].set_xlim(-0.03, 1.03)
    if (configs[ERROR] > 0).all():
        panels[0, 0].set_ylim(0.8 * configs[ERROR].min(), 1.25 * configs[ERROR].max())
        log_scale(panels[0, 0], "y")
    handles = [
        Line2D([], [], color=COLORS[4], marker="o", markersize=3, linewidth=1.2),
        Line2D([], [], color=COLORS[0], marker="o", linestyle="none", markersize=3),
        Line2D([], [], color="0.6", marker="x", linestyle="none", markersize=4),
    ]
    labels = [f"front of ({study.error}, dead)", "dominated", "collapsed, on no front"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=TEXT, frameon=False)
    return figure


def death_against_gamma(study: Study) -> Figure:
    """A panel for each k: a point a cell, each position in its own colour."""
    if not has(study.saes, "gamma", DEATH):
        raise NotThere("there are no baselines")
    k_values, positions = study.grid.values("k"), study.grid.values("position")
    colors = ordered_colors(positions)
    figure = new_figure(
        1.2 + 2.3 * math.ceil(len(k_values) / 2),
        f"Dead features against {GAMMA} of the cell",
        f"a point is a layer and position, mean over latent_dim, {seeds_note(study)}; in the titles rank correlations",
    )
    rows = math.ceil(len(k_values) / 2)
    panels = figure.subplots(rows, min(2, len(k_values)), sharex=True, squeeze=False).ravel()
    gamma = study.saes.groupby(["layer", "position"])["gamma"].first()
    for place, panel in enumerate(panels):
        if place >= len(k_values):
            panel.set_axis_off()
            continue
        at_k = study.saes[study.saes["k"] == k_values[place]]
        over = over_seeds(at_k, ["layer", "position"], DEATH)
        for number, position in enumerate(positions):
            here = over[over.index.get_level_values("position") == position]
            style: dict[str, Any] = {"color": colors[position], "marker": MARKERS[number % len(MARKERS)]}
            bars = here["sd"] if study.n_seeds > 1 else None
            x = gamma.reindex(here.index)
            panel.errorbar(x, here["mean"], yerr=bars, linestyle="none", markersize=3, elinewidth=0.6, **style)
        found = gamma_of(at_k)
        told = f"; pooled {found.pooled:.2f}, within a position {found.median:.2f}" if found else ""
        panel.set_title(f"k = {k_values[place]}{told}", fontsize=TEXT, pad=3)
        bottom = place + 2 >= len(k_values)
        plain_axes(panel, f"{GAMMA} = ‖mean‖ / ‖standard deviation‖" if bottom else "", "dead share")
    if gamma.min() > 0 and gamma.max() > 5 * gamma.min():
        log_scale(panels[0], "x")
    handles = [
        Line2D([], [], color=colors[position], marker=MARKERS[n % len(MARKERS)], linestyle="none", markersize=4)
        for n, position in enumerate(positions)
    ]
    labels = [f"position {position}" for position in positions]
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=TEXT, frameon=False)
    return figure


def train_validation_gap(study: Study) -> Figure:
    """fvu on validation rows over that on training rows: a panel for each latent_dim, a box for each k."""
    configs = study.configs
    if not has(configs, FVU, "fvu_train"):
        raise NotThere("the files hold no fvu_train and fvu")
    ratio = (configs[FVU] / configs["fvu_train"]).rename("ratio")
    known = configs.assign(ratio=ratio)[(ratio > 0) & np.isfinite(ratio)]
    sizes, k_values = study.grid.values("latent_dim"), study.grid.values("k")
    figure = new_figure(
        3.2,
        "Validation against training rows",
        f"fvu / fvu_train; a box is the quartiles of all layers and positions, {seeds_note(study)}; 1: no gap",
    )
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        groups = [known["ratio"][(known["latent_dim"] == size) & (known["k"] == k)].to_numpy() for k in k_values]
        panel.boxplot(groups, widths=0.6, flierprops={"markersize": 2}, medianprops={"color": COLORS[4]})
        panel.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        panel.set_title(f"latent_dim {size}", fontsize=TEXT, pad=3)
        plain_axes(panel, "k", "fvu / fvu_train" if panel is panels[0] else "")
        panel.set_xticks(range(1, len(k_values) + 1), [str(k) for k in k_values])
    log_scale(panels[0], "y")
    return figure


def gaussian_control(study: Study) -> Figure:
    """How much SAEs gain over PCA on real rows against how much on Gaussian rows of the same mean and covariance."""
    saes = study.saes
    if not has(saes, "gaussian_fvu", "gaussian_pca_fvu", RELATIVE):
        raise NotThere("no SAE was trained on Gaussian rows (--gaussian-control)")
    known = saes.dropna(subset=["gaussian_fvu", "gaussian_pca_fvu", RELATIVE])
    known = known.assign(gaussian=known["gaussian_fvu"] / known["gaussian_pca_fvu"])
    figure = new_figure(
        3.6,
        "SAEs on real and on Gaussian rows",
        "fvu over that of PCA of the same k; below the line: structure beyond it",
    )
    axes = figure.subplots()
    k_values = sorted(known["k"].unique())
    colors = ordered_colors(k_values)
    for place, k in enumerate(k_values):
        here = known[known["k"] == k].groupby(["layer", "position"])[[RELATIVE, "gaussian"]].mean()
        marker = MARKERS[place % len(MARKERS)]
        axes.scatter(here["gaussian"], here[RELATIVE], color=colors[k], marker=marker, s=16, label=f"k = {k}")
    both = known[[RELATIVE, "gaussian"]].to_numpy()
    ends = [both.min() * 0.9, both.max() * 1.1]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
    axes.set(xlim=ends, ylim=ends)
    plain_axes(axes, "Gaussian rows", "real rows")
    log_scale(axes, "x")
    log_scale(axes, "y")
    figure.legend(loc="outside right center", fontsize=TEXT, frameon=False)
    return figure


def variance_shares(study: Study) -> Figure:
    """Of the logarithm of the error: a panel over every k and one for each, a bar for each term."""
    found = {"every k": study.log_variance} | {f"k = {k}": terms for k, terms in study.variance_by_k.items()}
    known = {title: terms.terms["share"] for title, terms in found.items() if terms is not None}
    if not known:
        raise NotThere("no balanced part of the grid in which a metric varies")
    names = list(dict.fromkeys(name for shares in known.values() for name in shares.index))
    subtitle = f"shares of the sum of squares of log {study.error}; " + (
        f"error term: variation between {study.n_seeds} seeds" if study.n_seeds > 1 else "one seed, so no error term"
    )
    figure = new_figure(1.2 + 0.24 * len(names), "What the variance goes with", subtitle)
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    limit = max(float(shares.max()) for shares in known.values()) * 1.5
    for panel, (title, shares) in zip(panels, known.items(), strict=True):
        values = shares.reindex(names)
        error_rows = pd.Index(names).str.contains("seed")
        panel.barh(range(len(names)), values, color=np.where(error_rows, "0.65", COLORS[0]), height=0.7)
        for place, value in enumerate(values):
            if math.isfinite(value):
                panel.text(value + 0.02 * limit, place, f"{value:.0%}", fontsize=SMALL, va="center")
        panel.set_title(title, fontsize=TEXT, pad=3)
        plain_axes(panel, "", "")
        panel.set_xlim(0, limit)
        panel.set_xticks([])
        panel.grid(visible=False)
    panels[0].set_yticks(
        range(len(names)), [name.replace(", and seed", ",\nand seed") for name in names], fontsize=SMALL
    )
    panels[0].invert_yaxis()
    return figure
