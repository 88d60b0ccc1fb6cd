"""What a model answers to each row of a folder of activations, and how sure it is: `answers.jsonl`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from thought_saes.activations.questions import read_jsonl
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_bytes
from thought_saes.downstream.substitution import Batch, unmodified
from thought_saes.models.numbers import gold_number
from thought_saes.models.reasoner import LatentReasoner

ANSWERS_FILE = "answers.jsonl"
KEYS = ("id", "text", "number", "gold", "correct", "entropy", "margin", "log_probability")


def answer_questions(
    reasoner: LatentReasoner,
    examples: Sequence[dict[str, Any]],
    batch_size: int,
    max_new_tokens: int = 32,
    on_progress: Callable[[int], object] = lambda n: None,
) -> list[dict[str, Any]]:
    """One record a question, in their order, under KEYS.

    `entropy` (nats) and `margin` (of the two likeliest tokens' probabilities) are taken before the number's first
    token, `log_probability` is the number's; None where the model says no number.
    """
    token_ids = [reasoner.tokenize(example["question"]) for example in examples]
    order = sorted(range(len(examples)), key=lambda row: (-len(token_ids[row]), row))
    records: dict[int, dict[str, Any]] = {}
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        gold = [gold_number(examples[row]["answer"]) for row in rows]
        own = unmodified(reasoner, Batch(rows, [token_ids[row] for row in rows], gold, rows), 0, max_new_tokens)
        probabilities = own.log_probabilities.double().exp()
        entropies = torch.special.entr(probabilities).sum(-1)
        two = probabilities.topk(2, dim=-1).values
        for place, row in enumerate(rows):
            said = own.spans[place] is not None
            number = own.answers.numbers[place]
            records[row] = {
                "id": examples[row]["id"],
                "text": own.answers.texts[place],
                "number": number,
                "gold": gold[place],
                "correct": None if gold[place] is None else number == gold[place],
                "entropy": float(entropies[place]) if said else None,
                "margin": float(two[place, 0] - two[place, 1]) if said else None,
                "log_probability": float(own.number[place]) if said else None,
            }
        on_progress(len(rows))
    return [records[row] for row in range(len(examples))]


def write_answers(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_bytes(folder / ANSWERS_FILE, "".join(lines).encode())


def read_answers(folder: Path, n_rows: int) -> list[dict[str, Any]]:
    """The folder's answers. Raises InputError if they are missing, or not of its rows."""
    path = folder / ANSWERS_FILE
    if not path.exists():
        raise InputError(f"{path} is missing: give --model, and the questions are answered first")
    records = list(read_jsonl(path))
    if len(records) != n_rows or any(key not in record for record in records for key in KEYS):
        raise InputError(f"{path} does not hold the answers of the {n_rows:,} rows of {folder}: remove it")
    return records
