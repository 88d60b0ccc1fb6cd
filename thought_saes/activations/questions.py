"""Questions from a hub data set, or from a .jsonl, .json or .parquet file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from thought_saes.common.errors import InputError, one_line

GSM8K = "openai/gsm8k"


def read_questions(
    dataset: str, split: str, question_column: str, answer_column: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """The data set's rows as {id, question, answer}, in order. Raises InputError if it cannot be read."""
    path = Path(dataset)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise InputError(f"no file {path}")
        table = read_table(path)
    else:
        if path.suffix and path.is_file():
            raise InputError(f"{path} is not a .jsonl, .json or .parquet file")
        name = "main" if dataset == GSM8K else None
        try:
            table = datasets.load_dataset(dataset, name, split=split).to_pandas()
        except (OSError, ValueError) as problem:
            reason = one_line(problem)[:200]
            raise InputError(f"the data set {dataset} cannot be loaded ({reason})") from problem
    if not len(table):
        raise InputError(f"the data set {dataset} is empty")
    for column in (question_column, answer_column):
        if column not in table.columns:
            raise InputError(
                f"{dataset} has no column '{column}'; it has {', '.join(map(str, table.columns)) or 'none'}"
            )
    table = table.head(limit) if limit else table
    questions, answers = table[question_column], table[answer_column]
    examples = []
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if not isinstance(question, str):
            raise InputError(f"row {row} of {dataset} has no text in '{question_column}'")
        answer = None if pd.isna(answer) is True else str(answer)
        try:
            f"{question}{answer}".encode()
        except UnicodeEncodeError as problem:  # half of a surrogate pair, which JSON can write
            raise InputError(f"row {row} of {dataset} is no valid Unicode ({problem.reason})") from problem
        examples.append({"id": row, "question": question, "answer": answer})
    return examples


def read_table(path: Path) -> pd.DataFrame:
    """A local data set, its values as they stand in the file. Raises InputError if it is damaged."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(read_lines(path, text))
    except ValueError as problem:  # of json, Unicode and parquet alike
        raise InputError(f"{path} cannot be read as {path.suffix[1:]} ({one_line(problem)[:200]})") from problem
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of records")
    return pd.DataFrame(rows, dtype=object)


def read_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The record on each line of `text`. Raises InputError with the number of a line that holds none."""
    for number, line in enumerate(text.split("\n"), start=1):  # JSON strings may hold what splitlines splits at
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as problem:
                raise InputError(f"line {number} of {path} is not readable JSON ({problem})") from problem
            if not isinstance(record, dict):
                raise InputError(f"line {number} of {path} is no JSON object")
            yield record
