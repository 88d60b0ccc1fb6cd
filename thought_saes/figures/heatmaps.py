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
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, StrMethodFormatter
from seaborn.utils import relative_luminance

from thought_saes.figures.style import PAGE_WIDTH

# Inches.
LEFT, RIGHT = 0.6, 1.05  # for the layer labels; for the colour bar
PANEL_GAP_X, PANEL_GAP_Y = 0.15, 0.62
CELL_WIDTH_MAX = 0.95
ROW_HEIGHT_MIN, ROW_HEIGHT_MAX = 0.17, 0.34
PANELS_HEIGHT = 8.0  # wished for; more where the rows would be lower than ROW_HEIGHT_MIN
PANELS_HEIGHT_MAX = 20.0  # above it, panels are no longer put one below the other to keep to the page's width
PANEL_HEIGHT_MIN = 1.2
BAR_HEIGHT_MAX = 4.0
# Points.
FONT_MIN, FONT_MAX = 6.0, 9.0
# A character of the font is this part of its size wide.
CHARACTER_WIDTH = 0.58

# The relative luminance on which black and white text contrast equally: (L + 0.05)² = 0.05 · 1.05 (WCAG 2).
EQUAL_CONTRAST = 0.179
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


def cell_text(value: float) -> str:
    """Three decimals; three significant digits where those would show a small value as 0 or a large one too long."""
    if value == 0 or 0.0005 <= abs(value) < 1000:
        return f"{value:.3f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def color_scale(quantity: Quantity, values: np.ndarray) -> Normalize:
    """One scale for all `values` (NaN: absent)."""
    known = values[np.isfinite(values)]
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

    @classmethod
    def fit(cls, n_panels: int, n_layers: int, n_positions: int, longest_text: int) -> "Layout":
        """Near-square; fewer panels a row where only so the cells' texts fit the page, unless it grows too high."""

        def cell_width(columns: int) -> float:
            space = PAGE_WIDTH - LEFT - RIGHT - (columns - 1) * PANEL_GAP_X
            return min(space / (columns * n_positions), CELL_WIDTH_MAX)

        def text_width(font: float) -> float:
            return (longest_text * CHARACTER_WIDTH + 0.3) * font / 72

        near_square = math.ceil(math.sqrt(n_panels))
        fitting = [
            columns
            for columns in range(near_square, 0, -1)
            if cell_width(columns) >= text_width(FONT_MIN)
            and math.ceil(n_panels / columns) * n_layers * ROW_HEIGHT_MIN <= PANELS_HEIGHT_MAX
        ]
        columns = fitting[0] if fitting else near_square
        rows = math.ceil(n_panels / columns)
        width = max(cell_width(columns), text_width(FONT_MIN))
        height = min(max(PANELS_HEIGHT / (rows * n_layers), ROW_HEIGHT_MIN), ROW_HEIGHT_MAX)
        height = max(height, PANEL_HEIGHT_MIN / n_layers)
        font = min(FONT_MAX, FONT_MIN * width / text_width(FONT_MIN), height * 72 / 1.6)
        return cls(columns, rows, width, height, font)


def draw_panel(axes: Axes, matrix: pd.DataFrame, quantity: Quantity, scale: Normalize, font: float) -> None:
    sns.heatmap(
        matrix,
        ax=axes,
        cmap=quantity.colors,
        norm=scale,
        vmin=scale.vmin,  # seaborn would look for them in a matrix that may hold no value
        vmax=scale.vmax,
        cbar=False,
        linewidths=0.5,
        xticklabels=False,
        yticklabels=False,
    )
    axes.patch.set(**ABSENT)  # shows where the mesh has no cell
    axes.set(xlabel="", ylabel="")
    # seaborn's own annotations are white on cells where black is easier to read.
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        if not math.isnan(value):
            background = colormaps[quantity.colors](float(scale(value)))
            color = "black" if relative_luminance(background) > EQUAL_CONTRAST else "white"
            text = cell_text(value)
            axes.text(column + 0.5, row + 0.5, text, color=color, fontsize=font, ha="center", va="center")


def label_axes(axes: Axes, matrix: pd.DataFrame, position_0: str, layers_too: bool) -> None:
    tick_font = min(FONT_MAX - 1, axes.get_window_extent().height / axes.figure.dpi / len(matrix) * 72 / 1.4)
    first = "0\n" + SHORT_POSITION_0.get(position_0, "")
    names = [first if position == 0 else str(position) for position in matrix.columns]
    axes.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=8, linespacing=1)
    layers = [str(layer) for layer in matrix.index] if layers_too else []
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=tick_font, rotation=0)
    axes.tick_params(length=0)
    if layers_too:
        axes.set_ylabel("layer", fontsize=9)


def draw(
    quantity: Quantity,
    panels: Sequence[tuple[str, pd.DataFrame]],
    subtitle: Sequence[str],
    position_0: str,
    scale: Normalize | None = None,
) -> Figure:
    """A heatmap for each (title, layer x position matrix), all on one colour scale with one colour bar.

    `scale` is by default the values' own; values beyond its ends take the colour of the end.
    """
    values = np.stack([matrix.to_numpy() for _, matrix in panels])
    n_panels, n_layers, n_positions = values.shape
    longest_text = max((len(cell_text(value)) for value in values.flat if not math.isnan(value)), default=5)
    layout = Layout.fit(n_panels, n_layers, n_positions, longest_text)
    panel_width, panel_height = n_positions * layout.cell_width, n_layers * layout.cell_height
    panels_width = layout.columns * (panel_width + PANEL_GAP_X) - PANEL_GAP_X
    panels_height = layout.rows * (panel_height + PANEL_GAP_Y) - PANEL_GAP_Y
    absent = int(np.isnan(values).sum())
    top = 0.55 + 0.17 * len(subtitle)
    bottom = 0.95 if absent else 0.7  # for the position labels, their map, and the legend
    width, height = max(PAGE_WIDTH, LEFT + panels_width + RIGHT), top + panels_height + bottom
    left = (width - panels_width + LEFT - RIGHT) / 2
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """New axes; inches from the figure's upper left corner."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, text: str, font: float) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=font, ha="center", va="center")

    scale = scale or color_scale(quantity, values)
    for number, (title, matrix) in enumerate(panels):
        row, column = divmod(number, layout.columns)
        x, y = left + column * (panel_width + PANEL_GAP_X), top + row * (panel_height + PANEL_GAP_Y)
        axes = place(x, y, panel_width, panel_height)
        draw_panel(axes, matrix, quantity, scale, layout.font)
        axes.set_title(title, fontsize=9, pad=4)
        label_axes(axes, matrix, position_0, layers_too=column == 0)

    bar_height = min(panels_height, BAR_HEIGHT_MAX)
    bar_axes = place(left + panels_width + 0.15, top + (panels_height - bar_height) / 2, 0.16, bar_height)
    known = values[np.isfinite(values)]
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
    if absent:
        note = Patch(**ABSENT, label=f"absent: no value for {absent:,} of {values.size:,} SAEs")
        centre = (0.5, (bottom - 0.72) / height)
        figure.legend(handles=[note], loc="center", bbox_to_anchor=centre, fontsize=8, frameon=False)
    return figure
