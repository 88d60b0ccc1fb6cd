"""evaluate_transfer.py through its command line: its file, the report's section on it, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import evaluate_transfer
from tests.helpers.substitution import write_saes
from tests.helpers.transfer import write_rows, write_two_sets
from thought_saes.common.errors import DamagedFile
from thought_saes.reporting.sections import transfer

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer")
    write_two_sets(folder, 3.0)
    return folder


def flags(ready: Path) -> list[object]:
    return ["--results", ready / "saes_of_a", "--activations", ready / "b"]


def test_the_file_holds_what_was_chosen_and_the_report_tells_it(ready: Path, call: Call, tmp_path: Path) -> None:
    words = ["--against", ready / "saes_of_b", "--from-activations", ready / "a", "--output", tmp_path]
    code, out, err = call(evaluate_transfer.main, *flags(ready), *words, "--k-values", 4, "--layers", 0)
    assert code == 0, err
    content = json.loads((tmp_path / "transfer.json").read_text())
    assert [(r["layer"], r["position"], r["k"]) for r in content["records"]] == [(0, 0, 4), (0, 1, 4)]
    assert {content["metadata"][name] for name in ("n_train_of_a", "n_train_of_b")} == {96}
    gap = content["gaps"][0]
    assert f"gap {gap['gap']:+.4f}" in out
    text = transfer.phrase(content)
    assert text.startswith(f"On 24 rows of `b` the SAEs leave an fvu of {gap['fvu']:.4f}, its own SAEs ")
    assert "over 2 SAEs of 2 cells; SAEs that were trained on it reconstruct it better." in text
    row = next(line for line in text.splitlines() if line.startswith("|         16"))
    assert [cell.strip() for cell in row.split("|")][3:6] == ["-", f"{gap['fvu']:.4f}", f"{gap['fvu_own']:.4f}"]
    assert not (ready / "saes_of_a/transfer.json").exists()


def test_without_saes_of_the_other_data_there_is_no_gap_to_tell(ready: Path, call: Call, tmp_path: Path) -> None:
    results = shutil.copytree(ready / "saes_of_a", tmp_path / "results")
    code, out, _ = call(evaluate_transfer.main, "--results", results, "--activations", ready / "b")
    assert code == 0
    assert "no PCA of the SAEs' own data set" in out
    text = transfer.phrase(json.loads((results / "transfer.json").read_text()))
    assert "SAEs of that data set were not measured beside them" in text
    assert "fvu of -." in text


def test_the_verdict_follows_the_interval() -> None:
    about = {"n_validation": 50, "activations": "b"}
    gap = {"fvu": 0.2, "fvu_own": 0.1, "gap": 0.1, "n_saes": 2, "n_cells": 2}
    for interval, verdict in (
        ([0.1, 0.2], "SAEs that were trained on it reconstruct it better."),
        ([-0.2, -0.1], "they reconstruct it better than its own do."),
        ([-0.1, 0.2], "the interval holds 0."),
        (None, "one cell does not say how sure that is."),
    ):
        assert transfer.finding(gap | {"gap_interval": interval}, [], about).endswith(verdict)


def test_several_data_sets_stand_side_by_side(ready: Path, call: Call, tmp_path: Path) -> None:
    same = ["--results", ready / "saes_of_a", "--activations", ready / "a", "--against", ready / "saes_of_a"]
    other = [*flags(ready), "--against", ready / "saes_of_b"]
    for name, words in (("same", same), ("other", other)):
        words = [*words, "--from-activations", ready / "a", "--output", tmp_path, "--name", name]
        assert call(evaluate_transfer.main, *words)[0] == 0
    text = transfer.tell([tmp_path], None)  # type: ignore[arg-type]
    assert text
    assert text.startswith("SAEs that were trained on the data reconstruct it better in 1 of 2 comparisons")
    assert "These: other." in text
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]] for line in text.splitlines()[4:6]
    }
    assert rows["same"][5] == "+0.0000 [+0.0000, +0.0000]"
    content = json.loads((tmp_path / "transfer_other.json").read_text())
    assert rows["other"][3] == f"{sum(one['fvu'] for one in content['records']) / len(content['records']):.4f}"
    assert "Below 0" not in text
    assert "Their training rows" not in text
    content["metadata"]["n_train_of_b"] = 50
    content["gaps"][0]["gap_interval"] = [-0.5, -0.25]
    (tmp_path / "transfer_fewer.json").write_text(json.dumps(content))
    text = transfer.tell([tmp_path], None)  # type: ignore[arg-type]
    assert text
    assert "Below 0, they reconstruct it worse: fewer. Their training rows were 50 against 96" in text
    assert not (tmp_path / "transfer.json").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "transfer.json").write_text("{}")
    with pytest.raises(DamagedFile, match=r"transfer\.json: metadata is missing: evaluate_transfer\.py writes it anew"):
        transfer.tell([tmp_path], None)  # type: ignore[arg-type]


def test_bad_input_is_one_line_and_writes_nothing(ready: Path, call: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "wide", input_dim=16)
    write_rows(tmp_path / "few", n_rows=90)
    few = write_rows(tmp_path / "elsewhere", shift=9.0)
    for path in list(few.folder.glob("*.npy")):
        path.rename(path.with_name(path.name.replace("layer", "layer7")))
    lacking = shutil.copytree(ready / "saes_of_b", tmp_path / "lacking")
    (lacking / "pos1_layer0_d16_k4.pt").unlink()
    recipe = shutil.copytree(ready / "saes_of_b", tmp_path / "recipe")
    for path in recipe.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["config"]["epochs"] = 3
        torch.save(content, path)
    write_saes(tmp_path / "others", write_rows(tmp_path / "other", shift=1.0), [16], [2, 4])
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["--activations", tmp_path / "nowhere"], "no activations at"),
        (["--activations", tmp_path / "elsewhere"], "have no layer and position in common"),
        (["--activations", tmp_path / "wide"], "is for vectors of 12 values, the activations have 16"),
        (["--activations", tmp_path / "few"], "has 18 validation rows: transfer needs 20"),
        (["--results", tmp_path / "nowhere"], "no results at"),
        (["--results", tmp_path / "empty"], "no SAEs in"),
        (["--k-values", 3], "has no SAEs of --k-values 3; it has 2,4"),
        (["--layers", 5], "not among the layers of the SAEs"),
        (["--against", lacking], "lacks 1 of 6 SAEs, first layer 0 position 1 latent_dim 16 k 4"),
        (["--against", tmp_path / "others"], "was trained on other activations"),
        (["--against", recipe], "by different recipes (epochs)"),
        (["--from-activations", ready / "b"], "was trained on other activations"),
        (["--from-activations", tmp_path / "wide"], "has 16 columns"),
    ):
        output = tmp_path / "output"
        code, _, err = call(evaluate_transfer.main, *flags(ready), *words, "--output", output)
        line = err.splitlines()[-1]
        assert code == 2, words
        assert message in line
        assert "Traceback" not in err
        assert not (output / "transfer.json").exists()
