"""What a search for recipes gave: reconstruction against dead features."""

import pandas as pd
from matplotlib.figure import Figure

from thought_saes.analysis.tried import OTHER, STEPS
from thought_saes.figures.style import COLORS, MARKERS, TEXT, log_scale, new_figure, plain_axes

HUES = [*COLORS, "#000000", "#8A6D00"]
WORST = 20.0  # times PCA's fvu: what is worse is drawn there, as on a demo model whose width is hardly above k
BEHIND = "0.78"  # the grey of recipes that are no step


def tried(table: pd.DataFrame) -> Figure:
    """A panel for each k, a point an SAE: fvu over PCA's against the dead share, a colour for each step."""
    k_values = sorted(table["k"].unique())
    figure = new_figure(
        3.2 + 2.2 * ((len(k_values) - 1) // 2),
        "Every SAE of the search",
        "fvu over that of PCA of the same k (below 1: better) against dead features; hollow: the demo model",
    )
    panels = figure.subplots(-(-len(k_values) // 2), 2, sharex=True, sharey=True, squeeze=False).flat
    steps = [OTHER, *(step for step in STEPS if (table["step"] == step).any())]
    looks = {OTHER: (BEHIND, ".")} | dict(zip(STEPS, zip(HUES, MARKERS, strict=True), strict=True))
    for panel, k in zip(panels, k_values, strict=False):
        for step in steps:
            here = table[(table["k"] == k) & (table["step"] == step)]
            color, marker = looks[step]
            size = 8 if step == OTHER else 13
            for is_demo, own in here.groupby(here["data"] == "demo"):
                look = {"facecolors": "none", "linewidths": 0.7} if is_demo else {"facecolors": color, "linewidths": 0}
                at = own["dead_share"], own["relative"].clip(upper=WORST)
                panel.scatter(*at, edgecolors=color, marker=marker, s=size, alpha=0.8, **look)
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
        beyond = int((table.loc[table["k"] == k, "relative"] > WORST).sum())
        note = f", {beyond} of them above {WORST:g}" if beyond else ""
        panel.set_title(f"k = {k}: {(table['k'] == k).sum()} SAEs{note}", fontsize=TEXT, pad=3)
        plain_axes(panel, "dead share", "fvu / PCA's")
        panel.label_outer()
        log_scale(panel, "y")
    for panel in list(panels):
        panel.set_visible(False)
    shown = figure.axes[0]
    handles = [
        shown.scatter([], [], color=looks[step][0], marker=looks[step][1], s=18, linewidths=0, label=step)
        for step in steps
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=TEXT, frameon=False)
    return figure
