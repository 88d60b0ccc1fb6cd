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

TOLERANCE = {torch.float32: 1e-3}  # of a vector's length: there rounding leaves 3e-6
ROUGH_TOLERANCE = 0.1  # for weights of fewer bits: rounding leaves 2e-2 of 16 random layers of width 2,048
QUESTIONS = [3, 1, 4, 1, 5, 9, 2, 6], [5, 3]  # tokens that every model has: one question is padded
SAID = [5, 8, 9]


@torch.no_grad()
@float32_products("ieee")
def try_out(reasoner: "LatentReasoner") -> None:
    """Raises InputError if thoughts cannot be fed to the model, or come out otherwise than on each question alone."""
    name = type(reasoner.backbone).__name__
    last_token = reasoner.model.get_input_embeddings().num_embeddings - 1
    most = max(1, (reasoner.max_tokens or 100) - 1 - len(SAID))  # beside the thought and what is said after it
    questions = [[min(token, last_token) for token in tokens[:most]] for tokens in QUESTIONS]
    said = torch.tensor([[min(token, last_token) for token in SAID]])
    try:
        rollout = Rollout(reasoner, questions)
        rollout.read()
        first, second = rollout.fork(), rollout.fork(rows=[1, 0])
        first.think()
        forked, together = (states_of(one, said) for one in (second, rollout))
        alone = [states_alone(reasoner, tokens, said) for tokens in questions]
        states, logits = (torch.cat(one) for one in zip(*alone, strict=True))
        pairs = {
            "in a batch": (together[:, :1], states[:, :1]),
            "in several tokens at once": (together[:, 1:], states[:, 1:]),
            "from a fork": (forked.flip(0), together),
            "in its logits": (reasoner.logits(together), logits),
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


def states_of(rollout: Rollout, said: Tensor) -> Tensor:
    """The last hidden states of a thought and of the tokens said (1, n) in one pass after it, (batch, 1 + n, …)."""
    thought = rollout.think().last_hidden_state
    return torch.cat([thought, rollout.say(said.expand(len(thought), -1)).last_hidden_state], dim=1)


def states_alone(reasoner: "LatentReasoner", tokens: list[int], said: Tensor) -> tuple[Tensor, Tensor]:
    """The same of one question, and their logits, each (1, 1 + n, …): all in one go, no cache, no mask."""
    embed, device = reasoner.model.get_input_embeddings(), reasoner.model.device
    ids = torch.tensor([tokens], device=device)
    asked = reasoner.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    name, n_states = type(reasoner.backbone).__name__, len(asked.hidden_states)
    if n_states != reasoner.n_layers + 1:
        raise InputError(f"{name} gives {n_states - 1} hidden states for {reasoner.n_layers} layers")
    if others := {state.shape[-1] for state in asked.hidden_states} - {reasoner.input_dim}:
        raise InputError(
            f"{name} gives hidden states of {reasoner.input_dim} and of {min(others)} values: its layers have no "
            "residual stream in common"
        )
    thought = reasoner.feed_back(asked.hidden_states[-1][:, -1:].to(device))
    inputs = torch.cat([embed(ids).to(thought), thought, embed(said.to(device)).to(thought)], dim=1)
    whole = reasoner.model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
    return whole.hidden_states[-1][:, len(tokens) :], whole.logits[:, len(tokens) :]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest distance of two rows, over the wanted one's length."""
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
