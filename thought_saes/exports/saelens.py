"""Exports for SAELens: `cfg.json` and `sae_weights.safetensors` in a folder of the SAE's name.

SAELens computes p = x W_enc + b_enc with W_enc (d, L), and reads `metadata` as it stands.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from safetensors.torch import save

from thought_saes.exports.library import Exported, Library
from thought_saes.exports.weights import as_float32
from thought_saes.saes.saelens import CONFIG_FILE, WEIGHTS_FILE

ARCHITECTURES = {
    "abstopk": "abstopk",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
}


class SAELens(Library):
    name = "saelens"
    title = "SAELens"
    release = "6.54.12"
    tag = "saelens"
    equivalents: ClassVar[Mapping[str, str]] = {
        variant: f"`{architecture}`" for variant, architecture in ARCHITECTURES.items()
    }
    reason = "it has a class for every variant"

    def encoded(self, sae: Exported) -> dict[str, bytes]:
        weights = sae.weights
        architecture = ARCHITECTURES[weights.variant]
        tensors = as_float32(
            W_enc=weights.W_enc.T,
            W_dec=weights.W_dec,
            b_dec=weights.b_dec,
            threshold=weights.threshold if architecture == "jumprelu" else None,
            r_mag=weights.r_mag,
            b_mag=weights.b_mag,
            **{"b_gate" if architecture == "gated" else "b_enc": weights.b_enc},
        )
        config: dict[str, Any] = {
            "architecture": architecture,
            "d_in": weights.input_dim,
            "d_sae": weights.latent_dim,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": metadata(sae, self.release),
        }
        if architecture in ("abstopk", "topk"):
            config |= {"k": weights.k, "rescale_acts_by_decoder_norm": False}
        return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode()}

    def usage(self, repository: str, folder: str) -> str:
        return f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{repository}", "{folder}")'


def metadata(sae: Exported, release: str) -> dict[str, Any]:
    """What SAELens and its readers may want to know; `position` counts forward passes, 0 is the bot token."""
    cell, latent_dim, k = sae.key
    return {
        "sae_lens_version": release,
        "model_name": sae.origin.model,
        "hook_name": f"blocks.{cell.layer}.hook_resid_post",
        "dataset_path": sae.origin.dataset,
        "layer": cell.layer,
        "position": cell.position,
        "position_0": sae.origin.position_0,
        "variant": sae.weights.variant,
        "latent_dim": latent_dim,
        "k": k,
        "recipe": {name: value for name, value in sae.config.items() if isinstance(value, str | int | float)},
    }
