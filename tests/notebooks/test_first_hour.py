"""The notebook runs from its first cell to its last, in a folder that is not the project's."""

import ast
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import thought_saes
import thought_saes.notebook
from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_hour.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook with its outputs, and the folder in which it ran. PYTHONPATH stands for `pip install -e .`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    return notebook, folder


def output(notebook: Any, source: str) -> dict[str, str]:
    """What the cell whose source holds `source` gave at its end."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    [result] = [found for found in cell.outputs if found.output_type == "execute_result"]
    return dict(result.data)


def test_every_step_gives_what_it_says(executed: tuple[Any, Path]) -> None:
    notebook, folder = executed
    table = output(notebook, "ts.load_metrics")["text/plain"]
    assert len(table.splitlines()) == 1 + 2 * 2 * 2  # layers x positions x k
    assert "image/png" in output(notebook, "ts.heatmap")
    top = output(notebook, "ts.top_rows")["text/plain"]
    assert "latent" in top
    assert len(top.splitlines()) >= 6
    assert "edited" in output(notebook, "ts.Edit")["text/plain"]
    assert output(notebook, "ts.load_sae")["text/plain"] == "True"
    assert (folder / "first_hour" / "for_saelens" / "pos3_layer0_d64_k8" / "cfg.json").exists()


def test_no_step_of_the_notebook_is_longer_than_it_should_be() -> None:
    """Each takes two lines and what shows the result; the imports aside."""
    code = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    for source in code[1:]:
        assert len(ast.parse(source).body) <= 3, source


def test_the_notebook_ships_without_outputs() -> None:
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells)


def test_importing_the_package_brings_only_what_is_asked_for() -> None:
    assert set(thought_saes.NOTEBOOK) == set(thought_saes.notebook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        thought_saes.nothing  # noqa: B018
