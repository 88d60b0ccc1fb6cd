"""Exports for dictionary_learning: `ae.pt` and `config.json` in a folder of the SAE's name.

Its classes encode x - b_dec, all but JumpReluAutoEncoder. Each has its own names and layouts of the same tensors.
"""

import io
import json
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from thought_saes.exports.library import Exported, Library
from thought_saes.exports.weights import Weights, as_float32

CLASSES = {
    "abstopk": "AutoEncoderTopK",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}


class DictionaryLearning(Library):
    name = "dictionary_learning"
    title = "dictionary_learning"
    release = "0.1.0"
    tag = "dictionary-learning"
    equivalents: ClassVar[Mapping[str, str]] = {
        variant: f"`{name}`" + (", mirrored" if variant == "abstopk" else "") for variant, name in CLASSES.items()
    }
    reason = "it has a class for every variant"

    def encoded(self, sae: Exported) -> dict[str, bytes]:
        weights = sae.weights.mirrored() if sae.weights.variant == "abstopk" else sae.weights
        dict_class = CLASSES[sae.weights.variant]
        buffer = io.BytesIO()
        torch.save(state_dict(weights), buffer)
        trainer = {
            "dict_class": dict_class,
            "k": weights.k,
            "activation_dim": weights.input_dim,
            "dict_size": weights.latent_dim,
            "layer": sae.key.cell.layer,
            "position": sae.key.cell.position,
            "lm_name": sae.origin.model,
        }
        return {"ae.pt": buffer.getvalue(), "config.json": (json.dumps({"trainer": trainer}, indent=2) + "\n").encode()}

    def usage(self, repository: str, folder: str) -> str:
        return (
            "from dictionary_learning.utils import load_dictionary\n"
            "from huggingface_hub import snapshot_download\n\n"
            f'sae, config = load_dictionary(snapshot_download("{repository}") + "/{folder}", device="cpu")'
        )


def state_dict(weights: Weights) -> dict[str, Tensor]:
    """The tensors as the variant's class names them."""
    if weights.variant == "jumprelu":
        return as_float32(
            W_enc=weights.W_enc.T,
            b_enc=weights.b_enc,
            W_dec=weights.W_dec,
            b_dec=weights.b_dec,
            threshold=weights.threshold,
        )
    weights = weights.after_subtracting_b_dec()
    if weights.variant == "gated":
        return as_float32(
            decoder_bias=weights.b_dec,
            r_mag=weights.r_mag,
            gate_bias=weights.b_enc,
            mag_bias=weights.b_mag,
            **{"encoder.weight": weights.W_enc, "decoder.weight": weights.W_dec.T},
        )
    # A batch's k largest at training, one threshold for all features later; a row's k largest have none.
    threshold = torch.tensor(-1.0) if weights.threshold is None else weights.threshold[0].float()
    selection = {"k": torch.tensor(weights.k, dtype=torch.int), "threshold": threshold}
    if weights.variant == "matryoshka":
        sizes = {"group_sizes": torch.tensor(weights.group_sizes)}
        tensors = as_float32(W_enc=weights.W_enc.T, b_enc=weights.b_enc, W_dec=weights.W_dec, b_dec=weights.b_dec)
        return tensors | selection | sizes
    layers = {
        "encoder.weight": weights.W_enc,
        "encoder.bias": weights.b_enc,
        "decoder.weight": weights.W_dec.T,
        "b_dec": weights.b_dec,
    }
    return as_float32(**layers) | selection
