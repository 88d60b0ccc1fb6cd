"""A training checkpoint as a plain model: its keys renamed, its LoRA merged into the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thought_saes.common.errors import InputError
from thought_saes.models.layouts import Layout


def projection_state(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The projection's tensors in float32, under the keys of `thought_projection`; empty if there is none."""
    return {
        ours + key.removeprefix(theirs): state[key].float()
        for key in state
        for theirs, ours in layout.projection.items()
        if key.startswith(theirs)
    }


def merged_state(
    state: Mapping[str, Tensor], skeleton: nn.Module, layout: Layout, lora_alpha: float
) -> dict[str, Tensor]:
    """The plain model's weights in float32: base + (lora_alpha / r) B A wherever the checkpoint has LoRA.

    `skeleton` is the plain model (it may be on the meta device): its Conv1D modules keep weights transposed. A key
    that has no place keeps its name, for `check_keys` to report.
    """
    transposed = {name for name, module in skeleton.named_modules() if isinstance(module, Conv1D)}
    merged: dict[str, Tensor] = {}
    lora = dict.fromkeys(key for key in state if ".lora_" in key)  # those without a place yet
    elsewhere = (*layout.projection, *layout.ignored)
    for key in state:
        if key not in lora and not key.startswith(elsewhere):
            merged[key.removeprefix(layout.prefix).replace(".base_layer.", ".")] = state[key].to(torch.float32)
    for key_a in [key for key in lora if ".lora_A." in key]:
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        module = key_a.removeprefix(layout.prefix).partition(".lora_A.")[0]
        weight = merged.get(f"{module}.weight")
        if weight is None or weight.ndim != 2 or key_b not in lora:
            continue
        del lora[key_a], lora[key_b]
        a, b = state[key_a].to(torch.float32), state[key_b].to(torch.float32)  # (r, in), (out, r)
        n_out, n_in = weight.shape[::-1] if module in transposed else weight.shape
        if a.shape != (len(a), n_in) or b.shape != (n_out, len(a)):
            raise InputError(
                f"the LoRA of {module} does not fit its weight: A {tuple(a.shape)}, B {tuple(b.shape)}, "
                f"weight {tuple(weight.shape)}"
            )
        update = (b @ a) * (lora_alpha / len(a))
        merged[f"{module}.weight"] = weight + (update.T if module in transposed else update)
    return merged | {key: state[key] for key in lora if not key.startswith(elsewhere)}
