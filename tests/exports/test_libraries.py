"""What each library is given, and what docs/exports.md says of it. The libraries' own loaders: `make test-exports`."""

import io
import json

import pytest
import torch
from safetensors.torch import load

from tests.helpers.exports import LATENT_DIM, K, exported, random_weights
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.exports.libraries import LIBRARIES

VARIANTS = ("abstopk", "topk", "batchtopk", "matryoshka", "jumprelu", "gated")


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka", "jumprelu", "gated"])
def test_a_variant_that_a_library_has_not_is_refused_with_the_reason(variant: str) -> None:
    with pytest.raises(InputError, match=f"sparsify has no class that computes a {variant} SAE .*: it always keeps k"):
        LIBRARIES["sparsify"].files(exported(random_weights(variant)))


def test_abstopk_is_mirrored_for_libraries_whose_topk_has_a_relu() -> None:
    sae = exported(random_weights("abstopk"))
    sparsify = LIBRARIES["sparsify"].files(sae)
    assert load(sparsify["sae.safetensors"])["encoder.weight"].shape[0] == 2 * LATENT_DIM
    assert json.loads(sparsify["cfg.json"])["num_latents"] == 2 * LATENT_DIM
    dictionary = torch.load(io.BytesIO(LIBRARIES["dictionary_learning"].files(sae)["ae.pt"]), weights_only=True)
    assert dictionary["encoder.weight"].shape[0] == 2 * LATENT_DIM
    saelens = LIBRARIES["saelens"].files(sae)
    assert load(saelens["sae_weights.safetensors"])["W_enc"].shape[1] == LATENT_DIM
    assert json.loads(saelens["cfg.json"])["k"] == K


def test_saelens_is_told_where_the_sae_is_and_what_it_must_not_do_to_the_input() -> None:
    config = json.loads(LIBRARIES["saelens"].files(exported(random_weights("jumprelu")))["cfg.json"])
    assert config["architecture"] == "jumprelu"
    assert config["apply_b_dec_to_input"] is False
    assert config["metadata"] | {"layer": 3, "position": 2, "variant": "jumprelu", "k": K} == config["metadata"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_documentation_tells_by_which_class(variant: str) -> None:
    text = (ROOT / "docs" / "exports.md").read_text()
    [line] = [line for line in text.splitlines() if line.lower().startswith(f"| {variant} ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    for cell, library in zip(cells, LIBRARIES.values(), strict=True):
        assert cell == library.equivalents.get(variant, "none")
