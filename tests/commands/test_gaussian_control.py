"""SAEs on Gaussian rows of the same mean and covariance, beside the others of a cell."""

import json
from collections.abc import Callable
from pathlib import Path

import train_grid
from thought_saes.activations.cell import Cell
from thought_saes.analysis.runs import load_replicates
from thought_saes.results.names import baselines_path

Call = Callable[..., tuple[int, str, str]]


def test_the_gaussian_control_is_trained_once_for_each_k_and_added_to_a_run_without_it(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = ["--layer", 2, "--position", 1, "--latent-dim", 16, 24, "--k-values", 2, 4, "--epochs", 2]
    words += ["--batch-size", 32, "--backend", "torch", "--activations", activations, "--results", results]
    path = baselines_path(results, Cell(2, 1))
    assert call(train_grid.main, *words)[0] == 0
    without = json.loads(path.read_text())
    assert "gaussian" not in without
    assert call(train_grid.main, *words, "--gaussian-control")[0] == 0
    with_control = json.loads(path.read_text())
    same = [name for name in without if name != "metadata"]
    assert {name: with_control[name] for name in same} == {name: without[name] for name in same}
    assert set(with_control["gaussian"]) == {"24"}  # the middle of 16 and 24
    assert set(with_control["gaussian"]["24"]) == {"2", "4"}
    for scores in with_control["gaussian"]["24"].values():
        assert 0 < scores["pca_fvu"] < 1
        assert scores["fvu"] > 0
    table = load_replicates([results]).table
    assert table["gaussian_fvu"].notna().tolist() == (table["latent_dim"] == 24).tolist()
    # A file that says null has none.
    path.write_text(json.dumps(with_control | {"gaussian": None}))
    assert call(train_grid.main, *words, "--gaussian-control")[0] == 0
    assert json.loads(path.read_text())["gaussian"] == with_control["gaussian"]
    # A second time there is nothing left to do.
    before = path.stat().st_mtime_ns
    assert call(train_grid.main, *words, "--gaussian-control")[0] == 0
    assert path.stat().st_mtime_ns == before
