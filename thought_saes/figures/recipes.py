"""Recipes side by side."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thought_saes.analysis.recipes import common, summary
from thought_saes.figures.style import COLORS, MARKERS, TEXT, k_axis, log_scale, new_figure, plain_axes

PANELS = {
    "relative": "median fvu / PCA's",
    "dead": "dead share",
    "alive": "features alive",
    "collapsed_share": "collapsed, share",
    "gap": "fvu / fvu_train",
    "seconds": "seconds an SAE",
}


def compare(recipes: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel for each quantity against k, a line for each recipe; what no recipe has is left empty."""
    table = summary(common(recipes))
    table["collapsed_share"] = table["collapsed"] / table["can_collapse"].where(table["can_collapse"] > 0)
    figure = new_figure(4.6, "Recipes side by side", "over the SAEs that all have, by k")
    for axes, (column, label) in zip(figure.subplots(2, 3, sharex=True).flat, PANELS.items(), strict=True):
        for number, name in enumerate(recipes):
            here = table[table["recipe"] == name]
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(here["k"], here[column].astype(float), markersize=4, linewidth=1.2, clip_on=False, **style)
        plain_axes(axes, "k", label)
        k_axis(axes, sorted(table["k"].unique()))
        if column in ("relative", "gap"):
            axes.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        if column in ("dead", "collapsed_share"):
            axes.set_ylim(bottom=0)
        if column in ("relative", "alive", "seconds") and (table[column] > 0).all():
            log_scale(axes, "y")
    handles = [
        Line2D([], [], color=COLORS[n % len(COLORS)], marker=MARKERS[n % len(MARKERS)], markersize=4)
        for n in range(len(recipes))
    ]
    figure.legend(handles, list(recipes), loc="outside lower center", ncols=4, fontsize=TEXT, frameon=False)
    return figure
