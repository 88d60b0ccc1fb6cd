"""What every figure shares: a page's width, colours, letters, axes, and how a figure says that its data are absent.

Colours are told apart by colour-blind readers (Okabe and Ito for names, viridis or cividis for what has an order), and
shapes differ as well.
"""

import io
import math

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from thought_saes.analysis.study import Study

PAGE_WIDTH = 7.0  # inches; A4 and Letter leave about 7 between the margins
DPI = 300
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]  # Okabe and Ito
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "*"]
LEAST_TICKS = 2  # on a logarithmic axis
TEXT, SMALL, TITLE = 8, 7, 11  # points


class NotThere(Exception):
    """The files do not hold what a figure shows. The message says what is missing."""


class NotRun(NotThere):
    """The script that measures what a figure shows has not been run."""


def new_figure(height: float, title: str, subtitle: str) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, height))
    for text, size, inches in ((title, TITLE, 0.2), (subtitle, TEXT, 0.42)):
        figure.text(0.5, 1 - inches / height, text, fontsize=size, ha="center", va="center")
    # Constrained layout keeps clear of a legend, not of free text.
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 0.98 - 0.52 / height))
    return figure


def seeds_note(study: Study) -> str:
    return f"mean ± std of {study.n_seeds} seeds" if study.n_seeds > 1 else "one seed"


def plain_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=TEXT)
    axes.set_ylabel(y_label, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def k_axis(axes: Axes, k_values: list[int]) -> None:
    """Logarithmic, with a tick at each k of the grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(k_values))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def log_scale(axes: Axes, which: str) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5 of each power of ten, or evenly where too few would show."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", subs=[])
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    enough = sum(low <= tick <= high for tick in ticks) >= LEAST_TICKS
    axis.set_major_locator(FixedLocator(ticks) if enough else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def ordered_colors(values: list[int]) -> dict[int, tuple[float, float, float, float]]:
    """Dark to light with the value; the lightest of viridis would not show on white."""
    return {value: colormaps["viridis"](0.85 * place / max(1, len(values) - 1)) for place, value in enumerate(values)}


def png(figure: Figure, origin: str) -> bytes:
    """The figure as a file; `origin` travels in it as its description."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Description": origin})
    return content.getvalue()
