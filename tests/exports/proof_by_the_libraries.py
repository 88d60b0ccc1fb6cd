"""The libraries themselves load what was written for them, and compute the same: `make test-exports`.

It runs in an environment of its own, for the libraries pin other releases than the project does; the ordinary tests do
not collect it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from tests.helpers.exports import exported, latents, random_weights, reconstruction, rows
from thought_saes.exports.libraries import LIBRARIES
from thought_saes.exports.weights import Weights
from thought_saes.saes.saelens import read_saelens
from topk_sae import TopKSAE

Pair = tuple[Tensor, Tensor]  # latents and reconstructions
FOLDER = "pos2_layer3_d96_k6"


def write(library: str, weights: Weights, output: Path) -> Path:
    folder = output / FOLDER
    folder.mkdir()
    for name, content in LIBRARIES[library].files(exported(weights)).items():
        (folder / name).write_bytes(content)
    return folder


def saelens_from_disk(folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Pair:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return sae.encode(x), sae(x)


def saelens_from_hub(folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """`SAE.from_pretrained`, its download taken from the folder that would be uploaded."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders

    def download(repo_id: str, filename: str, force_download: bool = False) -> str:
        assert repo_id == "org/saes"
        if not (folder.parent / filename).exists():
            raise LocalEntryNotFoundError(filename)
        return str(folder.parent / filename)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    sae = SAE.from_pretrained("org/saes", folder.name)
    return sae.encode(x), sae(x)


def sparsify(folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Pair:
    from sparsify import SparseCoder

    sae = SparseCoder.load_many(str(folder.parent), local=True)[folder.name]
    found = sae.encode(x)
    dense = torch.zeros(len(x), sae.num_latents).scatter(-1, found.top_indices, found.top_acts)
    return dense, sae(x).sae_out


def dictionary_learning(folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Pair:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), device="cpu")
    return sae.encode(x), sae(x)


LOADERS = {
    "saelens from disk": saelens_from_disk,
    "saelens from the hub": saelens_from_hub,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}
CASES = [
    (name, loader, variant) for name, loader in LOADERS.items() for variant in LIBRARIES[name.split()[0]].equivalents
]


def clear_rows(weights: Weights, x: Tensor) -> Tensor:
    """The rows whose selection does not hang on the rounding of a pre-activation."""
    pre_acts = x.double() @ weights.W_enc.T + weights.b_enc
    if weights.threshold is not None:
        margin = (pre_acts - weights.threshold).abs().amin(dim=1)
    elif weights.variant == "gated":
        margin = pre_acts.abs().amin(dim=1)
    else:
        ordered = (pre_acts.abs() if weights.variant == "abstopk" else pre_acts).sort(dim=1, descending=True).values
        margin = ordered[:, weights.k - 1] - ordered[:, weights.k]
    clear = margin > 1e-4
    assert clear.float().mean() > 0.9
    return x[clear]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert (found.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize(("name", "loader", "variant"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_the_library_computes_what_the_sae_does(
    name: str, loader: Callable[..., Pair], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(variant)
    x = clear_rows(weights, rows())
    expected = latents(weights, x)
    found, reconstructed = loader(write(name.split()[0], weights, tmp_path), x, monkeypatch)
    if variant == "abstopk":
        assert (expected < 0).any(dim=1).float().mean() > 0.9, "rows with negative winners"
    if found.shape[1] == 2 * expected.shape[1]:  # mirrored
        assert (found >= 0).all()
        found = found[:, : weights.latent_dim] - found[:, weights.latent_dim :]
    assert_close(found, expected)
    assert_close(reconstructed, reconstruction(weights, expected))


@torch.inference_mode()
@pytest.mark.parametrize(("name", "loader"), LOADERS.items(), ids=LOADERS)
def test_abstopk_passed_off_as_topk_differs(
    name: str, loader: Callable[..., Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights("abstopk")
    x = rows()
    passed_off = Weights(**{**vars(weights), "variant": "topk"})
    _, reconstructed = loader(write(name.split()[0], passed_off, tmp_path), x, monkeypatch)
    expected = reconstruction(weights, latents(weights, x))
    assert (reconstructed - expected).norm() > 0.1 * (expected - expected.mean(dim=0)).norm()


@torch.inference_mode()
def test_what_saelens_saves_is_read_back(tmp_path: Path) -> None:
    """An SAE that SAELens wrote itself, with b_dec subtracted and latents in units of the decoder's norms."""
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

    weights = random_weights("abstopk")
    config = AbsTopKSAEConfig(d_in=24, d_sae=96, k=6, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True)
    sae = AbsTopKSAE(config)
    sae.load_state_dict(
        {
            "W_enc": weights.W_enc.T.float(),
            "b_enc": weights.b_enc.float(),
            "W_dec": weights.W_dec.float(),
            "b_dec": 0.1 * weights.b_dec.float(),
        }
    )
    sae.save_model(tmp_path)
    x = rows()
    ours = read_saelens(tmp_path)
    expected = sae.encode(x)
    same = ((ours.encode(x) != 0) == (expected != 0)).all(dim=1)  # but for the rounding of a k-th largest
    assert same.float().mean() > 0.98
    assert_close(ours.encode(x)[same], expected[same].double())
    assert_close(ours(x)[same], sae(x)[same].double())


@torch.inference_mode()
def test_a_checkpoint_goes_out_through_the_command_line_and_comes_back(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    import export_saes

    torch.manual_seed(3)
    sae = TopKSAE(24, 96, 6)
    (tmp_path / "results").mkdir()
    sae.save(tmp_path / "results" / f"{FOLDER}.pt")
    output = tmp_path / "out"
    code, _, err = call(export_saes.main, "--results", tmp_path / "results", "--format", "saelens", "--output", output)
    assert code == 0, err
    from sae_lens import SAE

    x = rows()
    theirs = SAE.load_from_disk(output / FOLDER)
    same = ((theirs.encode(x) != 0) == (sae.encode(x) != 0)).all(dim=1)
    assert same.float().mean() > 0.98
    assert_close(theirs(x)[same], sae(x)[same].double())
    shutil.rmtree(tmp_path / "results")
    theirs.save_model(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["metadata"]["position"] == 2
    again: Any = read_saelens(tmp_path / "again")
    assert torch.equal(again.encoder.weight, sae.encoder.weight)
