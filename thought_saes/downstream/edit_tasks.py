"""Edits of one cell that concern some questions of a batch each, run together from one shared prefix."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cell import Cell
from thought_saes.downstream.substitution import Batch, Own, force, rows_together, settle, think_to_the_end
from thought_saes.models.numbers import NUMBER, Span, last_number, same_answer
from thought_saes.models.reasoner import Edit, LatentReasoner

UNKNOWN = -1  # a token that cannot be told
N_TOKENS = 2  # whose probability is wanted: of the counterfactual answer and of the original one


class Task(NamedTuple):
    """An edit of some questions, and the tokens whose probability at the number is wanted."""

    rows: np.ndarray  # (n,) places in the batch
    edit: Callable[[Tensor], Tensor]  # their states (n, input_dim), on the CPU, to the same
    tokens: np.ndarray  # (n, N_TOKENS)


class Outcome(NamedTuple):
    """What came of a task: arrays of one value a question, NaN where there is none."""

    number: np.ndarray  # that is answered
    agreement: np.ndarray  # 1 where the answer is the unmodified model's
    correct: np.ndarray  # 1 or 0
    kl: np.ndarray  # KL(unmodified || edited) at the number's first token, nats
    log_probability_change: np.ndarray  # of the unmodified answer's number
    length: np.ndarray  # of what was added to the state
    probabilities: np.ndarray  # (n, N_TOKENS) of the task's tokens, before the number's first

    def take(self, places: np.ndarray) -> "Outcome":
        """Those of some of its questions."""
        return Outcome(*(values[places] for values in self))

    @classmethod
    def together(cls, parts: Sequence["Outcome"]) -> "Outcome":
        """The questions of several batches, one after the other."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def groups(tasks: Sequence[Task], most: int) -> Iterator[list[int]]:
    """The tasks' places, so many together as have at most `most` questions."""
    group: list[int] = []
    n_rows = 0
    for place, task in enumerate(tasks):
        if group and n_rows + len(task.rows) > most:
            yield group
            group, n_rows = [], 0
        group.append(place)
        n_rows += len(task.rows)
    if group:
        yield group


@torch.no_grad()
def run_tasks(
    reasoner: LatentReasoner, batch: Batch, own: Own, cell: Cell, tasks: Sequence[Task], max_new_tokens: int
) -> list[Outcome]:
    """The outcome of each task, from `own.start`, which stands before the cell's position."""
    outcomes: list[Outcome] = []
    for places in groups(tasks, rows_together(reasoner, batch, max_new_tokens)):
        some = [tasks[place] for place in places]
        rows = [int(row) for task in some for row in task.rows]
        bounds = np.cumsum([len(task.rows) for task in some])[:-1].tolist()
        if not rows:
            outcomes += [nothing() for _ in some]
            continue
        lengths = list[Tensor]()

        def change(state: Tensor, some: list[Task] = some, lengths: list[Tensor] = lengths) -> Tensor:
            before = state.cpu()
            parts = before.split([len(task.rows) for task in some])
            after = torch.cat([task.edit(part) if len(part) else part for task, part in zip(some, parts, strict=True)])
            lengths.append((after - before).norm(dim=1))
            return after

        rollout = own.start.fork([Edit(cell.position, cell.layer, change)], rows=rows)
        think_to_the_end(rollout)
        answers = [own.answers.tokens[row] for row in rows]
        forced = force(reasoner, rollout.fork(), answers, [own.spans[row] for row in rows])
        said, changed = settle(reasoner, rollout, answers, forced.said, max_new_tokens)
        base, edited = own.log_probabilities[rows].double(), forced.log_probabilities.double()
        texts = {place: reasoner.decode(said[place]) for place in changed}
        numbers, agreement = list[float | None](), list[bool]()
        for place, row in enumerate(rows):
            own_number, own_text = own.answers.numbers[row], own.answers.texts[row]
            text = texts.get(place, own_text)
            numbers.append(last_number(text) if place in texts else own_number)
            agreement.append(same_answer(numbers[-1], own_number, text, own_text))
        gold = [batch.gold[row] for row in rows]
        tokens = torch.from_numpy(np.concatenate([task.tokens for task in some]))
        probabilities = edited.exp().gather(1, tokens.clamp(min=0)).masked_fill(tokens == UNKNOWN, torch.nan)
        whole = Outcome(
            np.array([np.nan if number is None else number for number in numbers]),
            np.array(agreement, float),
            np.array([np.nan if g is None else n == g for n, g in zip(numbers, gold, strict=True)], float),
            (base.exp() * (base - edited)).sum(-1).numpy(),
            (forced.number - own.number[rows]).double().numpy(),
            torch.cat(lengths).double().numpy(),
            probabilities.numpy(),
        )
        outcomes += [Outcome(*parts) for parts in zip(*(np.split(values, bounds) for values in whole), strict=True)]
    return outcomes


def nothing() -> Outcome:
    """The outcome of a task that no question of the batch has."""
    none = np.zeros(0)
    return Outcome(none, none, none, none, none, none, np.zeros((0, N_TOKENS)))


def number_token(reasoner: LatentReasoner, answer: list[int], span: Span | None, number: float) -> int:
    """The token with which the answer would begin its number if that were `number`; UNKNOWN if it cannot be told.

    It cannot where the text's tokens are not those of the answer, or where both numbers begin with the same token.
    """
    if span is None:
        return UNKNOWN
    text = reasoner.decode(answer)
    found = list(NUMBER.finditer(text))
    if not found:
        return UNKNOWN
    other = text[: found[-1].start()] + f"{number:.12g}" + text[found[-1].end() :]
    try:
        ours, theirs = (reasoner.tokenizer(one, add_special_tokens=False)["input_ids"] for one in (text, other))
    except Exception:  # tokenizers raises nothing more precise where a word is none of its own
        return UNKNOWN
    same = ours[: span.first + 1] == answer[: span.first + 1] and theirs[: span.first] == answer[: span.first]
    if not same or len(theirs) <= span.first or theirs[span.first] == answer[span.first]:
        return UNKNOWN
    return int(theirs[span.first])
