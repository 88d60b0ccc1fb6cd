"""Questions from a data set that has a name, from one of the hub, or from a file.

A file may be .jsonl, .json, .parquet, .csv or .txt (a line `question||<<steps>> #### answer`, as GSM8k-Aug is
published). Files are read a record at a time, and every text is held once.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from thought_saes.activations.published import PUBLISHED_SETS, as_published, default_split, published_set
from thought_saes.common.errors import InputError, one_line
from thought_saes.common.files import read_json_lines, text_lines

RESERVED = ("id", "question", "answer", "split")  # the columns of examples.jsonl that are ours


def read_questions(
    dataset: str,
    split: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
    subset: str | None = None,
) -> list[dict[str, Any]]:
    """The data set's rows as {id, question, answer, …}, in order. Raises InputError if it cannot be read.

    `dataset` is a key of PUBLISHED_SETS, a hub data set or a file. Other columns that hold texts, numbers, truth
    values or lists of these follow. Without a column's name it is that of the published set, else 'question' or
    'answer'.
    """
    if not dataset.strip():
        raise InputError(f"--dataset is empty: it takes a file, a hub data set, or {', '.join(PUBLISHED_SETS)}")
    path, published = Path(dataset), published_set(dataset)
    columns = (
        question_column or (published.question_column if published else "question"),
        answer_column or (published.answer_column if published else "answer"),
    )
    if path.suffix in READERS:
        if not path.is_file():
            raise InputError(f"no file {path}")
        records = READERS[path.suffix](path)
        if question_column is None and answer_column is None:
            records = map(as_published, records)
    else:
        if path.suffix and path.is_file():
            raise InputError(f"{path} is not a {', '.join([*READERS][:-1])} or {[*READERS][-1]} file")
        records = read_hub(
            published.hub_id if published else dataset,
            subset or (published.subset if published else None),
            split or default_split(dataset),
        )
    examples: list[dict[str, Any]] = []
    has_answers, there = False, ""
    for row, record in enumerate(records):
        if row == limit:
            break
        examples.append(example_of(record, row, dataset, *columns))
        has_answers = has_answers or columns[1] in record
        if row == 0:
            there = ", ".join(map(str, record)) or "none"
    if not examples:
        raise InputError(f"the data set {dataset} is empty")
    if not has_answers:
        raise InputError(f"{dataset} has no column '{columns[1]}'; it has {there}")
    return examples


def example_of(
    record: dict[str, Any], row: int, dataset: str, question_column: str, answer_column: str
) -> dict[str, Any]:
    """Row `row` of `examples.jsonl`, but for its split. Raises InputError if the record has no question."""
    if question_column not in record and row == 0:
        there = ", ".join(map(str, record)) or "none"
        raise InputError(f"{dataset} has no column '{question_column}'; it has {there}")
    question, answer = record.get(question_column), record.get(answer_column)
    if not isinstance(question, str):
        raise InputError(f"row {row} of {dataset} has no text in '{question_column}'")
    absent = answer is None or (isinstance(answer, float) and math.isnan(answer))
    others = {
        str(key): None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
        if key not in (question_column, answer_column, *RESERVED) and is_plain(value)
    }
    example = {"id": row, "question": question, "answer": None if absent else str(answer), **others}
    try:
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:  # half of a surrogate pair, which JSON can write
        raise InputError(f"row {row} of {dataset} is no valid Unicode ({problem.reason})") from problem
    return example


def is_plain(value: Any, depth: int = 4) -> bool:
    """Whether `value` is a text, a number, a truth value, None, or a list of such."""
    if isinstance(value, list):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, str | bool | int | float)


def read_hub(dataset: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a hub data set. Raises InputError if it cannot be loaded."""
    try:
        table = datasets.load_dataset(dataset, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as problem:
        raise InputError(f"the data set {dataset} cannot be loaded ({one_line(problem)[:200]})") from problem
    yield from table


def read_json_list(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON list. Raises InputError if it is none."""
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} cannot be read as json ({one_line(problem)[:200]})") from problem
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of records")
    yield from rows


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, as they stand in it. Raises InputError if it is damaged."""
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (ValueError, OSError, pyarrow.ArrowException) as problem:
        if getattr(problem, "errno", None) is not None:  # it may not be read, say
            raise
        raise InputError(f"{path} cannot be read as parquet ({one_line(problem)[:200]})") from problem


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """The rows below a header. Raises InputError if one has more or fewer fields."""
    with open(path, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(text_lines(path, lines), strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise InputError(f"line {rows.line_num} of {path} has more or fewer fields than the header")
                yield row
        except csv.Error as problem:
            raise InputError(f"line {rows.line_num} of {path} is no CSV ({problem})") from problem


def read_marked_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The questions of lines `question||<<steps>> #### answer`. Raises InputError with the number of another line."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(text_lines(path, lines), start=1):
            if line.strip():
                question, mark, answer = line.strip().partition("||")
                if not mark:
                    raise InputError(f"line {number} of {path} is not of the form 'question||<<steps>> #### answer'")
                yield {"question": question, "answer": answer}


READERS = {
    ".jsonl": read_json_lines,
    ".json": read_json_list,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".txt": read_marked_lines,
}
