"""Others' SAEs: a SAELens folder (`cfg.json` and `sae_weights.safetensors`) as one of ours.

SAELens has options that ours has not: subtracting b_dec from the input, and decoder norms that scale the latents. Both
are folded into the weights, in float64, so that the latents and the reconstructions are the same. An option that
cannot be folded (a normalised input) is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from thought_saes.common.errors import DamagedFile
from thought_saes.common.schema import read_checked
from thought_saes.saes.checkpoint import sae_of
from thought_saes.saes.formats import SaelensConfig
from thought_saes.saes.sae import SparseAutoencoder

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

LAYERS = ("W_enc", "b_enc", "W_dec", "b_dec")
# By architecture: the tensors of its folder; the first one that is no layer is the selection's.
TENSORS = {
    "abstopk": LAYERS,
    "topk": LAYERS,
    "jumprelu": (*LAYERS, "threshold"),
    "batchtopk": (*LAYERS, "topk_threshold"),
    "gated": ("W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"),
}


def is_saelens(path: Path | str) -> bool:
    """Whether `path` is a folder that SAELens wrote, or wrote for it."""
    return (Path(path) / CONFIG_FILE).is_file() and (Path(path) / WEIGHTS_FILE).is_file()


def read_saelens(folder: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The SAE of a SAELens folder: of the architectures in TENSORS.

    Its latents are those that SAELens computes. Raises FileNotFoundError, or ValueError if a file is damaged or the SAE
    is of a kind that ours cannot be.
    """
    folder = Path(folder)
    config = read_config(folder)
    architecture = config["architecture"]
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as problem:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged: {problem}") from problem
    if "log_threshold" in tensors:  # of SAELens before 6
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if set(tensors) != set(TENSORS[architecture]):
        raise ValueError(
            f"{folder / WEIGHTS_FILE} holds {', '.join(sorted(tensors))}: not what a {architecture} SAE of SAELens has"
        )
    if tensors["W_enc"].ndim != 2:
        raise ValueError(f"{folder / WEIGHTS_FILE}: its W_enc is no matrix")
    d_in, d_sae = tensors["W_enc"].shape
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "topk_threshold": ()}
    for name, value in tensors.items():
        if value.shape != shapes.get(name, (d_sae,)):
            raise ValueError(f"{folder / WEIGHTS_FILE}: its {name} is {tuple(value.shape)} beside W_enc {d_in, d_sae}")
    own = folded(config, tensors)
    variant = architecture
    if architecture == "jumprelu":
        # A ReLU lets nothing below 0 through, whatever the threshold.
        own["threshold"] = own["threshold"].clamp(min=0)
        if (own["threshold"] == own["threshold"][0]).all():  # as BatchTopK SAEs are saved
            variant, own["threshold"] = "batchtopk", own["threshold"][0]
    weights = {name: value.float() for name, value in own.items()}
    sae = sae_of(weights, d_in, d_sae, config.get("k", d_sae), variant, device)
    about = config.get("metadata") or {}
    sae.config |= {name: about[name] for name in ("layer", "position") if name in about}
    recipe = about.get("recipe")
    sae.config |= (recipe if isinstance(recipe, dict) else {}) | {"variant": variant}
    return sae.requires_grad_(False)


def read_config(folder: Path) -> dict[str, Any]:
    """Raises ValueError if it is no config of an SAE that can be read."""
    path = folder / CONFIG_FILE
    try:
        config = read_checked(path, SaelensConfig)
    except DamagedFile as problem:
        raise ValueError(str(problem)) from problem
    architecture = config.get("architecture", "standard")
    if architecture == "standard" and config.get("activation_fn_str") == "topk":  # SAELens before 6
        architecture = "topk"
        config["k"] = (config.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in TENSORS:
        raise ValueError(f"{path} is of architecture {architecture!r}; those that can be read: {', '.join(TENSORS)}")
    if architecture in ("abstopk", "topk") and not isinstance(config.get("k"), int):
        raise ValueError(f"{path} says no k")  # SAELens would take 100
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") not in ("none", False):
            raise ValueError(f"{path} has {name} {config[name]!r}, which cannot be folded into the weights")
    return config | {"architecture": architecture}


def folded(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and layouts, in float64: what SAELens does to the input and to the latents goes into the weights."""
    own = {name: value.double() for name, value in tensors.items()}
    encoder, bias, directions = own["W_enc"].T, own.get("b_enc", own.get("b_gate")), own["W_dec"]
    assert bias is not None
    extras = {name: own[name] for name in ("threshold", "r_mag", "b_mag") if name in own}
    if config.get("apply_b_dec_to_input", True):
        shift = encoder @ own["b_dec"]
        bias = bias - shift
        if "b_mag" in extras:
            extras["b_mag"] = extras["b_mag"] - extras["r_mag"].exp() * shift
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = directions.norm(dim=1)  # the latents are in units of them
        encoder, bias, directions = encoder * norms[:, None], bias * norms, directions / norms[:, None]
    if "topk_threshold" in own:
        extras["threshold"] = own["topk_threshold"]
    layers = {
        "encoder.weight": encoder,
        "encoder.bias": bias,
        "decoder.weight": directions.T,
        "decoder.bias": own["b_dec"],
    }
    return layers | extras
