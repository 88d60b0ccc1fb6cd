"""The coverage of every SAE as a table, in the report and in figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.concept_scores import make_scores
from tests.helpers.grids import write_grid
from thought_saes.analysis.findings import conclude
from thought_saes.analysis.grid import Slice
from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import Study, make_study
from thought_saes.common.errors import InputError
from thought_saes.features.summary import SCORES_FILE, coverage_table, read_scores, relation
from thought_saes.figures.concepts import concept_coverage, coverage_against_fvu
from thought_saes.figures.style import NotThere
from thought_saes.reporting.sections import told

# Within cell (0, 1) coverage falls with fvu, within (0, 2) it rises with it.
FVUS = {(0, 1, 64, 4): 0.3, (0, 1, 64, 8): 0.2, (0, 1, 64, 16): 0.1}
FVUS |= {(0, 2, 64, 4): 0.3, (0, 2, 64, 8): 0.2, (0, 2, 64, 16): 0.1}
COVERAGES = dict(zip(FVUS, (0.41, 0.5, 0.6, 0.9, 0.8, 0.7), strict=True))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    results = write_grid(tmp_path / "results", {sae: {"fvu": fvu} for sae, fvu in FVUS.items()})
    return make_study(load_replicates([results], False), Slice(4, 64, ""))


def write_scores(study: Study) -> None:
    path = study.folders[0] / SCORES_FILE
    path.parent.mkdir()
    path.write_text(json.dumps(make_scores(COVERAGES, FVUS)))


def test_a_row_of_the_table_holds_an_sae_beside_the_baselines_of_its_cell() -> None:
    row = coverage_table(make_scores(COVERAGES, FVUS)).iloc[1]
    assert (row["k"], row["coverage"], row["fvu"]) == (8, 0.5, 0.2)
    assert [row[name] for name in ("untrained", "shuffled", "raw", "pca", "probe")] == [0.2, 0.1, 0.4, 0.3, 0.9]
    assert math.isnan(row["monosemantic_share"])


def test_what_holds_within_cells_is_told_apart_from_what_holds_over_all() -> None:
    table = coverage_table(make_scores(COVERAGES, FVUS))
    found = relation(table, "fvu")
    assert (found.within_cells, found.positive, found.cells) == (0, 1, 2)
    assert found.overall == pytest.approx(table["fvu"].rank().corr(table["coverage"].rank()))
    assert relation(table[table["position"] == 1], "fvu").within_cells == -1


def test_the_report_tells_how_many_are_above_raw_dimensions(study: Study) -> None:
    findings = conclude(study)
    assert told(study.folders, findings) == []
    write_scores(study)
    ((evaluation, text),) = told(study.folders, findings)
    assert evaluation.number == "2.11"
    assert text.startswith("Highest coverage of the 12 known concepts: 0.90 (0.89 to 0.91) at thought 2, layer 0")
    # 0.41 is above 0.4, but the interval of the difference is not above 0.
    assert "above 0, for 5 of 6 (83.3%) SAEs, and above that of untrained SAEs for 6 of 6" in text
    assert "within a cell (above 0 in 1 of 2" in text


def test_figures_show_the_coverage_and_say_what_they_lack(study: Study) -> None:
    with pytest.raises(NotThere, match=r"interpret_features\.py has not been run"):
        concept_coverage(study)
    write_scores(study)
    assert [text.get_text() for text in concept_coverage(study).axes[0].texts] == ["0.410\nanswer", "0.900\nanswer"]
    panel = coverage_against_fvu(study).axes[0]
    points = np.concatenate([np.asarray(dots.get_offsets()) for dots in panel.collections])
    assert sorted(points[:, 1].tolist()) == sorted(COVERAGES.values())
    lines = [np.asarray(line.get_ydata())[0] for line in panel.lines]
    assert lines == pytest.approx([0.4, 0.3, 0.2, 0.9])


def test_damaged_scores_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / SCORES_FILE).write_text("{")
    with pytest.raises(InputError, match=r"concept_scores\.json is not readable JSON"):
        read_scores([tmp_path])
