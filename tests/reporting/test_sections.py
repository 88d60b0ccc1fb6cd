"""What else was measured becomes a section by a module of its own."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.grids import write_grid
from thought_saes.analysis.findings import Findings, conclude
from thought_saes.analysis.grid import Slice, load_grid
from thought_saes.analysis.study import make_study
from thought_saes.reporting import sections
from thought_saes.reporting.report import first_sentence
from thought_saes.reporting.sections import EVALUATIONS, there, told


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    grid = load_grid(write_grid(tmp_path / "results", {(0, 0, 64, 4): {"fvu": 0.5}}))
    return conclude(make_study(grid, Slice(4, 64, "")))


def test_a_section_is_told_by_the_module_of_its_files_name_and_only_where_the_file_is_there(
    findings: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("transfer")
    module.tell = lambda folders, found: f"{len(folders)} folder, {len(found.study.saes)} SAE"  # type: ignore[attr-defined]
    monkeypatch.setattr(sections, "find_spec", lambda name: name.endswith(".transfer") or None)
    monkeypatch.setitem(sys.modules, f"{sections.__name__}.transfer", module)
    transfer = next(evaluation for evaluation in EVALUATIONS if evaluation.file == "transfer.json")
    folders = [tmp_path / "results"]
    assert told(folders, findings) == []
    (folders[0] / "transfer.json").write_text("{}")
    assert there(transfer, folders)
    assert told(folders, findings) == [(transfer, "1 folder, 1 SAE")]
    (folders[0] / "edits.json").write_text("{}")  # no module phrases it here
    assert len(told(folders, findings)) == 1


def test_the_numbers_of_the_sections_follow_one_another() -> None:
    assert [evaluation.number for evaluation in EVALUATIONS] == ["2.7", "2.8", "2.9", "2.10", "2.11"]


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        ("Does it carry over? **Yes**: 0.5 vs. 0.6. The rest follows.", "Does it carry over? **Yes**: 0.5 vs. 0.6."),
        ("All of 12 do.", "All of 12 do."),
    ],
)
def test_the_summary_tells_the_first_statement_of_a_section(lead: str, said: str) -> None:
    assert first_sentence(lead) == said
