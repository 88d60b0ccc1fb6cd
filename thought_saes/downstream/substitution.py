"""Substitution in the loop: answer questions with something else in a thought's place, and compare the answers.

A layer is edited at one position (regime 'cell'), or at every position that the activations hold (regime 'layer':
errors compound, as a user of the SAE would have it). The keys and values of the question, and of the positions before
the first edited one, are computed once a batch and shared. The conditions of a layer run as one batch.

The unmodified answer is fed to the edited model in one pass; where the model would say each of its tokens itself, its
greedy answer is the same. Only the other questions are answered anew.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.downstream.substitutes import Condition, Questions, Substitutes
from thought_saes.models.numbers import Span, last_number, number_span, same_answer
from thought_saes.models.reasoner import Edit, LatentReasoner, Rollout

REGIMES = ("cell", "layer")
FORCED_ROUNDS = 2  # answers that change again are then generated token by token
ROWS_TOGETHER = 1024  # questions x conditions that run as one batch, where their keys and values fit
CACHE_BYTES = 1_500_000_000  # of the keys and values of such a batch
LOGIT_BYTES = 200_000_000  # of the logits that are held at a time


class Unit(NamedTuple):
    """What shares a prefix: the conditions of some layers, edited at the same positions."""

    regime: str
    position: int | None  # of regime 'cell'
    positions: tuple[int, ...]  # all that are edited
    layers: tuple[int, ...]


class Batch(NamedTuple):
    """Some questions."""

    rows: list[int]  # in the data set
    token_ids: list[list[int]]
    gold: list[float | None]
    others: list[int]  # for each another question's row in the activations


class Answers(NamedTuple):
    """What the model says, for each question of a batch."""

    tokens: list[list[int]]  # the end-of-text token, where it comes, included
    texts: list[str]
    numbers: list[float | None]


class Scores(NamedTuple):
    """One condition: arrays of one value a question, NaN where there is none."""

    correct: np.ndarray  # 1 or 0
    agreement: np.ndarray  # 1 where the answer is the unmodified model's
    kl: np.ndarray  # KL(unmodified || edited) at the number's first token, nats
    log_probability_change: np.ndarray  # of the unmodified answer's number
    answered_anew: np.ndarray  # 1 where the answer was not the forced one
    error: np.ndarray  # |x - substitute|^2, the mean over the edited positions
    spread: np.ndarray  # |x - mean of the training rows|^2, likewise


class Own(NamedTuple):
    """The unmodified model on a batch, and what the edited ones start from."""

    start: Rollout  # before the first edited position
    answers: Answers
    spans: list[Span | None]  # the tokens of each answer that say its number
    log_probabilities: Tensor  # (batch, vocabulary), before the number's first token
    number: Tensor  # (batch,): log-probability of the number


def with_end(reasoner: LatentReasoner, tokens: list[int], max_new_tokens: int) -> list[int]:
    """An answer with the end-of-text token that ended it, if one did."""
    return [*tokens, reasoner.tokenizer.eos_token_id] if len(tokens) < max_new_tokens else tokens


def read_answers(reasoner: LatentReasoner, tokens: list[list[int]]) -> Answers:
    texts = [reasoner.decode(answer) for answer in tokens]
    return Answers(tokens, texts, [last_number(text) for text in texts])


def think_to_the_end(rollout: Rollout) -> None:
    while rollout.position < rollout.reasoner.n_thoughts:
        if rollout.position < 0:
            rollout.read()
        else:
            rollout.think()


def unmodified(reasoner: LatentReasoner, batch: Batch, first: int, max_new_tokens: int) -> Own:
    """The unmodified model's answers, from a rollout that is kept before position `first`."""
    start = Rollout(reasoner, batch.token_ids)
    for position in range(first):
        if position:
            start.think()
        else:
            start.read()
    thought = start.fork()
    think_to_the_end(thought)
    said = thought.fork().answer(max_new_tokens)
    answers = read_answers(reasoner, [with_end(reasoner, tokens, max_new_tokens) for tokens in said])
    spans = [number_span(tokens, reasoner.decode) for tokens in said]
    forced = force(reasoner, thought.fork(), answers.tokens, spans)
    return Own(start, answers, spans, forced.log_probabilities, forced.number)


class Forced(NamedTuple):
    """What a model says when it is fed an answer."""

    said: list[list[int]]  # the token it would say itself in the place of each of the answer's
    log_probabilities: Tensor  # (batch, vocabulary), before the first token of the number; NaN without a number
    number: Tensor  # (batch,): log-probability of the number's tokens


@torch.no_grad()
def force(reasoner: LatentReasoner, rollout: Rollout, answers: list[list[int]], spans: Sequence[Span | None]) -> Forced:
    """Feed each row its answer in one pass."""
    states = rollout.states_before(answers)  # (batch, longest, input_dim)
    vocabulary = reasoner.model.get_output_embeddings().weight.shape[0]
    at_a_time = rows_at_a_time(reasoner, states)
    said: list[list[int]] = []
    first = torch.full((len(answers), vocabulary), torch.nan)
    number = torch.full((len(answers),), torch.nan)
    for begin in range(0, len(answers), at_a_time):
        logits = reasoner.logits(states[begin : begin + at_a_time]).cpu()
        said += logits.argmax(-1).tolist()
        with_number = [(row, span) for row, span in enumerate(spans[begin : begin + len(logits)]) if span is not None]
        if not with_number:
            continue
        places = [(row, place) for row, span in with_number for place in range(span.first, span.end)]
        at_row, at_place = torch.tensor(places).T
        tokens = torch.tensor([answers[begin + row][place] for row, place in places])
        log_probabilities = torch.log_softmax(logits[at_row, at_place], -1)  # (n_places, vocabulary)
        rows = torch.tensor([begin + row for row, _ in with_number])
        lengths = torch.tensor([span.end - span.first for _, span in with_number])
        first[rows] = log_probabilities[lengths.cumsum(0) - lengths]
        number[rows] = 0.0
        number.index_add_(0, begin + at_row, log_probabilities.gather(1, tokens[:, None])[:, 0])
    said = [row[: len(answer)] for row, answer in zip(said, answers, strict=True)]
    return Forced(said, first, number)


def first_difference(said: Sequence[int], answer: Sequence[int]) -> int | None:
    """Where the model first says another token than it was fed."""
    return next((index for index, (one, other) in enumerate(zip(said, answer, strict=True)) if one != other), None)


def settle(
    reasoner: LatentReasoner,
    rollout: Rollout,
    forced: list[list[int]],
    said: list[list[int]],
    max_new_tokens: int,
) -> tuple[list[list[int]], list[int]]:
    """The greedy answers of a rollout that has been fed `forced` and would have `said`, and the rows that changed.

    Up to the first difference, and with the token said there, an answer is known. It is fed again with that token in
    it; one that changes again after some rounds is generated. The rollout is before the answer.
    """
    answers, said, end = list(forced), list(said), reasoner.tokenizer.eos_token_id
    changed = [row for row in range(len(answers)) if first_difference(said[row], forced[row]) is not None]
    open_rows, generate = changed, []
    for _ in range(FORCED_ROUNDS):
        feed = []
        for row in open_rows:
            place = first_difference(said[row], answers[row])
            if place is None:
                continue
            known, behind = [*answers[row][:place], said[row][place]], answers[row][place + 1 :]
            answers[row] = known if known[-1] == end else known + behind
            if known[-1] == end:
                continue
            if behind:
                feed.append(row)
            elif len(known) < max_new_tokens:
                generate.append(row)  # it goes on where the other ended
        if not feed:
            break
        states = rollout.fork(rows=feed).states_before([answers[row] for row in feed])
        for row, tokens in zip(feed, argmax_tokens(reasoner, states), strict=True):
            said[row] = tokens[: len(answers[row])]
        open_rows = feed
    else:
        generate += [row for row in open_rows if first_difference(said[row], answers[row]) is not None]
    if generate:
        fresh = rollout.fork(rows=generate).answer(max_new_tokens)
        for row, tokens in zip(generate, fresh, strict=True):
            answers[row] = with_end(reasoner, tokens, max_new_tokens)
    return answers, changed


@torch.no_grad()
def argmax_tokens(reasoner: LatentReasoner, states: Tensor) -> list[list[int]]:
    """The likeliest token after each of the last hidden states (batch, n, input_dim)."""
    at_a_time = rows_at_a_time(reasoner, states)
    return [
        row
        for begin in range(0, len(states), at_a_time)
        for row in reasoner.logits(states[begin : begin + at_a_time]).argmax(-1).tolist()
    ]


def rows_at_a_time(reasoner: LatentReasoner, states: Tensor) -> int:
    """How many rows of the states (batch, n, input_dim) have their logits in memory together."""
    vocabulary = reasoner.model.get_output_embeddings().weight.shape[0]
    return max(1, LOGIT_BYTES // (4 * vocabulary * states.shape[1]))


class Meter:
    """How far the substitutes of the chosen conditions are from the states, summed over the edited positions."""

    def __init__(self, n_conditions: int, n_questions: int) -> None:
        self.error = np.zeros((n_conditions, n_questions))
        self.spread = np.zeros((n_conditions, n_questions))
        self.n_positions = 0


def edit_of(
    substitutes: Substitutes, position: int, chosen: Sequence[Condition], questions: Questions, meter: Meter
) -> Edit:
    """The edit of one position when the chosen conditions run as one batch, each on all questions in its turn."""

    def substitute(state: Tensor) -> Tensor:
        parts = state.view(len(chosen), -1, state.shape[-1])
        made = torch.stack(
            [substitutes.apply(condition, part, questions) for condition, part in zip(chosen, parts, strict=True)]
        )
        mean = substitutes.apply(Condition("mean"), parts[0], questions)
        meter.error += (parts - made).double().square().sum(-1).cpu().numpy()
        meter.spread += (parts - mean).double().square().sum(-1).cpu().numpy()
        meter.n_positions += 1
        return made.view_as(state)

    return Edit(position, substitutes.cell.layer, substitute)


def rows_together(reasoner: LatentReasoner, batch: Batch, max_new_tokens: int) -> int:
    """How many rows of the batch, each once or more, run as one: so many that their keys and values fit."""
    n_tokens = max(map(len, batch.token_ids)) + reasoner.n_thoughts + max_new_tokens
    n_heads, width = reasoner.key_value_heads
    per_row = 2 * 4 * reasoner.n_layers * n_heads * width * n_tokens
    return min(ROWS_TOGETHER, CACHE_BYTES // per_row)


@torch.no_grad()
def run_conditions(
    reasoner: LatentReasoner,
    batch: Batch,
    own: Own,
    substitutes: dict[int, Substitutes],
    chosen: Sequence[Condition],
    max_new_tokens: int,
) -> list[Scores]:
    """The scores of the chosen conditions of one layer on a batch; `substitutes` by edited position."""
    scores: list[Scores] = []
    n = len(batch.rows)
    together = max(1, min(len(chosen), rows_together(reasoner, batch, max_new_tokens) // n))
    questions = {position: each.questions(batch.rows, batch.others) for position, each in substitutes.items()}
    for begin in range(0, len(chosen), together):
        group = chosen[begin : begin + together]
        meter = Meter(len(group), n)
        edits = [edit_of(each, position, group, questions[position], meter) for position, each in substitutes.items()]
        rollout = own.start.fork(edits, rows=list(range(n)) * len(group))
        think_to_the_end(rollout)
        forced = force(reasoner, rollout.fork(), own.answers.tokens * len(group), own.spans * len(group))
        answers, changed = settle(reasoner, rollout, own.answers.tokens * len(group), forced.said, max_new_tokens)
        scores += score_group(reasoner, batch, own, len(group), forced, answers, changed, meter)
    return scores


def score_group(
    reasoner: LatentReasoner,
    batch: Batch,
    own: Own,
    n_conditions: int,
    forced: Forced,
    answers: list[list[int]],
    changed: list[int],
    meter: Meter,
) -> list[Scores]:
    """Compare conditions that ran as one batch with the unmodified model."""
    n = len(batch.rows)
    base = own.log_probabilities.double().repeat(n_conditions, 1)
    kl = (base.exp() * (base - forced.log_probabilities.double())).sum(-1).view(n_conditions, n).numpy()
    change = (forced.number - own.number.repeat(n_conditions)).view(n_conditions, n).double().numpy()
    anew = np.zeros((n_conditions, n))
    anew.flat[changed] = 1
    correct, agreement = np.empty((n_conditions, n)), np.empty((n_conditions, n))
    for index, tokens in enumerate(answers):
        condition, row = divmod(index, n)
        if anew[condition, row]:
            text = reasoner.decode(tokens)
            number = last_number(text)
        else:
            text, number = own.answers.texts[row], own.answers.numbers[row]
        agreement[condition, row] = same_answer(number, own.answers.numbers[row], text, own.answers.texts[row])
        gold = batch.gold[row]
        correct[condition, row] = np.nan if gold is None else number == gold
    return [
        Scores(*rows)
        for rows in zip(
            correct,
            agreement,
            kl,
            change,
            anew,
            meter.error / max(1, meter.n_positions),
            meter.spread / max(1, meter.n_positions),
            strict=True,
        )
    ]


def own_scores(batch: Batch, own: Own) -> Scores:
    """The unmodified model under the names of a condition."""
    zeros = np.zeros(len(batch.rows))
    with_number = np.array([np.nan if span is None else 0.0 for span in own.spans])
    correct = np.array(
        [
            np.nan if gold is None else float(number == gold)
            for number, gold in zip(own.answers.numbers, batch.gold, strict=True)
        ]
    )
    return Scores(correct, zeros + 1, with_number, with_number, zeros, zeros, zeros)
