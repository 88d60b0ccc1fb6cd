"""edit_features.py through its command line: the file, resuming, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edit_features
from tests.helpers.edits import problem_examples, write_run
from tests.helpers.paths import ROOT
from tests.helpers.substitution import write_cache, write_questions
from thought_saes.common.schema import read_record
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.models.reasoner import LatentReasoner

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the activations of 200 problems at two positions, SAEs of them, and 20 test problems."""
    folder = tmp_path_factory.mktemp("edits")
    write_run(folder, LatentReasoner.load(str(ROOT / "demo/model")), [1], [1, 2])
    for split, n in (("train", 200), ("test", 20)):
        write_questions(folder / f"{split}.jsonl", problem_examples(split, n))
    return folder


@pytest.fixture
def words(ready: Path, tmp_path: Path) -> dict[str, Any]:
    results = tmp_path / "results"
    results.mkdir()
    for path in (ready / "results").glob("*.pt"):
        (results / path.name).write_bytes(path.read_bytes())
    return {
        "--model": ROOT / "demo/model",
        "--dataset": ready / "test.jsonl",
        "--activations": ready / "activations",
        "--results": results,
        "--latent-dim": 24,
        "--k": 3,
        "--n-features": 2,
    }


def flat(words: dict[str, Any]) -> list[Any]:
    return [part for pair in words.items() for part in pair]


def content_of(words: dict[str, Any]) -> Any:
    return json.loads((words["--results"] / "edits.json").read_text())


def length_of(content: Any, record: dict[str, Any], condition: str) -> float:
    """Of an edit of the same position and step."""
    same = [r for r in content["swaps"] if all(r[axis] == record[axis] for axis in ("position", "step"))]
    return float(next(r["length"] for r in same if r["condition"] == condition))


def test_every_condition_is_recorded_as_the_format_says_and_the_same_command_does_nothing_more(
    words: dict[str, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(edit_features.main, *flat(words))
    assert code == 0, err
    path = words["--results"] / "edits.json"
    read_record(path, EditsContent)
    content = content_of(words)
    assert content["metadata"]["n_questions"] == 20
    # Nine conditions, five and twenty features of three kinds, and all of them: 16 for each position and step.
    assert len(content["swaps"]) == 48
    assert {(record["position"], record["step"]) for record in content["swaps"]} == {(1, 1), (2, 1), (2, 2)}
    assert len({record["condition"] for record in content["swaps"]}) == 11
    for record in content["swaps"]:
        assert record["n_questions"] > 5 or record["step"] == 2
        if record["condition"] in ("random_long", "sae_long") and record["n_questions"]:
            assert record["length"] == pytest.approx(length_of(content, record, "class_means"), rel=1e-3)
        assert (record["counterfactual"] is None) == (record["n_questions"] == 0)
        if record["condition"] == "random" and record["n_questions"]:
            assert record["length"] == pytest.approx(length_of(content, record, "sae"), rel=1e-3)
    assert all(record["n_questions"] <= 20 for record in content["ablations"])
    assert {record["position"] for record in content["ablations"]} == {1, 2}
    before = path.read_bytes()
    monkeypatch.setattr(edit_features, "measure_position", lambda *_: pytest.fail("it measured again"))
    code, out, _ = call(edit_features.main, *flat(words))
    assert (code, path.read_bytes()) == (0, before)
    assert out.startswith("0 cells of 20 questions left")


def test_a_killed_run_resumes_with_what_is_left(
    words: dict[str, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = edit_features.measure_position
    done: list[int] = []
    most = 1

    def killed(reasoner: Any, edits: Any, left: Any, on_progress: Any) -> Any:
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(left[0].key.cell.position)
        return measure(reasoner, edits, left, on_progress)

    monkeypatch.setattr(edit_features, "measure_position", killed)
    assert call(edit_features.main, *flat(words))[0] == 130
    assert {record["position"] for record in content_of(words)["swaps"]} == {1}
    most = 2
    assert call(edit_features.main, *flat(words))[0] == 0
    assert done == [1, 2]
    resumed = content_of(words)
    # A record that is lost is measured again, and nothing else.
    lost = resumed["swaps"][3]
    path = words["--results"] / "edits.json"
    path.write_text(json.dumps(resumed | {"swaps": [record for record in resumed["swaps"] if record != lost]}))
    most = 3
    asked: list[Any] = []

    def watched(reasoner: Any, edits: Any, left: Any, on_progress: Any) -> Any:
        asked.extend(left)
        return measure(reasoner, edits, left, on_progress)

    monkeypatch.setattr(edit_features, "measure_position", watched)
    assert call(edit_features.main, *flat(words))[0] == 0
    [only] = asked
    assert not only.ablations
    assert {key.condition for key in only.swaps} == {lost["condition"], "random_long"}
    again = content_of(words)
    path.unlink()
    assert call(edit_features.main, *flat(words))[0] == 0
    for kind in ("ablations", "swaps"):
        assert content_of(words)[kind] == resumed[kind] == again[kind]


def test_a_set_without_operations_has_ablations_and_one_line_about_swaps(
    words: dict[str, Any], ready: Path, call: Call, tmp_path: Path
) -> None:
    plain = [{key: line[key] for key in ("id", "question", "answer")} for line in problem_examples("test", 20)]
    words["--dataset"] = write_questions(tmp_path / "plain.jsonl", plain)
    code, out, _ = call(edit_features.main, *flat(words))
    assert code == 0
    assert [line for line in out.splitlines() if "swap left out" in line] == [
        f"swap left out: {tmp_path / 'plain.jsonl'} does not say by which operations its answers come about "
        "(columns start, operations, values), so no counterfactual answer is known"
    ]
    assert content_of(words)["swaps"] == []
    assert content_of(words)["ablations"]


def test_a_dry_run_says_what_is_left_and_writes_nothing(words: dict[str, Any], call: Call) -> None:
    code, out, _ = call(edit_features.main, *flat(words), "--dry-run")
    assert code == 0
    assert out.startswith("2 cells of 20 questions left, 0 records there\ntime: about ")
    assert not (words["--results"] / "edits.json").exists()


def refused(call: Call, words: dict[str, Any], *more: Any) -> str:
    code, _, err = call(edit_features.main, *flat(words), *more)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not (words["--results"] / "edits.json").exists()
    return err


def test_training_rows_and_another_model_are_refused(
    words: dict[str, Any], ready: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "160 of 200 questions" in refused(call, words | {"--dataset": ready / "train.jsonl"})
    monkeypatch.setattr(LatentReasoner, "fingerprint", lambda self: "another")
    assert "its fingerprint is another" in refused(call, words)


def test_bad_input_is_one_line(words: dict[str, Any], ready: Path, call: Call, tmp_path: Path) -> None:
    assert "holds 3 questions: at least 20" in refused(call, words, "--limit", 3)
    assert "has no SAEs of --latent-dim 512; it has 24" in refused(call, words | {"--latent-dim": 512})
    assert "has no SAEs of --k 7; it has 3" in refused(call, words | {"--k": 7})
    assert "not among the positions" in refused(call, words, "--positions", 5)
    assert "not among the steps whose values" in refused(call, words, "--steps", 6)
    assert "no results at" in refused(call, words | {"--results": tmp_path / "nowhere"})
    assert "no activations at" in refused(call, words | {"--activations": tmp_path / "nowhere"})
    examples = problem_examples("test", 20)
    examples[4]["operations"] = ["square"] * len(examples[4]["values"])
    odd = write_questions(tmp_path / "odd.jsonl", examples)
    assert "question 4: 'square' is none of the known operations" in refused(call, words | {"--dataset": odd})
    reasoner = LatentReasoner.load(str(ROOT / "demo/model"))
    write_cache(tmp_path / "other", reasoner, problem_examples("train", 120, seed=1), [1], [1, 2])
    assert "was trained on other activations" in refused(call, words | {"--activations": tmp_path / "other"})


def test_a_damaged_file_and_one_of_other_questions_are_one_line(words: dict[str, Any], call: Call) -> None:
    assert call(edit_features.main, *flat(words), "--positions", 1)[0] == 0
    path = words["--results"] / "edits.json"
    code, _, err = call(edit_features.main, *flat(words), "--seed", 1)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is of other answers (seed: 0 there, 1 asked for)" in err
    content = content_of(words)
    content["swaps"][0]["counterfactual"] = "half"
    path.write_text(json.dumps(content))
    code, _, err = call(edit_features.main, *flat(words))
    assert (code, len(err.splitlines())) == (2, 1)
    assert 'edits.json: swaps.0.counterfactual is "half", not a number' in err
