"""Where a causal LM's backbone ends, and its own way from there to the logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def backbone_of(model: PreTrainedModel) -> Any:
    """What of a causal LM gives the last hidden state that its head is applied to."""
    found = model.get_decoder()
    own = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return own[0] if found is model and own else found  # transformers does not find Llama 4's


def logits_of(model: PreTrainedModel, backbone: nn.Module, states: Tensor) -> Tensor:
    """The logits (…, vocabulary) of last hidden states (…, input_dim), float32.

    The model runs with its backbone replaced by `states`: on the way some scale the logits, or bound them.
    """
    weight = model.get_output_embeddings().weight
    given = states.reshape(1, -1, states.shape[-1]).to(weight.device, weight.dtype)
    with replaced_forward(backbone, LastHiddenState(last_hidden_state=given)):
        logits: Tensor = model(inputs_embeds=given, use_cache=False).logits
    return logits.float().view(*states.shape[:-1], -1)


class LastHiddenState(BaseModelOutput):
    """A backbone's output that has nothing else: None is whatever a head looks for beside it."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def replaced_forward(module: nn.Module, output: Any) -> Iterator[None]:
    """Within, `module` computes nothing and returns `output`."""
    own = vars(module).get("forward")  # accelerate puts one there
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
