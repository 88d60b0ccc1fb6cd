"""interpret_features.py by its command line."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

import interpret_features
from tests.helpers.features import write_planted_grid
from thought_saes.common.errors import InputError
from thought_saes.features import load_features
from thought_saes.features.cells import CONCEPT_COLUMNS


def interpret(monkeypatch: pytest.MonkeyPatch, activations: Path, results: Path, *flags: str) -> int:
    words = ["--activations", str(activations), "--results", str(results), "--concept-column", "colour"]
    words += ["--workers", "1", *flags]
    monkeypatch.setattr(sys, "argv", ["interpret_features.py", *words])
    return interpret_features.main()


def test_the_planted_concept_is_found_in_every_cell_and_baselines_stand_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    activations, results = write_planted_grid(tmp_path)
    assert interpret(monkeypatch, activations, results) == 0
    said = capsys.readouterr().out
    assert "Feature 3+ at thought" in said
    assert "fires when the colour is red: F1 1.00" in said
    tables = load_features(results / "features")
    assert list(tables.concepts.columns) == CONCEPT_COLUMNS
    red = tables.concepts[tables.concepts["concept"] == "colour = red"].set_index(["position", "representation"])
    assert red.loc[(1, "sae"), "half"] == red.loc[(2, "sae"), "half"] == "3+"
    assert red.loc[(1, "raw"), "half"] == "5+"
    for name in ("sae", "raw", "probe"):
        assert red.loc[(1, name), "f1"] == 1
    assert red.loc[(1, "shuffled"), "f1"] < 0.6
    n_red = sum(
        json.loads(line)["colour"] == "red" for line in (activations / "examples.jsonl").read_text().splitlines()
    )
    assert 0 < red.loc[(1, "sae"), "n_rows"] < n_red  # validation rows alone
    half = tables.features.query("position == 1 and half == '3+'").iloc[0]
    assert half["density"] == pytest.approx(n_red / 300)
    assert half["matches"][0] == "pos2_layer0 3+"
    assert half["match_correlations"][0] > 0.9
    assert sum(half["histogram"]) == n_red
    scores = json.loads((results / "features" / "concept_scores.json").read_text())
    assert [sae["fvu"] for sae in scores["saes"]] == [0.5, 0.5]
    assert scores["saes"][0]["sae"]["families"]["colour"]["coverage"] > scores["saes"][0]["shuffled"]["coverage"]
    assert {path.name for path in (results / "features").glob("*.html")} == {
        "index.html",
        "pos1_layer0.html",
        "pos2_layer0.html",
    }


def test_two_workers_write_the_same_tables_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, results = write_planted_grid(tmp_path)
    interpret(monkeypatch, activations, results, "--workers", "1")
    interpret(monkeypatch, activations, results, "--workers", "2", "--output", str(tmp_path / "other"))
    one, two = load_features(results / "features"), load_features(tmp_path / "other")
    pd.testing.assert_frame_equal(one.features, two.features)
    pd.testing.assert_frame_equal(one.concepts, two.concepts)


def test_a_second_run_scores_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, results = write_planted_grid(tmp_path)
    interpret(monkeypatch, activations, results, "--positions", "1")
    first = (results / "features" / "parts" / "pos1_layer0_features.parquet").stat().st_mtime_ns
    interpret(monkeypatch, activations, results)
    parts = results / "features" / "parts"
    assert (parts / "pos1_layer0_features.parquet").stat().st_mtime_ns == first
    whole = pd.read_parquet(results / "features" / "features.parquet")
    (results / "pos1_layer0_d16_k2.pt").write_bytes((results / "pos2_layer0_d16_k2.pt").read_bytes())
    interpret(monkeypatch, activations, results)
    assert (parts / "pos1_layer0_features.parquet").stat().st_mtime_ns != first
    again = pd.read_parquet(results / "features" / "features.parquet")
    second = whole["position"] == 2
    pd.testing.assert_frame_equal(again[second].drop(columns=_MATCHES), whole[second].drop(columns=_MATCHES))


_MATCHES = ["matches", "match_correlations"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "7"], "no SAE of k 7 there; it has 2"),
        (["--positions", "3"], "not among the positions"),
        (["--concept-column", "size"], "no column 'size'"),
        (["--results", "nowhere"], "no results at nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    activations, results = write_planted_grid(tmp_path)
    with pytest.raises(InputError, match=message):
        interpret(monkeypatch, activations, results, *flags)
    assert not (results / "features").exists()


def test_a_damaged_checkpoint_leaves_no_half_written_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, results = write_planted_grid(tmp_path)
    (results / "pos2_layer0_d16_k2.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"pos2_layer0_d16_k2\.pt is no checkpoint"):
        interpret(monkeypatch, activations, results)
    assert not (results / "features" / "features.parquet").exists()
