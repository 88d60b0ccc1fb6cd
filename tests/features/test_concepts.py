"""The concepts of worked answers and of columns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.features import write_cache
from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError
from thought_saes.features.concepts import facts, final_answer, find_concepts, worked_steps


def test_the_steps_of_plain_lines_and_of_marks_are_read_alike() -> None:
    assert worked_steps("6 + 3 = 9\n9 * 2 = 18\n#### 18") == [("+", "9"), ("*", "18")]
    marked = "He pays 48/2 = $<<48/2=24>>24.\nSo 1,000-24.50=<<1,000-24.50=975.50>>975.50 are left.\n#### 975.50"
    assert worked_steps(marked) == [("/", "24"), ("-", "975.5")]


def test_a_negative_number_is_no_operation_and_two_signs_are_mixed() -> None:
    assert worked_steps("<<-3+5=2>><<2+3*4=14>><<7=7>>") == [("+", "2"), ("mixed", "14"), ("none", "7")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("so\n#### 1,200", "1200"), ("18", "18"), ("about ten", None), ("#### $5", "$5"), ("", None)],
)
def test_the_answer_follows_the_mark_or_is_the_whole_text(answer: str, expected: str | None) -> None:
    assert final_answer(answer) == expected


def test_columns_of_the_data_set_come_before_what_is_parsed() -> None:
    example = {"answer": "4 * 2 = 8\n#### 8", "start": 4, "operations": ["double"], "values": [8], "level": "easy"}
    assert list(facts(example, ["level"])) == [
        ("start", "4"),
        ("value after step 1", "8"),
        ("operation of step 1", "double"),
        ("answer", "8"),
        ("level", "easy"),
    ]


def examples_of(colours: list[str]) -> list[dict[str, Any]]:
    return [{"question": f"q{row}", "answer": "none", "colour": colour} for row, colour in enumerate(colours)]


def test_rare_concepts_are_left_out_and_counted(tmp_path: Path) -> None:
    colours = ["red", "blue"] * 60 + ["green"] * 5
    cache = ActivationCache(write_cache(tmp_path, np.ones((125, 2)), examples_of(colours)))
    concepts = find_concepts(cache.examples(), cache, ["colour"])
    assert concepts.names == ["colour = blue", "colour = red"]
    assert concepts.left_out == 1
    assert concepts.labels.concepts.toarray()[:, 1].tolist() == [float(colour == "red") for colour in colours]
    assert concepts.labels.defined.toarray().ravel().tolist() == [1.0] * 125


def test_a_concept_is_defined_where_its_family_has_a_value(tmp_path: Path) -> None:
    examples = [{"question": "q", "answer": f"1 + {row % 2} = {1 + row % 2}" if row % 3 else "?"} for row in range(180)]
    cache = ActivationCache(write_cache(tmp_path, np.ones((180, 2)), examples))
    concepts = find_concepts(examples, cache)
    assert concepts.names == ["value after step 1 = 1", "value after step 1 = 2"]
    assert concepts.labels.defined.toarray().ravel().tolist() == [float(row % 3 > 0) for row in range(180)]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    examples = examples_of(["red"] * 30)
    cache = ActivationCache(write_cache(tmp_path, np.ones((30, 2)), examples))
    with pytest.raises(InputError, match="no column 'size'; they have answer, colour, question"):
        find_concepts(examples, cache, ["size"])
    with pytest.raises(InputError, match="no concept on 20 training rows"):
        find_concepts(examples, cache)
    (tmp_path / "examples.jsonl").write_text(json.dumps({"id": 0} | examples[0]) + "\n")
    with pytest.raises(InputError, match="holds 1 questions, the activations 30 rows"):
        cache.examples()
