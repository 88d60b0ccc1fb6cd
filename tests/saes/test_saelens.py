"""SAELens folders that others wrote, with the options that ours has not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.exports import INPUT_DIM, LATENT_DIM, K, exported, latents, random_weights, rows
from thought_saes.exports.saelens import SAELens
from thought_saes.exports.weights import Weights
from thought_saes.saes.saelens import is_saelens, read_saelens
from thought_saes.saes.variants import VARIANTS


def write(folder: Path, config: dict[str, Any], **tensors: Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: value.float().contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def layers() -> dict[str, Tensor]:
    weights = random_weights("abstopk")
    return {"W_enc": weights.W_enc.T, "b_enc": weights.b_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}


def same_rows(found: Tensor, expected: Tensor) -> Tensor:
    """Rows that select the same: all but those where rounding decides the k-th."""
    same = ((found != 0) == (expected != 0)).all(dim=1)
    assert same.float().mean() > 0.98
    return same


def test_what_is_written_for_saelens_comes_back(tmp_path: Path) -> None:
    weights = random_weights("abstopk")
    for name, content in SAELens().files(exported(weights)).items():
        (tmp_path / name).write_bytes(content)
    assert is_saelens(tmp_path)
    sae = read_saelens(tmp_path)
    assert torch.equal(sae.encoder.weight, weights.W_enc.float())
    assert torch.equal(sae.encoder.bias, weights.b_enc.float())
    assert torch.equal(sae.decoder.weight, weights.W_dec.T.float())
    assert torch.equal(sae.decoder.bias, weights.b_dec.float())
    assert (sae.k, sae.config["layer"], sae.config["position"], sae.config["epochs"]) == (K, 3, 2, 25)


def test_a_subtracted_b_dec_is_folded_into_the_bias(tmp_path: Path) -> None:
    weights, own = random_weights("abstopk"), layers()
    own["b_enc"] = own["b_enc"] + weights.W_enc @ weights.b_dec  # so that W (x - b_dec) + this is W x + b_enc
    sae = read_saelens(write(tmp_path, {"architecture": "abstopk", "k": K}, **own))  # it subtracts unless told not to
    expected = latents(weights, rows())
    found = sae.encode(rows()).double()
    same = same_rows(found, expected)
    assert torch.allclose(found[same], expected[same], atol=1e-4)


def test_latents_in_units_of_the_decoders_norms_are_folded(tmp_path: Path) -> None:
    # z is computed from norm * p, and a reconstruction is the sum of z / norm * W_dec.
    own = layers()
    config = {"architecture": "abstopk", "k": K, "apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}
    sae = read_saelens(write(tmp_path, config, **own))
    norms = own["W_dec"].norm(dim=1)
    pre_acts = (rows().double() @ own["W_enc"] + own["b_enc"]) * norms
    chosen = pre_acts.abs().topk(K).indices
    expected = torch.zeros_like(pre_acts).scatter(-1, chosen, pre_acts.gather(-1, chosen))
    found = sae.encode(rows()).double()
    same = same_rows(found, expected)
    assert torch.allclose(found[same], expected[same], atol=1e-3)
    reconstructed = expected / norms @ own["W_dec"] + own["b_dec"]
    assert torch.allclose(sae(rows()).double()[same], reconstructed[same], atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal", "k": K}, "is of architecture 'temporal'; those that can be read: abstopk, topk"),
        ({"architecture": "abstopk"}, "says no k"),
        ({"architecture": "abstopk", "k": K, "normalize_activations": "layer_norm"}, "normalize_activations"),
        ({"architecture": "abstopk", "k": LATENT_DIM + 1}, "no SAE has"),
        ({"architecture": "jumprelu"}, "not what a jumprelu SAE of SAELens has"),
    ],
)
def test_what_cannot_be_read_is_said(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_saelens(write(tmp_path, config, **layers()))


def test_a_damaged_folder_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, {"architecture": "abstopk", "k": K}, **layers())
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        read_saelens(folder)
    write(folder, {"architecture": "abstopk", "k": K}, **layers() | {"b_dec": torch.ones(INPUT_DIM + 1)})
    with pytest.raises(ValueError, match="b_dec"):
        read_saelens(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg\.json is not readable JSON"):
        read_saelens(folder)


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "jumprelu", "gated"])
def test_an_architecture_is_read_as_its_own_variant_or_not_at_all(variant: str, tmp_path: Path) -> None:
    weights = random_weights(variant)
    for name, content in SAELens().files(exported(weights)).items():
        (tmp_path / name).write_bytes(content)
    if variant not in VARIANTS:
        with pytest.raises(ValueError, match=f"there is no SAE variant '{variant}'"):
            read_saelens(tmp_path)
        return
    sae = read_saelens(tmp_path)
    assert sae.variant.name == variant
    expected, found = latents(weights, rows()), sae.encode(rows()).double()
    same = same_rows(found, expected)
    assert torch.allclose(found[same], expected[same], atol=1e-4)
    again = Weights.of(sae)
    assert torch.equal(again.W_enc, weights.W_enc.float().double())
    assert (again.threshold is None) == (weights.threshold is None)
