"""What a model answers, and how sure it is: the records of `answers.jsonl`."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from thought_saes.models.numbers import last_number, number_span
from thought_saes.models.rollout import Rollout


class Answer(NamedTuple):
    """A greedy answer. Natural logarithms; None where there is no such number."""

    text: str
    number: float | None  # the last of the text
    entropy: float | None  # of the next token, before the number's first one, nats
    margin: float | None  # probability of the likeliest token there, less that of the second
    log_probability: float | None  # of the number's tokens


class Confidence(NamedTuple):
    """Of the token chosen at one step, for every row."""

    log_probability: Tensor
    entropy: Tensor
    margin: Tensor


def confidence(logits: Tensor) -> Confidence:
    """From `logits` (batch, vocabulary), float32: (batch,) each, in float64 on the CPU."""
    log_probabilities = logits.log_softmax(-1)
    best = log_probabilities.topk(2, dim=-1).values
    return Confidence(
        best[:, 0].double().cpu(),
        -(log_probabilities.exp() * log_probabilities).nansum(-1).double().cpu(),
        (best[:, 0].exp() - best[:, 1].exp()).double().cpu(),
    )


def answer_all(rollout: Rollout, max_new_tokens: int) -> list[Answer]:
    """The answers of a rollout that has thought, each as it would be alone."""
    steps: list[Confidence] = []
    said = rollout.answer(max_new_tokens, watch=lambda logits: steps.append(confidence(logits)))
    return [answer_of(rollout, tokens, row, steps) for row, tokens in enumerate(said)]


def answer_of(rollout: Rollout, tokens: Sequence[int], row: int, steps: Sequence[Confidence]) -> Answer:
    text, span = rollout.reasoner.decode(tokens), number_span(tokens, rollout.reasoner.decode)
    at = steps[span.first] if span else None
    of_number = [float(step.log_probability[row]) for step in steps[span.first : span.end]] if span else None
    return Answer(
        text=text,
        number=last_number(text),
        entropy=float(at.entropy[row]) if at else None,
        margin=float(at.margin[row]) if at else None,
        log_probability=None if of_number is None else sum(of_number),
    )
