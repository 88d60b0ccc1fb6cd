"""substitute_thoughts.py through its command line: the file, resuming, and what it refuses."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import substitute_thoughts
from demo.problems import make_problem
from tests.helpers.paths import ROOT
from tests.helpers.substitution import as_examples, write_cache, write_questions, write_saes
from thought_saes.downstream import engines
from thought_saes.models.reasoner import LatentReasoner

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the activations of 40 problems at two positions, SAEs of them, and 20 test problems."""
    folder = tmp_path_factory.mktemp("substitution")
    reasoner = LatentReasoner.load(str(ROOT / "demo/model"))
    rng = random.Random(0)
    for split, n in (("train", 40), ("test", 20)):
        problems = [make_problem(rng, split, 1 + number % 6) for number in range(n)]
        examples = as_examples([p.question for p in problems], [str(p.answer) for p in problems])
        write_questions(folder / f"{split}.jsonl", examples)
        if split == "train":
            write_saes(
                folder / "saes", write_cache(folder / "activations", reasoner, examples, [0, 1], [1, 2]), [24], [3]
            )
    return folder


@pytest.fixture
def words(ready: Path, tmp_path: Path) -> dict[str, Any]:
    results = tmp_path / "results"
    results.mkdir()
    for path in (ready / "saes").glob("*.pt"):
        (results / path.name).write_bytes(path.read_bytes())
    return {
        "--model": ROOT / "demo/model",
        "--dataset": ready / "test.jsonl",
        "--activations": ready / "activations",
        "--results": results,
        "--batch-size": 8,
    }


def flat(words: dict[str, Any]) -> list[Any]:
    return [part for pair in words.items() for part in pair]


def test_every_condition_of_both_regimes_is_recorded_and_the_same_command_does_nothing_more(
    words: dict[str, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(substitute_thoughts.main, *flat(words))
    assert code == 0, err
    path = words["--results"] / "substitution.json"
    content = json.loads(path.read_text())
    # A cell has five conditions and one PCA, SAE, untrained SAE and two noises: 10. Four cells, and two layers: 6.
    assert len(content["records"]) == 60
    assert content["metadata"]["n_questions"] == 20
    for record in content["records"]:
        assert record["n_questions"] == 20
        assert (record["position"] is None) == (record["regime"] == "layer")
        if record["condition"] in ("own", "identity"):
            assert (record["agreement"], record["p_value"]) == (1.0, 1.0)
            assert record["kl"] < 1e-6
    before = path.read_bytes()
    monkeypatch.setattr(engines, "measure_unit", lambda *_: pytest.fail("it measured again"))
    code, out, _ = call(substitute_thoughts.main, *flat(words))
    assert (code, path.read_bytes()) == (0, before)
    assert out.startswith("0 records of 20 questions left, 60 there")


def test_a_killed_run_resumes_with_the_units_that_are_left(
    words: dict[str, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = engines.measure_unit
    done: list[Any] = []
    most = 2

    def killed(reasoner: Any, plan: Any, unit: Any, keys: Any, on_progress: Any) -> Any:
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(unit)
        return measure(reasoner, plan, unit, keys, on_progress)

    monkeypatch.setattr(engines, "measure_unit", killed)
    assert call(substitute_thoughts.main, *flat(words))[0] == 130
    path = words["--results"] / "substitution.json"
    assert len(json.loads(path.read_text())["records"]) == 40  # both layers at all positions, and at position 1
    most = 3
    assert call(substitute_thoughts.main, *flat(words))[0] == 0
    assert [(unit.regime, unit.position) for unit in done] == [("layer", None), ("cell", 1), ("cell", 2)]
    resumed = json.loads(path.read_text())["records"]
    path.unlink()
    monkeypatch.setattr(engines, "measure_unit", measure)
    assert call(substitute_thoughts.main, *flat(words))[0] == 0
    assert json.loads(path.read_text())["records"] == resumed


def test_a_dry_run_says_what_is_left_and_writes_nothing(words: dict[str, Any], call: Call) -> None:
    code, out, _ = call(substitute_thoughts.main, *flat(words), "--dry-run")
    assert code == 0
    assert out.startswith("60 records of 20 questions left, 0 there\ntime: about ")
    assert not (words["--results"] / "substitution.json").exists()


def refused(call: Call, words: dict[str, Any], *more: Any) -> str:
    code, _, err = call(substitute_thoughts.main, *flat(words), *more)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not (words["--results"] / "substitution.json").exists()
    return err


def test_training_rows_are_refused_unless_asked_for(words: dict[str, Any], ready: Path, call: Call) -> None:
    words["--dataset"] = ready / "train.jsonl"
    assert "32 of 40 questions" in refused(call, words)
    assert call(substitute_thoughts.main, *flat(words), "--allow-training-rows", "--regime", "layer")[0] == 0


def test_bad_input_is_one_line(words: dict[str, Any], ready: Path, call: Call, tmp_path: Path) -> None:
    assert "holds 3 questions: at least 20" in refused(call, words, "--limit", 3)
    assert "has no SAEs of --k-values 7; it has 3" in refused(call, words, "--k-values", 7)
    assert "not among the positions" in refused(call, words, "--positions", 5)
    assert "no results at" in refused(call, words | {"--results": tmp_path / "nowhere"})
    assert "no activations at" in refused(call, words | {"--activations": tmp_path / "nowhere"})
    reasoner = LatentReasoner.load(str(ROOT / "demo/model"))
    examples = [json.loads(line) for line in (ready / "test.jsonl").read_text().splitlines()]
    write_cache(tmp_path / "other", reasoner, examples, [0, 1], [1, 2])
    message = refused(call, words | {"--activations": tmp_path / "other"}, "--allow-training-rows")
    assert "was trained on other activations" in message
    (words["--results"] / "pos2_layer1_d24_k3.pt").unlink()
    assert "1 of 4 SAEs are missing" in refused(call, words)


def test_another_model_is_refused_by_its_fingerprint(
    words: dict[str, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentReasoner, "fingerprint", lambda self: "another")
    assert "its fingerprint is another" in refused(call, words)


def test_records_of_other_questions_are_not_mixed(words: dict[str, Any], call: Call, ready: Path) -> None:
    assert call(substitute_thoughts.main, *flat(words), "--regime", "layer")[0] == 0
    code, _, err = call(substitute_thoughts.main, *flat(words), "--seed", 1)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is of other answers (seed: 0 there, 1 asked for)" in err


def test_the_model_thinks_as_often_as_that_of_the_activations(
    words: dict[str, Any], ready: Path, call: Call, tmp_path: Path
) -> None:
    """An extraction with --thoughts says so; records of another number of thoughts are not mixed with its."""
    metadata = json.loads((ready / "activations" / "metadata.json").read_text())
    longer = tmp_path / "activations"
    shutil.copytree(ready / "activations", longer)
    (longer / "metadata.json").write_text(json.dumps(metadata | {"n_thoughts": 8}))
    assert call(substitute_thoughts.main, *flat(words), "--activations", longer, "--regime", "layer")[0] == 0
    path = words["--results"] / "substitution.json"
    assert json.loads(path.read_text())["metadata"]["n_thoughts"] == 8
    code, _, err = call(substitute_thoughts.main, *flat(words), "--regime", "layer")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is of other answers (n_thoughts: 8 there, 6 asked for)" in err
    path.unlink()
    assert "positions 0-1" in refused(call, words, "--thoughts", 1)
