"""What single features tell of known concepts: by layer and position, and against the error of the SAE."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from thought_saes.analysis.study import Study
from thought_saes.features.summary import coverage_table, read_scores
from thought_saes.figures.heatmaps import Quantity, draw
from thought_saes.figures.style import (
    COLORS,
    MARKERS,
    SMALL,
    TEXT,
    NotRun,
    NotThere,
    log_scale,
    new_figure,
    plain_axes,
)

COVERAGE = Quantity("coverage", "Concepts found by single features", "coverage: mean best F1 (high is good)", "viridis")
LINES = {"raw": "raw dimensions", "pca": "PCA", "untrained": "untrained SAE", "probe": "linear probe"}
STYLES = ("--", "-.", ":", "-")


def _scores(study: Study) -> tuple[pd.DataFrame, dict[str, int]]:
    scores = read_scores(study.folders)
    if scores is None:
        raise NotRun("interpret_features.py has not been run")
    return coverage_table(scores), scores["metadata"]["page"]


def concept_coverage(study: Study) -> Figure:
    """Coverage by layer and position, the best family of concepts named in each cell."""
    saes, page = _scores(study)
    shown = saes[(saes["latent_dim"] == page["latent_dim"]) & (saes["k"] == page["k"])]
    matrix = shown.pivot_table(index="layer", columns="position", values="coverage", aggfunc="first")
    matrix = matrix.reindex(index=study.grid.values("layer"), columns=study.grid.values("position")).astype(float)
    sizes = f"k = {page['k']}; latent_dim = {page['latent_dim']}; below: what is found best, beyond shuffled concepts"
    figure = draw(COVERAGE, [("", matrix)], [sizes], study.grid.position_0)
    axes, layers, positions = figure.axes[0], list(matrix.index), list(matrix.columns)
    by_value = {(text.get_position()): text for text in axes.texts}
    for sae in shown[shown["layer"].isin(layers) & shown["position"].isin(positions)].itertuples():
        place = positions.index(sae.position) + 0.5, layers.index(sae.layer) + 0.5
        text = by_value[place]
        words = sae.best_family.replace("value after ", "").replace("operation of ", "op. ")
        text.set_text(f"{text.get_text()}\n{textwrap.shorten(words, 12, placeholder='…')}")
        text.set_linespacing(0.95)
        text.set_fontsize(min(text.get_fontsize(), 6.0))
    return figure


def coverage_against_fvu(study: Study) -> Figure:
    """Every SAE by its fvu and its coverage, a panel a layer; the baselines as lines, means over positions."""
    saes, _ = _scores(study)
    saes = saes[saes["fvu"] > 0]
    if saes.empty:
        raise NotThere("the checkpoints hold no fvu")
    layers, k_values = sorted(saes["layer"].unique()), sorted(saes["k"].unique())
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = new_figure(1.2 + 2.3 * rows, "Coverage of concepts against fvu", "an SAE each; lines: mean over positions")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, panel in enumerate(panels.flat):
        if place >= len(layers):
            panel.set_axis_off()
            continue
        here = saes[saes["layer"] == layers[place]]
        for number, k in enumerate(k_values):
            one = here[here["k"] == k]
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            panel.scatter(one["fvu"], one["coverage"], s=10, label=f"k = {k}", linewidths=0, **style)
        for (name, words), line in zip(LINES.items(), STYLES, strict=True):
            panel.axhline(here[name].mean(), color="0.25", linewidth=0.9, linestyle=line, label=words)
        panel.set_title(f"layer {layers[place]}", fontsize=TEXT, pad=3)
        plain_axes(panel, "fvu", "coverage" if place % columns == 0 else "")
    log_scale(panels.flat[0], "x")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure
