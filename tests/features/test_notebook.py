"""The notebook runs from its first cell to its last on a tiny grid."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import interpret_features
from tests.helpers.features import write_planted_grid
from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "look_at_features.ipynb"


def test_the_notebook_finds_the_feature_of_a_concept_and_plots_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations, results = write_planted_grid(tmp_path)
    words = ["--activations", activations, "--results", results, "--concept-column", "colour", "--workers", 1]
    monkeypatch.setattr(sys, "argv", ["interpret_features.py", *map(str, words)])
    interpret_features.main()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    paths = notebook.cells[1]
    assert paths.source.count("activations, results =") == 1
    paths.source = (
        f"from pathlib import Path\nactivations, results = Path({str(activations)!r}), Path({str(results)!r})\n"
        'concept = "colour = red"'
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (printed,) = [output.text for output in outputs if output.output_type == "stream"]
    assert printed.count("about red things") == 5


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
