"""predict_errors.py through its command line: the file it writes, and what it refuses."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import predict_errors
from demo.problems import make_problem
from tests.helpers.paths import ROOT
from tests.helpers.substitution import as_examples, write_cache, write_saes
from thought_saes.activations.answers import ANSWERS_FILE, AnswerWriter
from thought_saes.activations.formats import AnswerLine
from thought_saes.models.reasoner import LatentReasoner, Request

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations of the early demo model on two sets of problems, its answers to the second, and SAEs."""
    folder = tmp_path_factory.mktemp("errors")
    reasoner = LatentReasoner.load(str(ROOT / "demo/model_early"))
    rng = random.Random(0)
    for split, n in (("train", 40), ("test", 120)):
        problems = [make_problem(rng, split, 6) for _ in range(n)]
        examples = as_examples([p.question for p in problems], [str(p.answer) for p in problems])
        cache = write_cache(folder / split, reasoner, examples, [1], [1, 2])
        if split == "train":
            write_saes(folder / "results", cache, [16], [2, 3, 4])
        else:
            write_answers(folder / split, reasoner, examples)
    return folder


def write_answers(folder: Path, reasoner: LatentReasoner, examples: list[dict[str, Any]]) -> None:
    """What the model says, as the extraction writes it."""
    rows = range(len(examples))
    token_ids = [reasoner.tokenize(example["question"]) for example in examples]
    answers = reasoner.run_batch(token_ids, Request((1,), (0,), max_new_tokens=32)).answers
    assert answers is not None
    writer = AnswerWriter(folder, rows, n_activations=len(rows))
    writer.write(rows, answers, examples)
    writer.finish()


def flags(ready: Path) -> list[object]:
    return ["--activations", ready / "test", "--training", ready / "train", "--results", ready / "results"]


def test_the_early_model_errs_and_the_file_answers_the_published_question(ready: Path, call: Call) -> None:
    answers = [json.loads(line) for line in (ready / "test" / ANSWERS_FILE).read_text().splitlines()]
    assert all(tuple(answer) == AnswerLine.__struct_fields__ for answer in answers)
    assert 0.5 < sum(answer["correct"] for answer in answers) / len(answers) < 0.9
    code, _, err = call(predict_errors.main, *flags(ready), "--positions", 2, "--repeats", 1)
    assert code == 0, err
    content = json.loads((ready / "results/error_prediction.json").read_text())
    kinds = [record["features"] for record in content["records"]]
    assert sorted(kinds) == ["pca"] * 3 + ["raw", "reconstruction"] + ["sae"] * 3 + ["untrained"]
    for record in content["records"]:
        assert record["auroc_interval"][0] <= record["auroc"] <= record["auroc_interval"][1]
    assert content["published_question"]["n_configurations"] == 3
    assert content["n_wrong"] == sum(not answer["correct"] for answer in answers)


def test_cells_side_by_side_are_judged_as_one_after_the_other(ready: Path, call: Call) -> None:
    found = []
    for workers in (2, 1):
        assert call(predict_errors.main, *flags(ready), "--repeats", 1, "--workers", workers)[0] == 0
        found.append(json.loads((ready / "results/error_prediction.json").read_text()))
    assert found[0] == found[1]
    assert [record["position"] for record in found[0]["records"]] == [1] * 9 + [2] * 9


def test_bad_input_is_one_line(ready: Path, call: Call, tmp_path: Path) -> None:
    for words, message in (
        (["--activations", tmp_path / "nowhere"], "no activations at"),
        (["--results", tmp_path / "nowhere"], "no results at"),
        (["--activations", ready / "train"], f"{ANSWERS_FILE} is missing: extract_activations.py --answers"),
        (["--k-values", 2, "--positions", 2], "1 SAEs are chosen"),
    ):
        code, _, err = call(predict_errors.main, *flags(ready), *words)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line | {"entropy": "much"}, 'entropy is "much", not a number'),
        (lambda line: {"id": 0}, "text is missing"),
        (lambda line: line | {"id": 7}, "does not hold an answer for each of the 120 rows"),
    ],
)
def test_answers_that_are_not_what_they_should_be_are_named(
    ready: Path, call: Call, tmp_path: Path, damage: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    folder = tmp_path / "test"
    shutil.copytree(ready / "test", folder)
    first, *others = (folder / ANSWERS_FILE).read_text().splitlines()
    (folder / ANSWERS_FILE).write_text("\n".join([json.dumps(damage(json.loads(first))), *others]) + "\n")
    code, _, err = call(predict_errors.main, *flags(ready), "--activations", folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
