"""The figures: what they say, on which scale, and that an absent cell is never a number."""

import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure

import visualize_all_layers
from tests.helpers.full_disk import fill_disk
from tests.helpers.grids import write_metrics_files
from thought_saes.activations.cell import Cell
from thought_saes.analysis.grid import choose_slice, load_grid
from thought_saes.analysis.study import make_study
from thought_saes.figures import heatmaps
from thought_saes.figures.heatmaps import Layout, cell_text, color_scale
from thought_saes.figures.maps import EXPLAINED_VARIANCE, FEATURE_DEATH, RECONSTRUCTION_LOSS
from thought_saes.figures.registry import figures
from thought_saes.figures.style import PAGE_WIDTH
from thought_saes.results.names import metrics_path
from thought_saes.saes.measures import PUBLISHED_METRICS
from visualize_all_layers import main

Call = Callable[..., tuple[int, str, str]]
NAMES = [
    "layer_position_all_k_death.png",
    "layer_position_all_k_ev.png",
    "layer_position_explained_variance.png",
    "layer_position_feature_death.png",
    "layer_position_mean_activation.png",
    "layer_position_reconstruction_loss.png",
]


def write_axes(results: Path, axes: Iterable[Iterable[int]], **metadata: Any) -> Path:
    """The published metrics, each in (0, 1), for every combination of `axes`."""
    numbers = random.Random(0)
    metrics = {(a, b, c, d): {name: numbers.random() for name in PUBLISHED_METRICS} for a, b, c, d in product(*axes)}
    return write_metrics_files(results, metrics, metadata)


def drawn(results: Path, allow_partial: bool = False) -> dict[str, Figure]:
    """The six heatmaps of published metrics."""
    grid = load_grid(results, allow_partial)
    every, _ = figures(make_study(grid, choose_slice(grid, 20, 1024)))
    return {name: figure for name, figure in every.items() if name in NAMES}


def texts(figure: Figure) -> str:
    """Everything written on the figure, one text a line."""
    legend = [text for legend in figure.legends for text in legend.get_texts()]
    on_axes = [text for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels(), axes.title]]
    labels = [axes.yaxis.label for axes in figure.axes]
    return "\n".join(text.get_text() for text in [*figure.texts, *legend, *on_axes, *labels])


def test_a_dry_run_names_the_figures_and_writes_none(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    results = write_axes(tmp_path / "results", ((0, 1), (0, 1), (1024,), (5, 20)))
    before = set(results.iterdir())
    code, output, _ = call(visualize_all_layers.main, "--results", results, "--dry-run")
    assert code == 0
    assert f"read: 8 SAEs from 4 metrics files in {results}" in output
    assert all(f"would be written: {results / name}" in output for name in NAMES)
    assert set(results.iterdir()) == before


def test_of_the_originals_files_the_six_figures_and_the_variance_are_drawn_and_nothing_else(tmp_path: Path) -> None:
    results = write_axes(tmp_path / "results", ((0, 1), (0, 1), (1024,), (5, 20)))
    before = set(results.iterdir())
    command = [sys.executable, visualize_all_layers.__file__, "--results", "results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in set(results.iterdir()) - before) == [*NAMES, "variance_shares.png"]
    assert "left out: layer_position_fvu.png: the files hold no fvu" in done.stdout
    assert "left out: layer_position_mean_floor.png: there are no baselines" in done.stdout
    for name in NAMES:
        content = (results / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        width, _ = struct.unpack(">II", content[16:24])
        assert width == PAGE_WIDTH * 300
        assert b'"latent_dim": 1024' in content  # the settings travel in the file


def test_importing_the_module_leaves_matplotlibs_backend_undecided() -> None:
    code = "import visualize_all_layers, matplotlib; print(matplotlib.get_backend(auto_select=False))"
    folder = Path(visualize_all_layers.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_layers_are_rows_from_the_top_positions_columns_and_every_cell_has_three_decimals(tmp_path: Path) -> None:
    results = write_axes(tmp_path, ((0, 3, 7), (0, 1), (1024,), (20,)))
    matrix = load_grid(results).layer_position_matrix("explained_variance", 1024, 20)
    axes = drawn(results)["layer_position_explained_variance.png"].axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {
        (column + 0.5, row + 0.5): f"{matrix.loc[layer, position]:.3f}"
        for (row, layer), (column, position) in product(enumerate((0, 3, 7)), enumerate((0, 1)))
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3", "7"]
    assert axes.yaxis_inverted()


@pytest.mark.parametrize(("position_0", "short"), [("bot token", "bot"), ("last question token", "question")])
def test_every_figure_says_what_position_0_is_and_that_the_third_latent_is_position_3(
    tmp_path: Path, position_0: str, short: str
) -> None:
    for figure in drawn(write_axes(tmp_path, ((0,), (0, 1), (1024,), (20,)), position_0=position_0)).values():
        assert f"0 is the {position_0}, p is the p-th continuous thought" in texts(figure)
        assert "“the third of six latents” is position 3" in texts(figure)
        assert f"0\n{short}" in texts(figure)


def test_the_title_says_k_latent_dim_and_the_number_of_saes(tmp_path: Path) -> None:
    six = drawn(write_axes(tmp_path, (range(3), range(2), (512, 1024), (5, 20))))
    assert "k = 20; latent_dim = 1024; 6 SAEs" in texts(six["layer_position_reconstruction_loss.png"])
    assert "k = 5, 20; latent_dim = 1024; 12 SAEs" in texts(six["layer_position_all_k_death.png"])


def test_a_stand_in_for_k_or_latent_dim_is_said_on_every_figure_and_on_the_terminal(tmp_path: Path, call: Call) -> None:
    results = write_axes(tmp_path, ((0,), (0,), (64,), (4, 8)))
    note = "this grid has no k 20: 8 stands in; no latent_dim 1024: 64 stands in"
    for figure in drawn(results).values():
        assert note in texts(figure)
    code, output, _ = call(main, "--results", results)
    assert code == 0
    assert note in output


def test_the_panels_of_all_k_share_one_colour_scale_and_one_colour_bar(tmp_path: Path) -> None:
    figure = drawn(write_axes(tmp_path, (range(4), range(3), (1024,), (5, 10, 20, 100))))["layer_position_all_k_ev.png"]
    panels, bars = figure.axes[:4], figure.axes[4:]
    assert [panel.get_title() for panel in panels] == ["k = 5", "k = 10", "k = 20", "k = 100"]
    assert len(bars) == 1
    limits = {panel.collections[0].get_clim() for panel in panels}
    everything = [float(text.get_text()) for panel in panels for text in panel.texts]
    assert len(limits) == 1
    assert limits.pop() == pytest.approx((min(everything), max(everything)), abs=5e-4)
    corners = {(round(panel.get_position().x0, 6), round(panel.get_position().y0, 6)) for panel in panels}
    assert [len({corner[axis] for corner in corners}) for axis in (0, 1)] == [2, 2]


def test_high_death_and_high_loss_are_red_and_low_ones_pale(tmp_path: Path) -> None:
    six = drawn(write_axes(tmp_path, (range(4), range(3), (1024,), (20,))))
    for name in ("layer_position_feature_death.png", "layer_position_reconstruction_loss.png"):
        mesh = six[name].axes[0].collections[0]
        low, high = (mesh.to_rgba(np.array([value]))[0, :3] for value in mesh.get_clim())
        assert min(low) > 0.85
        assert high[0] > 3 * max(high[1:])


def test_absent_cells_are_hatched_unannotated_and_named_in_the_legend(tmp_path: Path) -> None:
    results = write_axes(tmp_path, ((0, 1), (0, 1), (1024,), (20,)))
    whole = drawn(results)["layer_position_explained_variance.png"]
    assert "absent" not in texts(whole)
    metrics_path(results, Cell(0, 1), 1024).unlink()
    figure = drawn(results, allow_partial=True)["layer_position_explained_variance.png"]
    axes = figure.axes[0]
    cells = axes.collections[0].get_array()
    assert cells is not None
    assert np.ma.getmaskarray(cells).tolist() == [[False, True], [False, False]]
    assert axes.patch.get_hatch()
    assert axes.patch.get_facecolor()[:3] == to_rgb("0.88")
    assert len(axes.texts) == 3
    assert "absent: no value for 1 of 4 SAEs" in texts(figure)


def test_a_metric_that_no_file_holds_is_drawn_all_hatched(tmp_path: Path) -> None:
    content = {"metadata": {"position": 0, "layer": 0}, "results": {"1024": {"20": {"explained_variance": 0.9}}}}
    metrics_path(tmp_path, Cell(0, 0), 1024).write_text(json.dumps(content))
    assert "absent: no value for 1 of 1 SAEs" in texts(drawn(tmp_path)["layer_position_mean_activation.png"])


def test_a_loss_over_decades_is_on_a_logarithmic_scale_and_a_narrow_one_is_not(tmp_path: Path) -> None:
    wide = color_scale(RECONSTRUCTION_LOSS, np.array([[2e-6, 0.093, 1.48, math.nan]]))
    assert isinstance(wide, LogNorm)
    assert (wide.vmin, wide.vmax) == (2e-6, 1.48)
    assert not isinstance(color_scale(RECONSTRUCTION_LOSS, np.array([[0.1, 0.9]])), LogNorm)
    with_zero = color_scale(RECONSTRUCTION_LOSS, np.array([[0.0, 1e-3, 1.0]]))
    assert with_zero(0.0) == 0  # the lowest colour, not masked as if it were absent
    assert not isinstance(color_scale(EXPLAINED_VARIANCE, np.array([[0.01, 0.9]])), LogNorm)


def test_the_death_rate_is_always_on_the_scale_from_0_to_1() -> None:
    scale = color_scale(FEATURE_DEATH, np.array([[0.97, 0.99]]))
    assert (scale.vmin, scale.vmax) == (0, 1)


def test_values_that_are_all_equal_get_a_scale_of_some_width() -> None:
    for value in (0.0, 0.5, -2.0):
        scale = color_scale(EXPLAINED_VARIANCE, np.array([[value, value]]))
        assert scale(value) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9994, "0.999"),
        (0.0, "0.000"),
        (2e-6, "2.00e-6"),
        (0.00049, "4.90e-4"),
        (0.0005, "0.001"),
        (-0.25, "-0.250"),
        (12345.0, "1.23e4"),
    ],
)
def test_a_cell_shows_three_decimals_and_no_small_number_as_zero(value: float, text: str) -> None:
    assert cell_text(value) == text


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_no_nonzero_value_is_shown_as_zero(value: float) -> None:
    assert float(cell_text(value)) != 0
    assert float(cell_text(-value)) == -float(cell_text(value))


@given(
    n_panels=st.integers(1, 9),
    n_layers=st.integers(1, 80),
    n_positions=st.integers(1, 20),
    longest_text=st.integers(5, 8),
)
def test_in_any_grid_there_is_a_place_for_every_panel_and_cells_hold_their_text(
    n_panels: int, n_layers: int, n_positions: int, longest_text: int
) -> None:
    layout = Layout.fit(n_panels, n_layers, n_positions, longest_text)
    assert layout.columns * layout.rows >= n_panels
    assert layout.columns * (layout.rows - 1) < n_panels
    if layout.numbers:
        assert layout.font >= heatmaps.FONT_MIN
        assert longest_text * 0.55 * layout.font / 72 <= layout.cell_width
        assert layout.font / 72 < layout.cell_height
    panels = layout.rows * (n_layers * layout.cell_height + heatmaps.PANEL_GAP_Y)
    assert layout.columns * n_positions * layout.cell_width <= PAGE_WIDTH
    assert panels <= max(heatmaps.PANELS_HEIGHT, layout.rows * heatmaps.PANEL_HEIGHT_MIN) + (layout.rows + 1)


def test_the_published_grid_has_its_four_k_two_by_two_and_sixteen_layers_fit_the_page() -> None:
    layout = Layout.fit(n_panels=4, n_layers=16, n_positions=6, longest_text=5)
    assert (layout.columns, layout.rows) == (2, 2)
    assert layout.numbers
    assert layout.font >= 8


def test_thirty_layers_at_four_k_fit_one_page_without_numbers_and_one_k_with_them() -> None:
    four, one = (Layout.fit(n_panels=n, n_layers=30, n_positions=6, longest_text=5) for n in (4, 1))
    assert (four.columns, four.rows, four.numbers, one.numbers) == (2, 2, False, True)
    assert 2 * 30 * four.cell_height <= heatmaps.PANELS_HEIGHT


def test_the_last_layer_is_set_apart_only_where_its_scale_differs(tmp_path: Path) -> None:
    scales = {0: 1.0, 1: 2.0, 2: 40.0}
    for layer, scale in scales.items():
        metrics = {"explained_variance": 0.1 * layer, "reconstruction_loss": scale}
        content = {"metadata": {"position": 0, "layer": layer}, "results": {"1024": {"20": metrics}}}
        metrics_path(tmp_path, Cell(layer, 0), 1024).write_text(json.dumps(content))
    six = drawn(tmp_path)
    apart, plain = six["layer_position_reconstruction_loss.png"], six["layer_position_explained_variance.png"]
    assert "* the last layer is after the final norm" in texts(apart)
    assert apart.axes[0].get_yticklabels()[-1].get_text() == "2*"
    assert apart.axes[0].collections[0].get_clim() == (1.0, 2.0)  # the scale of the others
    assert "40.000" in texts(apart)
    assert "absent" not in texts(apart)
    assert "*" not in texts(plain)


@pytest.mark.parametrize("axes", [((5,), (3,), (8,), (1,)), (range(30), range(7), (1024,), (1,))])
def test_nothing_on_a_figure_is_cut_off(tmp_path: Path, axes: tuple[Iterable[int], ...]) -> None:
    for figure in drawn(write_axes(tmp_path, axes)).values():
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.get_figwidth()
        assert box.y1 <= figure.get_figheight()


def test_an_incomplete_grid_is_refused_in_one_line_and_nothing_is_drawn(tmp_path: Path, call: Call) -> None:
    results = write_axes(tmp_path, ((0, 1), (0, 1), (1024,), (20,)))
    metrics_path(results, Cell(0, 1), 1024).unlink()
    code, output, error = call(main, "--results", results)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert "1 of 4 SAEs are missing" in error
    assert "layer 0 position 1 (d1024_k20)" in error
    assert not list(results.glob("*.png"))


def test_an_absent_folder_and_a_k_that_the_grid_lacks_are_refused(tmp_path: Path, call: Call) -> None:
    assert call(main, "--results", tmp_path / "absent")[0] == 2
    results = write_axes(tmp_path / "results", ((0,), (0,), (1024,), (5, 20)))
    code, _, error = call(main, "--results", results, "--k", 7)
    assert (code, error) == (2, "error: the grid has no k 7; it has 5, 20\n")


def test_a_full_disk_ends_with_one_line_and_no_half_figure(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = write_axes(tmp_path, ((0,), (0,), (1024,), (20,)))
    before = sorted(results.iterdir())

    fill_disk(monkeypatch)
    code, output, error = call(main, "--results", results)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert sorted(results.iterdir()) == before
