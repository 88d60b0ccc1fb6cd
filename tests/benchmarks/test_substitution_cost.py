"""The passes that a condition is held against are those that it made."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks import substitution_cost
from demo.problems import make_problem
from tests.helpers.paths import ROOT
from tests.helpers.substitution import as_examples, write_questions


def test_every_condition_is_held_against_its_own_passes(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    problems = [make_problem(random.Random(n), "test", 3) for n in range(6)]
    examples = as_examples([p.question for p in problems], [str(p.answer) for p in problems])
    words = ("--model", ROOT / "demo/model", "--dataset", write_questions(tmp_path / "q.jsonl", examples))
    sizes = ("--questions", 6, "--position", 4, "--latent-dim", 16, "--k-values", 4, "--rounds", 1)
    code, out, err = call(substitution_cost.main, *words, *sizes, "--output", tmp_path / "cost.json")
    assert code == 0, err
    assert "| identity" in out
    measured = {one["conditions"]: one for one in json.loads((tmp_path / "cost.json").read_text())["measured"]}
    assert list(measured) == ["identity", "mean", "pca", "sae", "all"]
    # Thoughts 4 to 6, and the answer in one pass, which is the unmodified one: a token a row, and those of the answer.
    identity = measured["identity"]
    assert identity["passes"] == 4
    assert identity["tokens"] % 6 == 0
    assert measured["all"]["tokens"] >= 4 * identity["tokens"]
    for one in measured.values():
        assert one["ratio"] == one["seconds"] / one["bare_seconds"] > 0


def test_a_model_needs_questions(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call(substitution_cost.main, "--model", "m")
    assert (code, err) == (2, "error: --model needs --dataset, and --dataset --model\n")


def test_a_position_beyond_the_thoughts_is_refused(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    questions = write_questions(
        tmp_path / "q.jsonl", as_examples([make_problem(random.Random(0), "test", 3).question], ["1"])
    )
    words = ("--model", ROOT / "demo/model", "--dataset", questions, "--questions", 1, "--position", 7)
    code, _, err = call(substitution_cost.main, *words)
    assert (code, err) == (2, "error: --position 7: the model has thoughts up to 6\n")
