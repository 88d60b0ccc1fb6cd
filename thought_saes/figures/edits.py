"""Figures of edits of single features."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thought_saes.analysis.study import Study
from thought_saes.common.schema import read_checked
from thought_saes.downstream.edit_findings import EDITS_FILE, CellSwap, cell_swaps, numbers_of_features
from thought_saes.downstream.edit_formats import CEILING, EditsContent
from thought_saes.figures.style import COLORS, MARKERS, SMALL, TEXT, NotRun, NotThere, new_figure, plain_axes


def swap_by_position(study: Study) -> Figure:
    """The share of answers that a swap makes the counterfactual ones, by position: a panel a layer."""
    folder = next((folder for folder in study.folders if (folder / EDITS_FILE).exists()), None)
    if folder is None:
        raise NotRun(f"no folder holds {EDITS_FILE}")
    swaps = cell_swaps(read_checked(folder / EDITS_FILE, EditsContent)["swaps"])
    if not swaps:
        raise NotThere(f"{EDITS_FILE} holds no swaps")
    latent_dim, k = swaps[0].latent_dim, swaps[0].k
    swaps = [swap for swap in swaps if (swap.latent_dim, swap.k) == (latent_dim, k)]
    layers = sorted({swap.layer for swap in swaps})
    figure = new_figure(
        4.0,
        "A value swapped at one thought: does the answer follow?",
        f"share of answers that the other value leads to; latent_dim {latent_dim}, k {k}; bars: 95 % over questions",
    )
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    lines: list[tuple[str, int | None, str]] = [
        ("sae", None, "one feature for one"),
        ("sae_long", None, "the same, as long as the means"),
    ]
    several = [n for n in numbers_of_features(swaps) if n != latent_dim]
    lines += [("several", n, f"{n} features") for n in several]
    lines += [("untrained", n, f"{n} features, untrained SAE") for n in several[-1:]]
    lines += [
        (CEILING, None, "difference of class means"),
        ("random_long", None, "random, as long as the means"),
    ]
    for axes, layer in zip(panels, layers, strict=True):
        some = [swap for swap in swaps if swap.layer == layer]
        for place, (condition, n, label) in enumerate(lines):
            there = [swap for swap in some if swap.share(condition, n) is not None]
            draw(axes, there, condition, n, label, place)
        plain_axes(axes, "position", "counterfactual answers" if layer == layers[0] else "")
        axes.set_xticks(sorted({swap.position for swap in some}))
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(f"layer {layer}", fontsize=TEXT)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL)
    return figure


def draw(axes: Axes, swaps: list[CellSwap], condition: str, n: int | None, label: str, place: int) -> None:
    """A line of shares with their intervals."""
    records = [swap.records[condition, n] for swap in swaps]
    middle = [record["counterfactual"] for record in records]
    below = [max(0.0, r["counterfactual"] - r["counterfactual_interval"][0]) for r in records]
    above = [max(0.0, r["counterfactual_interval"][1] - r["counterfactual"]) for r in records]
    axes.errorbar(
        [swap.position for swap in swaps],
        middle,
        [below, above],
        color=COLORS[place] if place < len(COLORS) else "0.5",
        marker=MARKERS[place % len(MARKERS)],
        markersize=4,
        linewidth=1,
        label=label,
    )
