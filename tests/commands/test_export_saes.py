"""The command that writes SAEs for other libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import export_saes
from thought_saes.activations.cell import Cell
from thought_saes.exports import hub
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.saes.saelens import read_saelens
from topk_sae import TopKSAE

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two layers, two k; what the training records of them."""
    folder = tmp_path / "results"
    folder.mkdir()
    for layer in (0, 5):
        for k in (2, 4):
            torch.manual_seed(10 * layer + k)
            sae = TopKSAE(8, 16, k)
            sae.config |= {"layer": layer, "position": 1, "epochs": 25, "seed": 0}
            sae.metrics = {"fvu": 0.25, "explained_variance": 0.9, "l0_mean": float(k), "feature_death_rate": 0.5}
            sae.save(checkpoint_path(folder, SaeKey(Cell(layer, 1), 16, k)))
    (folder / "grid_plan.json").write_text(json.dumps({"model": "org/thinker", "dataset": "/home/me/questions.jsonl"}))
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_what_is_chosen_is_written_beside_a_model_card(results: Path, tmp_path: Path, call: Call) -> None:
    output = tmp_path / "out"
    words = ("--results", results, "--format", "saelens", "--output", output)
    code, out, _ = call(export_saes.main, *words, "--layers", 5)
    assert (code, out) == (0, f"2 SAEs for SAELens in {output}\n")
    folders = ("pos1_layer5_d16_k2", "pos1_layer5_d16_k4")
    assert names(output) == {"README.md"} | {
        f"{folder}/{name}" for folder in folders for name in ("cfg.json", "sae_weights.safetensors")
    }
    original = TopKSAE.load(results / "pos1_layer5_d16_k4.pt")
    again = read_saelens(output / "pos1_layer5_d16_k4")
    assert torch.equal(again.encoder.weight, original.encoder.weight)
    card = (output / "README.md").read_text()
    assert card.startswith(
        "---\ntags:\n- sparse-autoencoder\n- continuous-thoughts\n- saelens\nlibrary_name: saelens\n"
    )
    assert 'base_model: "org/thinker"\n---\n' in card
    assert "questions.jsonl" in card
    assert "/home/me" not in card
    assert "| epochs  | 25    |" in card
    [line] = [line for line in card.splitlines() if line.startswith("| `pos1_layer5_d16_k4`")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["abstopk", "5", "1", "16", "4", "0.2500", "0.9000", "4.0", "50.0%"]
    assert 'SAE.from_pretrained("ORG/REPO", "pos1_layer5_d16_k2")' in card


@pytest.mark.parametrize("library", ["sparsify", "dictionary_learning"])
def test_the_card_of_a_mirrored_export_says_so(library: str, results: Path, tmp_path: Path, call: Call) -> None:
    words = ("--results", results, "--format", library, "--output", tmp_path / "out", "--k-values", 2)
    assert call(export_saes.main, *words)[0] == 0
    assert "twice its latents" in (tmp_path / "out" / "README.md").read_text()


def test_an_upload_sends_what_was_written(
    results: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    class StandIn:
        def create_repo(self, repo_id: str, **_: Any) -> str:
            return f"https://hub/{repo_id}"

        def upload_folder(self, **given: Any) -> None:
            sent.append(given)

    monkeypatch.setattr(hub, "HfApi", StandIn)
    output = tmp_path / "out"
    words = ("--results", results, "--format", "sparsify", "--output", output, "--push", "me/saes", "--k-values", 2)
    code, out, _ = call(export_saes.main, *words)
    assert (code, out.splitlines()[-1]) == (0, "uploaded to https://hub/me/saes")
    assert set(sent[0]["allow_patterns"]) == names(output)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "3"), "not among the layers in"),
        (("--k-values", 7), "--k-values: "),
        (("--latent-dims", 512), "has no 512; there are 16"),
        (("--push", "saes"), "--push saes is no name of a repository: write ORG/REPO"),
        (("--format", "other"), "invalid choice: 'other'"),
    ],
)
def test_a_wrong_flag_gives_a_one_line_error(
    words: tuple[Any, ...], message: str, results: Path, tmp_path: Path, call: Call
) -> None:
    output = tmp_path / "out"
    code, out, err = call(export_saes.main, "--results", results, "--format", "saelens", "--output", output, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_a_folder_without_checkpoints_is_said(tmp_path: Path, call: Call) -> None:
    words = ("--results", tmp_path / "absent", "--format", "saelens", "--output", tmp_path / "out")
    code, _, err = call(export_saes.main, *words)
    assert code == 2
    assert "no checkpoints in" in err


def test_a_damaged_checkpoint_leaves_no_half_export(results: Path, tmp_path: Path, call: Call) -> None:
    path = results / "pos1_layer0_d16_k2.pt"
    path.write_bytes(path.read_bytes()[:-100])
    output = tmp_path / "out"
    code, _, err = call(export_saes.main, "--results", results, "--format", "saelens", "--output", output)
    assert code == 2
    assert "pos1_layer0_d16_k2.pt" in err.splitlines()[-1]
    assert names(output) == set()


def test_a_checkpoint_of_other_sizes_than_its_name_is_refused(results: Path, tmp_path: Path, call: Call) -> None:
    (results / "pos1_layer0_d16_k2.pt").rename(results / "pos1_layer0_d16_k3.pt")
    words = ("--results", results, "--format", "saelens", "--output", tmp_path / "out", "--k-values", 3)
    code, _, err = call(export_saes.main, *words)
    assert code == 2
    assert "holds latent_dim 16, k 2: not what its name says" in err
