"""Exports for sparsify (EleutherAI): `cfg.json` and `sae.safetensors` in a folder of the SAE's name.

sparsify encodes x - b_dec, and its top-k comes after a ReLU.
"""

import json
from collections.abc import Mapping
from typing import ClassVar

from safetensors.torch import save

from thought_saes.exports.library import Exported, Library
from thought_saes.exports.weights import as_float32


class Sparsify(Library):
    name = "sparsify"
    title = "sparsify"
    release = "1.3.3"
    tag = "sparsify"
    equivalents: ClassVar[Mapping[str, str]] = {"abstopk": "`topk`, mirrored", "topk": "`topk`"}
    reason = "it always keeps k latents of a row, and holds no thresholds or gates; write it for saelens"

    def encoded(self, sae: Exported) -> dict[str, bytes]:
        weights = sae.weights.mirrored() if sae.weights.variant == "abstopk" else sae.weights
        weights = weights.after_subtracting_b_dec()
        config = {
            "activation": "topk",
            "normalize_decoder": False,
            "num_latents": weights.latent_dim,
            "k": weights.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": weights.input_dim,
        }
        tensors = as_float32(**{"encoder.weight": weights.W_enc, "encoder.bias": weights.b_enc})
        tensors |= as_float32(W_dec=weights.W_dec, b_dec=weights.b_dec)
        return {"sae.safetensors": save(tensors), "cfg.json": (json.dumps(config, indent=2) + "\n").encode()}

    def usage(self, repository: str, folder: str) -> str:
        return f'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_hub("{repository}", "{folder}")'
