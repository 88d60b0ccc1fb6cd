"""Data sets by name, from the hub, and in the forms in which they are published as files."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from tests.helpers.paths import ROOT
from thought_saes.activations.questions import read_questions
from thought_saes.common.errors import InputError

DATA = ROOT / "tests/data"
NAMES = ["gsm8k", "svamp", "gsm-hard", "multiarith", "gsm8k-aug"]


def test_svamp_as_published_joins_body_and_question() -> None:
    examples = read_questions(str(DATA / "svamp/SVAMP_50.json"))
    assert len(examples) == 50
    # The body has no full stop of its own.
    assert examples[0] == {
        "id": 0,
        "question": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. "
        "How much do you have to pay to buy each pack?",
        "answer": "51.0",
        "ID": "chal-1",
        "Equation": "( 76.0 - 25.0 )",
        "Type": "Subtraction",
    }
    assert all(".." not in example["question"] for example in examples)


def test_gsm8k_as_published_is_read_in_order() -> None:
    examples = read_questions(str(DATA / "gsm8k/test_50.jsonl"), limit=3)
    assert [example["answer"].rpartition("#### ")[2] for example in examples] == ["18", "3", "70000"]
    assert examples[0]["question"].startswith("Janet\u2019s ducks lay 16 eggs per day.")
    assert list(examples[0]) == ["id", "question", "answer"]


def test_gsm_hard_multiarith_and_gsm8k_aug_as_published(tmp_path: Path) -> None:
    (tmp_path / "hard.jsonl").write_text('{"input": "How many?", "code": "def", "target": 4933828.5}\n')
    (tmp_path / "aug.txt").write_text("How many?||<<1+2=3>> #### 3\n\nWhy||<<2=2>> #### 2\n")
    assert read_questions(str(tmp_path / "hard.jsonl")) == [
        {"id": 0, "question": "How many?", "answer": "4933828.5", "code": "def"}
    ]
    assert [(row["question"], row["answer"]) for row in read_questions(str(tmp_path / "aug.txt"))] == [
        ("How many?", "<<1+2=3>> #### 3"),
        ("Why", "<<2=2>> #### 2"),
    ]


def test_a_column_that_is_named_is_taken_from_a_published_form_too() -> None:
    examples = read_questions(str(DATA / "svamp/SVAMP_50.json"), question_column="Body", answer_column="Type")
    assert examples[0]["question"].endswith("on each pack")
    assert (examples[0]["answer"], examples[0]["Answer"]) == ("Subtraction", 51.0)


def test_a_csv_file_keeps_quotes_line_ends_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffquestion,answer,kind\r\n"Tom said ""3,\n4""",7,x\r\n'.encode())
    assert read_questions(str(path)) == [{"id": 0, "question": 'Tom said "3,\n4"', "answer": "7", "kind": "x"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_set_is_the_hubs_with_its_own_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"question": "q", "question_concat": "q", "input": "q", "answer": "4", "Answer": 4, "target": 4}
    asked: list[Any] = []

    def load(*words: Any, **options: Any) -> Any:
        asked.append((*words, options["split"]))
        return datasets.Dataset.from_list([rows | {"final_ans": "4"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    [example] = read_questions(name)
    assert (example["question"], example["answer"]) == ("q", "4")
    read_questions(name, split="test", subset="other")
    assert asked == [
        {
            "gsm8k": ("openai/gsm8k", "main", "train"),
            "svamp": ("ChilleD/SVAMP", None, "train"),
            "gsm-hard": ("reasoning-machines/gsm-hard", None, "train"),
            "multiarith": ("ChilleD/MultiArith", None, "test"),
            "gsm8k-aug": ("zen-E/GSM8k-Aug", None, "train"),
        }[name],
        (asked[0][0], "other", "test"),
    ]


def test_damaged_pages_and_lying_metadata_of_a_parquet_file_give_one_line(tmp_path: Path) -> None:
    rows = pd.DataFrame({"question": [f"how many {n} ?" for n in range(500)], "answer": ["1"] * 500})
    path = tmp_path / "a.parquet"
    rows.to_parquet(path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_questions(str(path))
    rows.to_parquet(path)
    lied = (
        path.read_bytes()
        .replace(b'"kind": "range"', b'"kind": "rnage"')
        .replace(b'"name": "answer"', b'"name": "anwser"')
    )
    path.write_bytes(lied)
    assert read_questions(str(path), limit=2)[1]["question"] == "how many 1 ?"


def test_lists_within_lists_are_kept_to_a_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a", "deep": [[[[1]]]], "deeper": [[[[[1]]]]]}) + "\n")
    [example] = read_questions(str(path))
    assert example["deep"] == [[[[1]]]]
    assert "deeper" not in example
