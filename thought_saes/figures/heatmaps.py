"""Heatmaps with layers down and positions across, every cell annotated, an absent one hatched and never 0.

A figure is as wide as a page, so that its smallest letters can be read in print; it grows downwards with the layers.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, StrMethodFormatter
from seaborn.utils import relative_luminance

from thought_saes.figures.style import PAGE_WIDTH

# Inches.
LEFT, RIGHT = 0.6, 1.05  # for the layer labels; for the colour bar
PANEL_GAP_X, PANEL_GAP_Y = 0.15, 0.62
CELL_WIDTH_MAX = 0.95
ROW_HEIGHT_MAX = 0.34
PANELS_HEIGHT = 7.6  # at most, so that a figure fits a page
PANEL_HEIGHT_MIN = 1.2
BAR_HEIGHT_MAX = 4.0
# Points.
FONT_MIN, FONT_MAX = 6.0, 9.0
LINE_HEIGHT = 1.6  # of a cell with a number, as a multiple of its font
# A character of the font is this part of its size wide.
CHARACTER_WIDTH = 0.58

# The relative luminance on which black and white text contrast equally: (L + 0.05)² = 0.05 · 1.05 (WCAG 2).
EQUAL_CONTRAST = 0.179
# The last layer is set apart if its median is larger or smaller than that of the others by this factor.
APART = 4.0
SHORT_POSITION_0 = {"bot token": "bot", "last question token": "question"}
ABSENT: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}


@dataclass(frozen=True)
class Quantity:
    """A metric and how it is drawn."""

    metric: str
    title: str
    scale_label: str
    colors: str  # ordered in lightness, so that they are safe for colour-blind readers
    limits: tuple[float, float] | None = None  # of the colour scale; None: the data's own
    log_if_wide: bool = False  # a logarithmic colour scale where the values span more than a factor of 10
    centre: float | None = None  # the middle of a logarithmic scale with two colours: what is neither good nor bad
    raw_scale: bool = False  # grows with the activations: the last layer, after the final norm, may be set apart


def cell_text(value: float) -> str:
    """Three decimals; three significant digits where those would show a small value as 0 or a large one too long."""
    if value == 0 or 0.0005 <= abs(value) < 1000:
        return f"{value:.3f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def color_scale(quantity: Quantity, values: np.ndarray) -> Normalize:
    """One scale for all `values` (NaN: absent)."""
    known = values[np.isfinite(values)]
    if quantity.centre and known.size:
        # The largest 2 % of deviations take the colour of the end, lest a single cell bleach all others.
        span = (
            np.exp(np.quantile(np.abs(np.log(known[known > 0] / quantity.centre)), 0.98)) if (known > 0).any() else 2.0
        )
        span = max(float(span), 1.05)
        return LogNorm(quantity.centre / span, quantity.centre * span, clip=True)
    if quantity.limits or not known.size:
        return Normalize(*(quantity.limits or (0.0, 1.0)))
    low, high = float(known.min()), float(known.max())
    positive = known[known > 0]
    if quantity.log_if_wide and low >= 0 and positive.size and high > 10 * positive.min():
        return LogNorm(float(positive.min()), high, clip=True)  # clip: a value of 0 takes the lowest colour
    if low == high:
        margin = abs(low) * 0.01 or 1.0
        low, high = low - margin, high + margin
    return Normalize(low, high)


def position_label(position_0: str) -> str:
    return (
        f"position (0 is the {position_0}, p is the p-th continuous thought: “the third of six latents” is position 3)"
    )


@dataclass(frozen=True)
class Layout:
    """Sizes of a figure of several panels, in inches; fonts in points."""

    columns: int
    rows: int
    cell_width: float
    cell_height: float
    font: float
    numbers: bool  # whether the cells' numbers fit

    @classmethod
    def fit(
        cls, n_panels: int, n_layers: int, n_positions: int, longest_text: int, panels_height: float = PANELS_HEIGHT
    ) -> "Layout":
        """Near-square on one page; fewer panels a row, or else no numbers, where only so the cells' texts fit."""

        def cell_width(columns: int) -> float:
            space = PAGE_WIDTH - LEFT - RIGHT - (columns - 1) * PANEL_GAP_X
            return min(space / (columns * n_positions), CELL_WIDTH_MAX)

        def cell_height(columns: int) -> float:
            rows = math.ceil(n_panels / columns)
            height = min((panels_height - (rows - 1) * PANEL_GAP_Y) / (rows * n_layers), ROW_HEIGHT_MAX)
            return max(height, PANEL_HEIGHT_MIN / n_layers)

        def text_width(font: float) -> float:
            return (longest_text * CHARACTER_WIDTH + 0.3) * font / 72

        near_square = math.ceil(math.sqrt(n_panels))
        fitting = [
            columns
            for columns in range(near_square, 0, -1)
            if cell_width(columns) >= text_width(FONT_MIN) and cell_height(columns) >= FONT_MIN * LINE_HEIGHT / 72
        ]
        columns = fitting[0] if fitting else near_square
        width, height = cell_width(columns), cell_height(columns)
        font = min(FONT_MAX, FONT_MIN * width / text_width(FONT_MIN), height * 72 / LINE_HEIGHT)
        return cls(columns, math.ceil(n_panels / columns), width, height, font, numbers=bool(fitting))


def draw_panel(
    axes: Axes, matrix: pd.DataFrame, quantity: Quantity, scale: Normalize, layout: Layout, apart: bool
) -> None:
    """The cells with their numbers where they fit; `apart`: the last layer in grey, not on the colour scale."""
    colored = matrix.copy()
    if apart:
        colored.iloc[-1] = np.nan
    sns.heatmap(
        colored,
        ax=axes,
        cmap=quantity.colors,
        norm=scale,
        vmin=scale.vmin,  # seaborn would look for them in a matrix that may hold no value
        vmax=scale.vmax,
        cbar=False,
        linewidths=0.5 if layout.numbers else 0.2,
        xticklabels=False,
        yticklabels=False,
    )
    axes.patch.set(**ABSENT)  # shows where the mesh has no cell
    axes.set(xlabel="", ylabel="")
    last = len(matrix) - 1
    # seaborn's own annotations are white on cells where black is easier to read.
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        if math.isnan(value):
            continue
        grey = apart and row == last
        if grey:
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor="0.94", edgecolor="white", linewidth=0.5))
        if layout.numbers:
            background = colormaps[quantity.colors](float(scale(value)))
            color = "black" if grey or relative_luminance(background) > EQUAL_CONTRAST else "white"
            text = cell_text(value)
            axes.text(column + 0.5, row + 0.5, text, color=color, fontsize=layout.font, ha="center", va="center")
    if apart:
        axes.axhline(last, color="black", linewidth=1)


def draw_marks(axes: Axes, marks: pd.DataFrame, layout: Layout) -> None:
    """A cross in each marked cell, beside its number where there is one."""
    rows, columns = np.nonzero(marks.to_numpy())
    x, y, size = (0.9, 0.22, 7.0) if layout.numbers else (0.5, 0.5, min(14.0, (layout.cell_height * 40) ** 2))
    axes.scatter(columns + x, rows + y, marker="x", s=size, color="black", linewidth=0.6)


def label_axes(axes: Axes, matrix: pd.DataFrame, position_0: str, layers_too: bool, apart: bool) -> None:
    row_height = axes.get_window_extent().height / axes.figure.dpi / len(matrix)
    step = math.ceil(FONT_MIN * 1.3 / 72 / row_height)  # rows that a label needs
    tick_font = min(FONT_MAX - 1, step * row_height * 72 / 1.3)
    first = "0\n" + SHORT_POSITION_0.get(position_0, "")
    names = [first if position == 0 else str(position) for position in matrix.columns]
    axes.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=8, linespacing=1)
    layers = [str(layer) for layer in matrix.index]
    if apart:
        layers[-1] += "*"
    shown = range(0, len(layers), step) if layers_too else range(0)
    axes.set_yticks([row + 0.5 for row in shown], [layers[row] for row in shown], fontsize=tick_font, rotation=0)
    axes.tick_params(length=0)
    if layers_too:
        axes.set_ylabel("layer", fontsize=9)


def last_layer_apart(quantity: Quantity, values: np.ndarray) -> bool:
    """Whether the last layer (values: panels x layers x positions) is on another scale than the others."""
    if not quantity.raw_scale or values.shape[1] < 3:
        return False
    last, others = (np.abs(part[np.isfinite(part)]) for part in (values[:, -1], values[:, :-1]))
    if not last.size or not others.size or not np.median(others) or not np.median(last):
        return False
    ratio = np.median(last) / np.median(others)
    return bool(max(ratio, 1 / ratio) > APART)


def draw(
    quantity: Quantity,
    panels: Sequence[tuple[str, pd.DataFrame]],
    subtitle: Sequence[str],
    position_0: str,
    scale: Normalize | None = None,
    marks: Sequence[pd.DataFrame] = (),
    mark_label: str = "",
    panels_height: float = PANELS_HEIGHT,
) -> Figure:
    """A heatmap for each (title, layer x position matrix), all on one colour scale with one colour bar.

    `scale` is by default the values' own; values beyond its ends take the colour of the end. Each of `marks` says
    which cells of its panel get a cross, which `mark_label` explains.
    """
    values = np.stack([matrix.to_numpy() for _, matrix in panels])
    n_panels, n_layers, n_positions = values.shape
    longest_text = max((len(cell_text(value)) for value in values.flat if not math.isnan(value)), default=5)
    layout = Layout.fit(n_panels, n_layers, n_positions, longest_text, panels_height)
    apart = last_layer_apart(quantity, values)
    if apart:
        subtitle = [*subtitle, "* the last layer is after the final norm, on another scale: not on the colours'"]
    panel_width, panel_height = n_positions * layout.cell_width, n_layers * layout.cell_height
    panels_width = layout.columns * (panel_width + PANEL_GAP_X) - PANEL_GAP_X
    panels_height = layout.rows * (panel_height + PANEL_GAP_Y) - PANEL_GAP_Y
    absent = int(np.isnan(values).sum())
    top = 0.55 + 0.17 * len(subtitle)
    marked = any(mark.to_numpy().any() for mark in marks)
    bottom = 0.95 if absent or marked else 0.7  # for the position labels, their map, and the legend
    width, height = max(PAGE_WIDTH, LEFT + panels_width + RIGHT), top + panels_height + bottom
    left = (width - panels_width + LEFT - RIGHT) / 2
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """New axes; inches from the figure's upper left corner."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, text: str, font: float) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=font, ha="center", va="center")

    scale = scale or color_scale(quantity, values[:, :-1] if apart else values)
    for number, (title, matrix) in enumerate(panels):
        row, column = divmod(number, layout.columns)
        x, y = left + column * (panel_width + PANEL_GAP_X), top + row * (panel_height + PANEL_GAP_Y)
        axes = place(x, y, panel_width, panel_height)
        draw_panel(axes, matrix, quantity, scale, layout, apart)
        if number < len(marks):
            draw_marks(axes, marks[number], layout)
        axes.set_title(title, fontsize=9, pad=4)
        label_axes(axes, matrix, position_0, layers_too=column == 0, apart=apart)

    bar_height = min(panels_height, BAR_HEIGHT_MAX)
    bar_axes = place(left + panels_width + 0.15, top + (panels_height - bar_height) / 2, 0.16, bar_height)
    known = (values[:, :-1] if apart else values)[np.isfinite(values[:, :-1] if apart else values)]
    low, high = (scale.vmin or 0.0), (scale.vmax or 0.0)
    beyond = (bool((known < low).any()), bool((known > high).any()))
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(beyond, "neither")
    bar = figure.colorbar(ScalarMappable(scale, quantity.colors), cax=bar_axes, extend=extend)
    if isinstance(scale, LogNorm) and (scale.vmax or 1.0) < 1000 * (scale.vmin or 0.0):
        bar.locator = LogLocator(subs=(1, 2, 5))  # powers of ten alone would be too few
        bar.formatter = StrMethodFormatter("{x:g}")
        bar.minorticks_off()
    bar.outline.set_visible(False)
    bar_axes.tick_params(labelsize=7)
    bar_axes.yaxis.get_offset_text().set_fontsize(7)
    label = quantity.scale_label + (", log scale" if isinstance(scale, LogNorm) else "")
    bar.set_label(textwrap.fill(label, round(bar_height * 16)), fontsize=8)

    write(width / 2, 0.2, f"{quantity.title} by layer and position", 11)
    for line, text in enumerate(subtitle):
        write(width / 2, 0.42 + 0.17 * line, text, 8)
    write(width / 2, height - bottom + 0.5, position_label(position_0), 8)
    notes: list[Any] = []
    if absent:
        notes.append(Patch(**ABSENT, label=f"absent: no value for {absent:,} of {values.size:,} SAEs"))
    if marked:
        notes.append(Line2D([], [], marker="x", color="black", linestyle="none", markersize=4, label=mark_label))
    if notes:
        centre = (0.5, (bottom - 0.72) / height)
        figure.legend(handles=notes, loc="center", bbox_to_anchor=centre, fontsize=8, frameon=False, ncols=2)
    return figure
