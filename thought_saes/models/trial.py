"""Does a model do with fed thoughts what it does with a text? Asked once, when it is loaded.

A batch is run with padding, through a cache and from forks, since that is fast. Not every architecture of transformers
computes the same so; one that does not would give activations that are not the model's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thought_saes.common.errors import InputError, one_line
from thought_saes.common.machine import float32_products
from thought_saes.models.rollout import Rollout

if TYPE_CHECKING:
    from thought_saes.models.reasoner import LatentReasoner

TOLERANCE = {torch.float32: 1e-3}  # of a vector's length: rounding leaves 1e-6
ROUGH_TOLERANCE = 0.1  # for weights of fewer bits


@torch.no_grad()
@float32_products("ieee")
def try_out(reasoner: "LatentReasoner") -> None:
    """Raises InputError if a thought cannot be fed to the model, or comes out otherwise than on each question alone."""
    name = type(reasoner.backbone).__name__
    last_token = reasoner.model.get_input_embeddings().num_embeddings - 1
    most = max(1, (reasoner.max_tokens or 100) - 1)  # beside the thought
    questions = [[min(token, last_token) for token in tokens[:most]] for tokens in ([3, 1, 4, 1, 5, 9, 2, 6], [5, 3])]
    try:
        rollout = Rollout(reasoner, questions)
        rollout.read()
        first, second = rollout.fork(), rollout.fork(rows=[1, 0])
        first.think()
        forked, together = (one.think().last_hidden_state[:, -1] for one in (second, rollout))
        alone = [after_a_thought(reasoner, tokens) for tokens in questions]
        pairs = {
            "in a batch": (together, torch.cat([state for state, _ in alone])),
            "from a fork": (forked.flip(0), together),
            "in its logits": (reasoner.logits(together), torch.cat([logits for _, logits in alone])),
        }
        apart = {where: relative_difference(*pair) for where, pair in pairs.items()}
    except InputError:
        raise
    except Exception as problem:  # whatever the code of an architecture raises where it was not made for this
        raise InputError(f"thoughts cannot be fed to {name} ({one_line(problem)[:200]})") from problem
    most_apart = TOLERANCE.get(reasoner.model.dtype, ROUGH_TOLERANCE)
    for where, distance in apart.items():
        if distance > most_apart:  # never where a state is not finite: extraction says that
            raise InputError(
                f"thoughts cannot be fed to {name}: {where} a state is {distance:.1%} of its length from what the "
                "model makes of the question alone"
            )


def after_a_thought(reasoner: "LatentReasoner", tokens: list[int]) -> tuple[Tensor, Tensor]:
    """The last hidden state and the logits after one question and one thought, each (1, …): no cache, no mask."""
    ids = torch.tensor([tokens], device=reasoner.model.device)
    asked = reasoner.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    if len(asked.hidden_states) != reasoner.n_layers + 1:
        raise InputError(
            f"{type(reasoner.backbone).__name__} gives {len(asked.hidden_states) - 1} hidden states for "
            f"{reasoner.n_layers} layers"
        )
    thought = reasoner.feed_back(asked.hidden_states[-1][:, -1:].to(reasoner.model.device))
    inputs = torch.cat([reasoner.model.get_input_embeddings()(ids).to(thought), thought], dim=1)
    thought_of = reasoner.model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
    return thought_of.hidden_states[-1][:, -1], thought_of.logits[:, -1]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest distance of two rows, over the wanted one's length."""
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
