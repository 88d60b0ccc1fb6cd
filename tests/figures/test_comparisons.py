"""The figures beside the six: what they show, what they leave out, and that nothing is cut."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import analyze_all_layers
from tests.helpers.grids import write_seed
from thought_saes.activations.cell import Cell
from thought_saes.analysis.grid import choose_slice
from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import make_study
from thought_saes.figures.registry import COMPARISONS, EVALUATIONS, FIGURES, FLOOR_FIGURE, FVU_FIGURE, figures
from thought_saes.figures.style import PAGE_WIDTH
from thought_saes.results.names import metrics_path
from visualize_all_layers import main

WITHOUT_EVALUATIONS = set(FIGURES) - set(EVALUATIONS)
AXES = ((0, 3, 7), (0, 1), (64, 128), (4, 8))
Call = Callable[..., tuple[int, str, str]]


def drawn(*folders: Path, allow_partial: bool = False) -> dict[str, Figure]:
    grid = load_replicates(folders, allow_partial)
    return figures(make_study(grid, choose_slice(grid, 20, 1024)))[0]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for seed in (0, 1):
        write_seed(tmp_path / f"seed{seed}", seed, AXES)
    return [tmp_path / "seed0", tmp_path / "seed1"]


def words(figure: Figure) -> str:
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    texts += [text for axes in figure.axes for text in (axes.title, *axes.texts)]
    return "\n".join(text.get_text() for text in texts)


def test_the_command_line_writes_every_figure_into_the_output_folder(folders: list[Path], call: Call) -> None:
    before = sorted(folders[0].iterdir())
    code, output, _ = call(main, "--results", *folders, "--output", folders[0].parent / "figures")
    assert code == 0
    assert "left out" not in output
    names = {path.name for path in (folders[0].parent / "figures").iterdir()}
    assert names >= {FVU_FIGURE, FLOOR_FIGURE, *COMPARISONS}
    assert names == WITHOUT_EVALUATIONS
    assert sorted(folders[0].iterdir()) == before


def test_every_figure_is_as_wide_as_a_page_and_nothing_is_cut_off(folders: list[Path]) -> None:
    for name, figure in drawn(*folders).items():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert figure.get_figwidth() == PAGE_WIDTH, name
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.get_figwidth(), name
        assert box.y1 <= figure.get_figheight(), name


def test_several_seeds_are_said_and_have_error_bars_and_one_has_none(folders: list[Path]) -> None:
    both, one = drawn(*folders), drawn(folders[0])
    assert "mean over 2 seeds" in words(both["layer_position_explained_variance.png"])
    assert "seeds" not in words(one["layer_position_explained_variance.png"])
    for name in ("fvu_against_k.png", "pareto_front.png", "death_against_gamma.png", "train_validation_gap.png"):
        assert "mean ± std of 2 seeds" in words(both[name])
        assert "one seed" in words(one[name])
    bars = [len(figure["fvu_against_k.png"].axes[0].collections) for figure in (both, one)]
    assert bars == [2, 0]


def test_the_floor_has_the_colours_and_limits_of_the_published_explained_variance(folders: list[Path]) -> None:
    figure = drawn(*folders)
    published, floor = (
        figure[name].axes[0].collections[0] for name in ("layer_position_explained_variance.png", FLOOR_FIGURE)
    )
    assert floor.get_clim() == published.get_clim()
    assert floor.get_cmap().name == published.get_cmap().name
    shown = {text.get_text() for text in figure[FLOOR_FIGURE].axes[0].texts}
    assert shown == {f"{0.9 + 0.01 * layer + 0.001 * position:.3f}" for layer in AXES[0] for position in AXES[1]}


def test_a_high_fvu_is_red_and_one_above_predicting_the_mean_the_reddest(folders: list[Path]) -> None:
    mesh = drawn(*folders)[FVU_FIGURE].axes[0].collections[0]
    assert mesh.get_clim() == (0, 1)
    assert mesh.get_cmap().name == "Reds"


def test_there_is_a_panel_for_each_layer_and_a_curve_of_pca_in_each(folders: list[Path]) -> None:
    figure = drawn(*folders)["fvu_against_k.png"]
    assert [axes.get_title() for axes in figure.axes][:3] == ["layer 0", "layer 3", "layer 7"]
    for axes, layer in zip(figure.axes, AXES[0], strict=False):
        dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert dashed.get_ydata() == pytest.approx([1 / (1 + 0.1 * k + 0.01 * layer) for k in AXES[3]])


def test_the_bars_are_the_shares_of_variance(folders: list[Path]) -> None:
    grid = load_replicates(folders)
    study = make_study(grid, choose_slice(grid, 20, 1024))
    axes = COMPARISONS["variance_shares.png"](study).axes[0]
    found = study.log_variance
    assert found is not None
    widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert widths == pytest.approx(found.terms["share"].tolist())
    assert "error term: variation between 2 seeds" in words(axes.figure)  # type: ignore[arg-type]


def test_without_baselines_their_figures_are_left_out_and_said(tmp_path: Path, call: Call) -> None:
    write_seed(tmp_path, 0, AXES, baselines=False)
    code, output, _ = call(main, "--results", tmp_path)
    assert code == 0
    for name in (FLOOR_FIGURE, "death_against_gamma.png"):
        assert f"left out: {name}: there are no baselines" in output
        assert not (tmp_path / name).exists()
    assert "so no curve of PCA" in words(drawn(tmp_path)["fvu_against_k.png"])


def test_an_incomplete_grid_is_drawn(folders: list[Path]) -> None:
    metrics_path(folders[0], Cell(3, 0), 64).unlink()
    metrics_path(folders[1], Cell(3, 0), 64).unlink()
    assert set(drawn(*folders, allow_partial=True)) == WITHOUT_EVALUATIONS


def test_relative_to_pca_one_is_the_middle_of_the_colours_and_collapsed_saes_have_a_cross(folders: list[Path]) -> None:
    figure = drawn(folders[0])["layer_position_all_k_fvu_relative.png"]
    mesh = figure.axes[0].collections[0]
    low, high = mesh.get_clim()
    assert low * high == pytest.approx(1)
    assert np.asarray(mesh.norm(np.array(1.0))) == pytest.approx(0.5)
    grid = load_replicates([folders[0]])
    at_4 = make_study(grid, choose_slice(grid, 20, 1024)).configs.query("k == 4 and latent_dim == 128")
    assert at_4["collapsed"].sum() > 0
    crosses = [len(np.asarray(axes.collections[1].get_offsets())) for axes in figure.axes[:1]]
    assert crosses == [at_4["collapsed"].sum()]
    assert "collapsed: fewer than 2k features ever fire" in words(figure)


def test_the_gap_is_a_ratio_and_the_fronts_have_a_panel_for_each_k_and_latent_dim(folders: list[Path]) -> None:
    figures_drawn = drawn(folders[0])
    assert "fvu / fvu_train" in words(figures_drawn["train_validation_gap.png"])
    assert len(figures_drawn["pareto_front.png"].axes) == len(AXES[2]) * len(AXES[3])


def test_every_figure_that_the_report_shows_is_drawn_and_every_drawn_one_is_named(
    folders: list[Path], call: Call
) -> None:

    output = folders[0].parent / "out"
    assert call(analyze_all_layers.main, "--results", *folders, "--output", output)[0] == 0
    assert call(main, "--results", *folders, "--output", output)[0] == 0
    shown = set(re.findall(r"\]\(([a-z_0-9]+\.png)\)", (output / "report.md").read_text()))
    assert shown <= {path.name for path in output.glob("*.png")}
    assert len(shown) >= 10
