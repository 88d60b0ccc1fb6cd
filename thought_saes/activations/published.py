"""Question sets that have a name, and the forms in which their authors publish them as files."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class PublishedSet(NamedTuple):
    """Where a named question set lies on the hub, and what its columns are called there."""

    hub_id: str
    subset: str | None  # the hub's 'config'
    split: str  # the one taken when none is asked for
    question_column: str
    answer_column: str


PUBLISHED_SETS = {
    "gsm8k": PublishedSet("openai/gsm8k", "main", "train", "question", "answer"),
    "svamp": PublishedSet("ChilleD/SVAMP", None, "train", "question_concat", "Answer"),
    "gsm-hard": PublishedSet("reasoning-machines/gsm-hard", None, "train", "input", "target"),
    "multiarith": PublishedSet("ChilleD/MultiArith", None, "test", "question", "final_ans"),
    "gsm8k-aug": PublishedSet("zen-E/GSM8k-Aug", None, "train", "question", "answer"),
}
BY_HUB_ID = {published.hub_id: published for published in PUBLISHED_SETS.values()}


def published_set(dataset: str) -> PublishedSet | None:
    """The published set of this name or hub id."""
    return PUBLISHED_SETS.get(dataset) or BY_HUB_ID.get(dataset)


def default_split(dataset: str) -> str:
    """The split that is taken when none is asked for."""
    published = published_set(dataset)
    return published.split if published else "train"


def as_published(record: Mapping[str, Any]) -> dict[str, Any]:
    """A file's record with `question` and `answer`, if it has the form of a published set; else as it is.

    SVAMP tells a question in `Body` and `Question`; GSM-Hard and MultiArith call the two `input` and `target`.
    """
    if "question" in record or "answer" in record:
        return dict(record)
    if {"Body", "Question", "Answer"} <= record.keys():
        body, question = str(record["Body"]).strip(), str(record["Question"]).strip()
        # As on the hub: a sentence ends before the question begins.
        joined = f"{body} {question}" if re.search(r"[.,;:?!]$", body) else f"{body}. {question}"
        rest = {key: value for key, value in record.items() if key not in ("Body", "Question", "Answer")}
        return {"question": joined, "answer": record["Answer"], **rest}
    if {"input", "target"} <= record.keys():
        rest = {key: value for key, value in record.items() if key not in ("input", "target")}
        return {"question": record["input"], "answer": record["target"], **rest}
    return dict(record)
