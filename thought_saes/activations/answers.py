"""`answers.jsonl` beside the activations: what the model says to every question, in data-set order.

While the extraction runs, which takes the longest questions first, answers are gathered in a hidden file; it becomes
`answers.jsonl` when all are there.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thought_saes.activations.formats import AnswerLine
from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import read_json_lines, write_lines
from thought_saes.common.schema import check
from thought_saes.models.answers import Answer
from thought_saes.models.numbers import gold_number

ANSWERS_FILE = "answers.jsonl"


def plain_number(number: float | None) -> float | int | None:
    """12.0 as 12, where that loses nothing."""
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**53 else number


def answer_record(row: int, answer: Answer, gold_text: str | None) -> dict[str, Any]:
    """A line of answers.jsonl. `correct` is null where the data set has no number to compare with."""
    gold = gold_number(gold_text)
    return {
        "id": row,
        "text": answer.text,
        "number": plain_number(answer.number),
        "gold": plain_number(gold),
        "correct": None if gold is None else answer.number == gold,
        "entropy": answer.entropy,
        "margin": answer.margin,
        "log_probability": answer.log_probability,
    }


def read_answers(folder: Path, n_rows: int) -> list[AnswerLine]:
    """The answers of the folder's `n_rows` rows. Raises InputError if they are missing, or not of these rows."""
    path = folder / ANSWERS_FILE
    if not path.exists():
        raise InputError(f"{path} is missing: extract_activations.py --answers writes it")
    answers = [
        check(line, AnswerLine, f"line {at} of {path}") for at, line in enumerate(read_json_lines(path), start=1)
    ]
    if [answer.id for answer in answers] != list(range(n_rows)):
        raise DamagedFile(f"{path} does not hold an answer for each of the {n_rows:,} rows, in their order")
    return answers


class AnswerWriter:
    """The answers being gathered: started, or taken up where an earlier run left them.

    `order` holds the rows in the order of extraction, `n_activations` how many of their activations are there.
    """

    def __init__(self, folder: Path, order: Sequence[int], n_activations: int) -> None:
        self.path, self.partial, self.order = folder / ANSWERS_FILE, folder / ".answers.partial", order
        self.rows_done = len(order) if self.path.exists() else self._whole_lines(n_activations)

    def _whole_lines(self, n_at_most: int) -> int:
        """How many answers an earlier run has left, in their order; what follows them is cut off."""
        done = end = 0
        if self.partial.exists():
            with open(self.partial, "rb") as lines:
                for line, row in zip(lines, self.order[:n_at_most], strict=False):
                    if not line.endswith(b"\n") or not line.startswith(b'{"id": %d,' % row):
                        break
                    done, end = done + 1, end + len(line)
            os.truncate(self.partial, end)
        return done

    def write(self, rows: Sequence[int], answers: Sequence[Answer], examples: Sequence[dict[str, Any]]) -> None:
        with open(self.partial, "ab") as file:
            for row, answer in zip(rows, answers, strict=True):
                record = answer_record(row, answer, examples[row]["answer"])
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows_done += len(rows)

    def finish(self) -> None:
        """Put the answers in data-set order, if all are there."""
        if self.path.exists():
            return
        if self.rows_done != len(self.order):
            raise InputError(f"{self.partial} holds {self.rows_done:,} of {len(self.order):,} answers")
        starts = {}
        with open(self.partial, "rb") as lines:
            at = 0
            for row, line in zip(self.order, lines, strict=True):
                starts[row] = at
                at += len(line)

        with open(self.partial, "rb") as file:

            def line_of(row: int) -> str:
                file.seek(starts[row])
                return file.readline().decode().removesuffix("\n")

            write_lines(self.path, (line_of(row) for row in sorted(self.order)))
        self.partial.unlink()
