"""Substitution as one would write it first: one question, the whole sequence again at every step, plain hooks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thought_saes.activations.cell import Cell
from thought_saes.models.reasoner import LatentReasoner


class PlainAnswer(NamedTuple):
    tokens: list[int]  # the end-of-text token, if it came, included
    states: dict[Cell, Tensor]  # (input_dim,), before an edit there


@torch.no_grad()
def plain_run(
    reasoner: LatentReasoner,
    question: list[int],
    substitutes: Mapping[Cell, Callable[[Tensor], Tensor]],
    max_new_tokens: int,
    feed: list[int] | None = None,
) -> tuple[PlainAnswer, list[Tensor]]:
    """The greedy answer, or the pass over the answer `feed`, and the logits (vocabulary,) before each of its tokens."""
    backbone, embed = reasoner.backbone, reasoner.model.get_input_embeddings()
    blocks, norm = (backbone.h, backbone.ln_f) if hasattr(backbone, "h") else (backbone.layers, backbone.norm)
    states: dict[Cell, Tensor] = {}

    def hook_on(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            for position in range(reasoner.n_thoughts + 1):
                place, cell = len(question) - 1 + position, Cell(layer, position)
                if place < stream.shape[1]:
                    states[cell] = stream[0, place].clone()
                    if cell in substitutes:
                        stream[0, place] = substitutes[cell](stream[:, place])[0]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    hooks = [m.register_forward_hook(hook_on(layer)) for layer, m in enumerate([*blocks[:-1], norm])]
    try:
        inputs = embed(torch.tensor([question]))
        for _ in range(reasoner.n_thoughts):
            last = backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
            inputs = torch.cat([inputs, reasoner.feed_back(last)], dim=1)
        next_token, said, logits = reasoner.eot_token_id, list[int](), list[Tensor]()
        while len(said) < (max_new_tokens if feed is None else len(feed)):
            inputs = torch.cat([inputs, embed(torch.tensor([[next_token]]))], dim=1)
            logits.append(reasoner.model(inputs_embeds=inputs, use_cache=False).logits[0, -1])
            next_token = int(logits[-1].argmax()) if feed is None else feed[len(said)]
            said.append(next_token)
            if feed is None and next_token == reasoner.tokenizer.eos_token_id:
                break
    finally:
        for each in hooks:
            each.remove()
    return PlainAnswer(said, states), logits
