"""The figure of the swap shows the shares of edits.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.edits import edits_content
from tests.helpers.grids import write_grid
from thought_saes.analysis.grid import Slice, load_grid
from thought_saes.analysis.study import Study, make_study
from thought_saes.figures.edits import swap_by_position
from thought_saes.figures.style import NotRun, NotThere


@pytest.fixture
def study(tmp_path: Path) -> Study:
    grid = load_grid(write_grid(tmp_path / "results", {(0, 0, 64, 4): {"fvu": 0.5}}))
    return make_study(grid, Slice(4, 64, ""))


def test_a_line_for_each_condition_with_its_share_at_each_position(study: Study) -> None:
    (study.folders[0] / "edits.json").write_text(json.dumps(edits_content()))
    [axes] = swap_by_position(study).axes
    lines = {line.get_label(): line for line in axes.containers}
    data = {label: container.lines[0].get_xydata() for label, container in lines.items() if hasattr(container, "lines")}
    assert np.asarray(data["one feature for one"]).tolist() == [[3, 0.125], [4, 0.25]]
    assert np.asarray(data["difference of class means"]).tolist() == [[3, 0.875], [4, 0.5]]
    assert np.asarray(data["5 features"]).tolist() == [[3, 0.5]]
    assert np.asarray(data["the same, as long as the means"]).tolist() == [[3, 0.375]]
    assert "64 features" not in data
    assert axes.get_title() == "layer 1"


def test_without_the_file_it_is_not_missed_and_without_swaps_it_is_left_out(study: Study) -> None:
    with pytest.raises(NotRun):
        swap_by_position(study)
    (study.folders[0] / "edits.json").write_text(json.dumps(edits_content() | {"swaps": []}))
    with pytest.raises(NotThere, match="holds no swaps"):
        swap_by_position(study)
