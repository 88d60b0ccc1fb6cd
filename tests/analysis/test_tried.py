"""A search for recipes, on numbers worked out by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compare_runs
from thought_saes.analysis.tried import SAME_AS_IMPROVED, gains, read_tried, step_of
from thought_saes.common.errors import InputError

Call = Callable[..., tuple[int, str, str]]


def line(name: str, layer: int, k: int, fvu: float, dead: float = 0.5, **settings: Any) -> dict[str, Any]:
    """An SAE whose PCA has an fvu of 0.2."""
    return {
        "recipe": name, "settings": settings, "layer": layer, "position": 0, "latent_dim": 64, "k": k, "seed": 0,
        "fvu_report_half": fvu, "fvu_validation": fvu, "dead_share": dead, "pca_fvu": 0.2,
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [line("improved", layer, k, 0.2, recipe="improved") for layer in (0, 1) for k in (5, 20)]
    lines += [
        line("halves", 0, 5, 0.1, dead=0.1, recipe="improved", whiten=1),
        line("halves", 1, 5, 0.2, dead=0.3, recipe="improved", whiten=1),
    ]
    lines += [line("halves", 1, 20, 0.2, recipe="improved", whiten=1), line("elsewhere", 9, 5, 0.1)]
    lines.append(line("otherwise halved", 0, 5, 0.1, start="tied"))
    path = tmp_path / "tried.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_a_recipes_gain_is_a_geometric_mean_over_cells_with_a_t_interval_over_them(file: Path) -> None:
    at_5, at_20, overall = gains(read_tried(file), "improved")  # nothing of the recipe that shares no cell
    assert (at_5.recipe, at_5.k, at_5.pairs, at_5.cells) == ("halves", "5", 2, 2)
    assert at_5.ratio == pytest.approx(math.sqrt(0.5))
    # Logs -log 2 and 0: mean -log(2) / 2, standard error log(2) / 2, t of one degree of freedom 12.706.
    assert at_5.high == pytest.approx(math.exp((-1 + 12.706) * math.log(2) / 2), rel=1e-3)
    assert at_5.dead == (0.5, pytest.approx(0.2))
    assert (at_20.ratio, math.isnan(at_20.low)) == (1, True)  # one cell says nothing of others
    assert (overall.k, overall.pairs, overall.ratio) == ("all", 3, pytest.approx(math.sqrt(0.5)))


def test_settings_are_named_by_the_step_that_they_are() -> None:
    assert step_of({}) == "centred"
    assert step_of({"start": "tied"}) == "random tied start"
    assert step_of({"recipe": "improved"}) == step_of(SAME_AS_IMPROVED) == "improved"
    assert step_of({"start": "tied", "whiten": 0.5}) == "other"


def test_the_command_line_writes_the_table_and_the_figure(file: Path, tmp_path: Path, call: Call) -> None:
    code, out, err = call(compare_runs.main, "--tried", file, "--figure", tmp_path / "tried.png")
    assert (code, err) == (0, "")
    assert "-29.3%" in out
    assert (tmp_path / "tried.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = call(compare_runs.main, "--tried", file, "--base", "best")
    assert (code, err) == (
        2,
        "error: no recipe best was tried; there are elsewhere, halves, improved, otherwise halved\n",
    )
    code, _, err = call(compare_runs.main, "--tried", file, "--recipes", tmp_path)
    assert (code, "--tried stands alone" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{}\n", "not every line has recipe"), ('{"recipe"\n', "line 1"), ("", "not every line has recipe")],
)
def test_a_file_that_is_no_search_is_refused_in_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tried.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_tried(path)
