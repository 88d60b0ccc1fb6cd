"""Where the weights lie and in what precision the model runs."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thought_saes.common.errors import InputError


def refuse_offloading(model: Any, name: str) -> None:
    """Raises InputError if a device map has left part of `model` on the CPU or the disk, to be fetched at each step."""
    left_out = [module for module, device in getattr(model, "hf_device_map", {}).items() if device in ("cpu", "disk")]
    if left_out and torch.cuda.is_available():
        raise InputError(
            f"{name} does not fit on the GPUs: no room for {left_out[0]} and {len(left_out) - 1} modules more; "
            "take more GPUs, or --model-dtype bfloat16"
        )


def keep_stream_in_float32(model: nn.Module) -> None:
    """Let `model` run in float32 between its matrices, whose weights keep their dtype.

    Embeddings and linear layers round their input to the dtype of their weights and give float32 on; the norms and
    all other parameters become float32. So bfloat16 halves the memory, but what layers add to the residual stream
    is not rounded away at 8 bits, thought after thought.
    """

    def round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(module.weight.dtype), *inputs[1:])  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.register_forward_pre_hook(round_input)
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            module.register_forward_hook(lambda module, inputs, output: output.float())
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
