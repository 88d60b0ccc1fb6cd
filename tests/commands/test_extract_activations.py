"""The extraction through its command line: the cache it writes, going on after a kill, and bad input."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import extract_activations
from tests.helpers.codi_checkpoints import (
    BOT,
    INPUT_DIM,
    N_LAYERS,
    VOCABULARY,
    CodiFiles,
    rollout,
    save_tokenizer,
    small_config,
    words_to_tokens,
    write_codi,
    write_plain,
)
from tests.helpers.paths import ROOT
from thought_saes.activations import extraction
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common import machine
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.rollout import Rollout

Call = Callable[..., tuple[int, str, str]]
N_QUESTIONS = 23


@pytest.fixture(scope="session")
def codi(tmp_path_factory: pytest.TempPathFactory) -> CodiFiles:
    return write_codi(tmp_path_factory.mktemp("codi"), "llama")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def plain_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("gpt2"), "gpt2")


def example_questions(count: int = N_QUESTIONS) -> list[dict[str, str]]:
    """Questions of 3 to 42 tokens, in an order that is not that of their lengths."""
    return [
        {"question": "how many " + "3 apples . " * ((5 * row) % 14) + "?", "answer": f"so many #### {row}"}
        for row in range(count)
    ]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in example_questions()))
    return path


@pytest.fixture
def words(codi: CodiFiles, questions: Path, tmp_path: Path) -> list[str]:
    """The command line of a small CODI extraction, without its batch size."""
    out = tmp_path / "activations"
    return [
        *("--model", str(codi.checkpoint), "--base-model", str(codi.base)),
        *("--dataset", str(questions), "--activations", str(out), "--device", "cpu"),
    ]


@pytest.fixture
def extract(call: Call, words: list[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the small extraction; words given replace those of the same flag before them."""
    return lambda *more: call(extract_activations.main, *words, *more)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def assert_refused(result: tuple[int, str, str], message: str, folder: Path | None = None) -> None:
    """Exit code 2, `message` in the one line on stderr, and no `folder`."""
    code, _, stderr = result
    assert code == 2
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert message in stderr
    assert len(stderr) < 700
    assert folder is None or not folder.exists()


class Batches:
    """Notes the batches that run, and stops the run after some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.seen: list[list[list[int]]] = []
        hidden_states = LatentReasoner.hidden_states

        def noted(reasoner: LatentReasoner, token_ids: list[list[int]], layers: Any, positions: Any) -> Tensor:
            if len(self.seen) == stop_after:
                raise KeyboardInterrupt
            self.seen.append([list(tokens) for tokens in token_ids])
            return hidden_states(reasoner, token_ids, layers, positions)

        monkeypatch.setattr(LatentReasoner, "hidden_states", noted)
        monkeypatch.setattr(extraction, "SAVING_SHARE", float("inf"))  # save after every batch


def test_the_cache_holds_the_states_of_each_question_in_data_set_order(
    extract: Call, tmp_path: Path, codi: CodiFiles
) -> None:
    code, stdout, _ = extract("--batch-size", 5)
    assert code == 0
    assert f"{N_QUESTIONS} questions in {tmp_path / 'activations'}" in stdout
    for layer in range(N_LAYERS):
        for position in range(6):
            cell = np.load(tmp_path / f"activations/pos{position}_layer{layer}.npy", mmap_mode="r")
            assert (cell.shape, cell.dtype) == ((N_QUESTIONS, INPUT_DIM), np.dtype("float32"))
    cache = ActivationCache(tmp_path / "activations")
    assert (cache.layers, cache.positions) == ([0, 1, 2], [0, 1, 2, 3, 4, 5])
    for row in (0, 1, 7, 22):
        tokens = [*words_to_tokens(example_questions()[row]["question"], codi.bos), BOT]
        reference = rollout(codi.live.codi, codi.live.prj, tokens, 6)
        for layer, position in cache.cells:
            expected = reference[position, layer].numpy()
            assert np.linalg.norm(cache.cell(Cell(layer, position))[row] - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_split_is_that_of_the_experiment(extract: Call, tmp_path: Path) -> None:
    extract()
    permutation = np.random.RandomState(42).permutation(N_QUESTIONS)  # 23: floor(0.8 * 23) = 18 train, 5 validation
    split = json.loads((tmp_path / "activations/split.json").read_text())
    assert split == {"train": permutation[5:].tolist(), "validation": permutation[:5].tolist()}
    examples = [json.loads(line) for line in (tmp_path / "activations/examples.jsonl").read_text().splitlines()]
    assert examples == [
        {"id": row, **example, "split": "validation" if row in permutation[:5] else "train"}
        for row, example in enumerate(example_questions())
    ]


def test_the_metadata_say_what_was_extracted(extract: Call, tmp_path: Path, codi: CodiFiles) -> None:
    extract("--layers", "0-1", "--positions", "0,2")
    metadata = json.loads((tmp_path / "activations/metadata.json").read_text())
    expected = {
        "model": str(codi.checkpoint),
        "base_model": str(codi.base),
        "lora_alpha": 32.0,
        "layers": [0, 1],
        "positions": [0, 2],
        "dtype": "float32",
        "n_examples": N_QUESTIONS,
        "rows_done": N_QUESTIONS,
        "input_dim": INPUT_DIM,
        "position_0": "bot token",
        "thought_projection": True,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["split"]["seed"] == 42
    assert metadata["versions"]["torch"] == torch.__version__


def test_batch_sizes_agree(extract: Call, tmp_path: Path) -> None:
    for size in (1, 5):
        assert extract("--batch-size", size, "--activations", tmp_path / str(size))[0] == 0
    one, five = (ActivationCache(tmp_path / str(size)) for size in (1, 5))
    for cell in one.cells:
        difference = np.linalg.norm(one.cell(cell) - five.cell(cell), axis=1)
        assert (difference < 1e-4 * np.linalg.norm(one.cell(cell), axis=1)).all()


def test_float16_is_the_rounded_float32(extract: Call, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        assert extract("--dtype", dtype, "--activations", tmp_path / dtype)[0] == 0
    full, half = (ActivationCache(tmp_path / dtype) for dtype in ("float32", "float16"))
    for cell in full.cells:
        assert half.cell(cell).dtype == np.float16
        assert np.array_equal(half.cell(cell), full.cell(cell).astype(np.float16))


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_files(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        undisturbed = Batches(patch)
        assert extract("--batch-size", 5, "--activations", tmp_path / "undisturbed")[0] == 0
    assert [len(batch) for batch in undisturbed.seen] == [5, 5, 5, 5, 3]
    with monkeypatch.context() as patch:
        before = Batches(patch, stop_after=3)
        code, _, stderr = extract("--batch-size", 5)
        assert code == 130
        assert "Traceback" not in stderr
    with pytest.raises(InputError, match="unfinished: 15 of 23 questions"):
        ActivationCache(tmp_path / "activations")
    with monkeypatch.context() as patch:
        after = Batches(patch)
        code, stdout, _ = extract("--batch-size", 5)
        assert code == 0
        assert "already has 15 of 23 questions" in stdout
    assert before.seen + after.seen == undisturbed.seen
    assert content(tmp_path / "activations") == content(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        again = Batches(patch)
        assert extract("--batch-size", 5)[0] == 0
        assert again.seen == []


def answers_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_answers_are_those_of_a_plain_rollout_in_data_set_order(extract: Call, tmp_path: Path, codi: CodiFiles) -> None:
    assert extract("--answers", "--max-new-tokens", 7, "--batch-size", 5)[0] == 0
    assert extract("--activations", tmp_path / "without", "--batch-size", 5)[0] == 0
    records = answers_of(tmp_path / "activations")
    assert [record["id"] for record in records] == list(range(N_QUESTIONS))
    reasoner = LatentReasoner.load(str(codi.checkpoint), str(codi.base))
    for record, example in zip(records, example_questions(), strict=True):
        tokens = reasoner.tokenize(example["question"])
        logits: list[Tensor] = []
        rollout = Rollout(reasoner, [tokens])
        rollout.read()
        for _ in range(6):
            rollout.think()
        [said] = rollout.answer(7, watch=logits.append)
        assert record["text"] == reasoner.answers([tokens], max_new_tokens=7)[0]
        logs = torch.stack([step[0].log_softmax(-1) for step in logits])
        numbers = [int(word) for word in record["text"].split() if word.isdecimal()]
        assert record["number"] == (numbers[-1] if numbers else None)
        assert record["gold"] == int(example["answer"].split()[-1])
        assert record["correct"] == (record["number"] == record["gold"])
        if numbers:
            words = [reasoner.decode([token]) for token in said]
            step = max(index for index, word in enumerate(words) if word == str(numbers[-1]))
            at = logs[step]
            assert record["log_probability"] == pytest.approx(float(at[said[step]]), abs=1e-4)
            assert record["entropy"] == pytest.approx(float(-(at.exp() * at).sum()), abs=1e-4)
            first, second = at.exp().topk(2).values.tolist()
            assert record["margin"] == pytest.approx(first - second, abs=1e-4)
        else:
            assert record["entropy"] is record["margin"] is record["log_probability"] is None
    assert any(record["number"] is not None for record in records)
    with_answers, without = (ActivationCache(tmp_path / name) for name in ("activations", "without"))
    for cell in without.cells:
        assert np.array_equal(with_answers.cell(cell), without.cell(cell))


@pytest.mark.parametrize("positions", ["0-2", "0-6"])
def test_answers_do_not_depend_on_the_positions_or_the_batch(extract: Call, tmp_path: Path, positions: str) -> None:
    assert extract("--answers", "--batch-size", 4)[0] == 0
    other = tmp_path / "other"
    assert extract("--answers", "--positions", positions, "--batch-size", 1, "--activations", other)[0] == 0
    for one, two in zip(answers_of(tmp_path / "activations"), answers_of(other), strict=True):
        assert one == {
            key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for key, value in two.items()
        }


def test_answers_resume_and_can_be_asked_for_later(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SAVING_SHARE", float("inf"))
    run_batch = LatentReasoner.run_batch
    seen: list[int] = []

    def stopped(reasoner: LatentReasoner, batch: Any, request: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(batch))
        return run_batch(reasoner, batch, request)

    assert extract("--answers", "--batch-size", 5, "--activations", tmp_path / "undisturbed")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(LatentReasoner, "run_batch", stopped)
        assert extract("--answers", "--batch-size", 5)[0] == 130
    assert not (tmp_path / "activations/answers.jsonl").exists()
    partial = tmp_path / "activations/.answers.partial"
    assert partial.read_text().count("\n") == 10
    partial.write_bytes(partial.read_bytes() + b'{"id": 3, "te')  # what a kill in the middle of a line leaves
    code, stdout, _ = extract("--answers", "--batch-size", 5)
    assert code == 0
    assert "already has 10 of 23 answers" in stdout
    assert content(tmp_path / "activations") == content(tmp_path / "undisturbed")
    assert not partial.exists()
    later = tmp_path / "later"
    assert extract("--batch-size", 5, "--activations", later)[0] == 0
    assert extract("--answers", "--batch-size", 5, "--activations", later)[0] == 0
    assert answers_of(later) == answers_of(tmp_path / "undisturbed")
    assert_refused(extract("--answers", "--max-new-tokens", 3), "holds answers of {'max_new_tokens': 32}, not of ")


def test_more_thoughts_give_more_positions(extract: Call, tmp_path: Path, codi: CodiFiles) -> None:
    assert extract("--thoughts", 8, "--positions", "all", "--limit", 3)[0] == 0
    cache = ActivationCache(tmp_path / "activations")
    assert cache.positions == list(range(9))
    tokens = [*words_to_tokens(example_questions()[2]["question"], codi.bos), BOT]
    expected = rollout(codi.live.codi, codi.live.prj, tokens, 9)[8, 1].numpy()
    assert np.linalg.norm(cache.cell(Cell(1, 8))[2] - expected) < 1e-4 * np.linalg.norm(expected)
    assert_refused(extract("--thoughts", 2), "with --thoughts 2 there are positions 0-2, not 5")


def test_a_word_that_the_model_does_not_know_is_named(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Ada has 3 bananas . How many apples are left ?", "answer": "3"}\n')
    result = call(extract_activations.main, "--model", ROOT / "demo/model", "--dataset", path)
    assert_refused(result, "the model does not know the word 'bananas'; it knows 99: ")


def test_a_run_stopped_while_it_sets_up_starts_again_and_was_never_a_cache(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract("--activations", tmp_path / "undisturbed")
    allocate = os.posix_fallocate
    calls: list[int] = []

    def killed(*words: int) -> None:
        calls.append(1)
        if len(calls) == 4:
            with pytest.raises(InputError, match="unfinished: 0 of 23"):
                ActivationCache(tmp_path / "activations")
            for path in tmp_path.glob("activations/*"):  # what SIGKILL here would leave
                (left_over / path.name).write_bytes(path.read_bytes())
            raise KeyboardInterrupt
        allocate(*words)

    left_over = tmp_path / "left_over"
    left_over.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", killed)
        assert extract()[0] == 130
    assert content(tmp_path / "activations") == {}
    assert len(list(left_over.glob("*.npy"))) == 4
    assert extract("--activations", left_over)[0] == 0
    assert content(left_over) == content(tmp_path / "undisturbed")


def test_a_run_killed_at_any_moment_ends_with_the_same_files(
    call: Call, words: list[str], tmp_path: Path, codi: CodiFiles
) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps(row) + "\n" for row in example_questions(400)))
    words = [*words, "--dataset", str(many), "--batch-size", "2"]
    folder = tmp_path / "activations"
    process = subprocess.Popen(
        [sys.executable, extract_activations.__file__, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not (folder / "metadata.json").exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = json.loads((folder / "metadata.json").read_text())["rows_done"]
    assert done < 400
    with pytest.raises(InputError, match=f"unfinished: {done} of 400 questions"):
        ActivationCache(folder)
    assert call(extract_activations.main, *words)[0] == 0
    assert call(extract_activations.main, *words, "--activations", tmp_path / "undisturbed")[0] == 0
    assert content(folder) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (("--lora-alpha", 16), "lora_alpha: 32.0 there, 16.0 asked for"),
        (("--positions", "0-2"), "positions: 0-5 there, 0-2 asked for"),
        (("--layers", "0,2"), "layers: 0-2 there, 0,2 asked for"),
        (("--dtype", "float16"), "dtype: float32 there, float16 asked for"),
        (("--limit", 7), "n_examples: 23 there, 7 asked for"),
        (("--answer-column", "question"), "examples_sha256: "),
    ],
)
def test_going_on_with_other_settings_is_refused_and_the_difference_named(
    extract: Call, tmp_path: Path, other: tuple[Any, ...], difference: str
) -> None:
    extract()
    before = content(tmp_path / "activations")
    result = extract(*other)
    assert_refused(result, "holds other activations")
    assert difference in result[2]
    assert content(tmp_path / "activations") == before


def test_another_model_under_the_same_name_is_refused(call: Call, tmp_path: Path, questions: Path) -> None:
    model = write_plain(tmp_path / "model")
    words = ["--model", model, "--dataset", questions, "--activations", tmp_path / "out", "--positions", 0]
    assert call(extract_activations.main, *words)[0] == 0
    write_plain(tmp_path / "model", config=small_config("llama", VOCABULARY + 1))
    assert_refused(call(extract_activations.main, *words), "holds other activations (model_fingerprint: ")


def test_arrays_of_another_tool_are_not_overwritten(extract: Call, tmp_path: Path) -> None:
    (tmp_path / "activations").mkdir()
    np.save(tmp_path / "activations/pos0_layer0.npy", np.ones((4, 3), dtype=np.float32))
    before = content(tmp_path / "activations")
    assert_refused(extract(), "pos0_layer0.npy was not written by this script")
    assert content(tmp_path / "activations") == before


@pytest.mark.parametrize("damage", ["absent", "short"])
def test_an_unfinished_cache_with_a_damaged_array_is_not_taken_up(
    extract: Call, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Batches(patch, stop_after=1)
        extract("--batch-size", 5)
    path = tmp_path / "activations/pos1_layer1.npy"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert_refused(extract("--batch-size", 5), "pos1_layer1.npy is absent or damaged")


def test_limit_takes_the_first_questions(extract: Call, tmp_path: Path) -> None:
    extract("--limit", 4)
    lines = (tmp_path / "activations/examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == [row["question"] for row in example_questions(4)]
    assert ActivationCache(tmp_path / "activations").n_examples == 4


@pytest.mark.parametrize(
    ("flags", "layers", "positions"),
    [
        (("--layers", "all", "--positions", "all"), [0, 1, 2], [0, 1, 2, 3, 4, 5, 6]),
        (("--layers", "1", "--positions", "3"), [1], [3]),
        (("--layers", "0-1", "--positions", "5-6"), [0, 1], [5, 6]),
        (("--layers", "0,2", "--positions", "0,2,4"), [0, 2], [0, 2, 4]),
        (("--layers", "0", "2", "--positions=1"), [0, 2], [1]),
    ],
)
def test_layers_and_positions_take_every_form(
    extract: Call, tmp_path: Path, flags: tuple[str, ...], layers: list[int], positions: list[int]
) -> None:
    assert extract(*flags, "--limit", 2)[0] == 0
    cache = ActivationCache(tmp_path / "activations")
    assert cache.cells == [(layer, position) for layer in layers for position in positions]


def test_flags_may_be_typed_with_underscores(call: Call, codi: CodiFiles, questions: Path, tmp_path: Path) -> None:
    code, _, _ = call(
        extract_activations.main,
        *("--model", codi.checkpoint, "--base_model", codi.base, "--dataset", questions, "--batch_size", 2),
        *("--question_column=question", "--answer_column", "answer", "--activations", tmp_path / "out", "--limit", 3),
    )
    assert code == 0


def test_codi_has_positions_up_to_6_and_a_plain_model_any_number(
    extract: Call, call: Call, plain: Path, questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "activations"
    assert_refused(extract("--positions", "0-7"), "a CODI model has positions 0-6, not 7", folder)
    plain_words = ("--model", plain, "--dataset", questions, "--activations", folder)
    assert call(extract_activations.main, *plain_words, "--positions", "7,9", "--limit", 3)[0] == 0
    cache = ActivationCache(folder)
    assert cache.positions == [7, 9]
    assert cache.position_0 == "last question token"


def test_data_sets_of_every_form_give_the_same_examples(extract: Call, tmp_path: Path) -> None:
    rows = [*example_questions(6), {"question": "Tom\u2028has\u0085 5 \u00e9 ?", "answer": "\u2028"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    written = []
    for form in ("jsonl", "json", "parquet"):
        result = extract("--dataset", tmp_path / f"a.{form}", "--activations", tmp_path / form, "--positions", 0)
        assert result[0] == 0
        written.append(content(tmp_path / form))
        del written[-1]["metadata.json"]
    assert written[0] == written[1] == written[2]
    stored = written[0]["examples.jsonl"].decode().split("\n")
    assert json.loads(stored[6])["question"] == rows[6]["question"]


def test_the_ground_truth_columns_of_a_data_set_are_kept(extract: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    truth = {"start": 3, "values": [4, 8], "operations": ["add", "double"], "hard": True, "score": 0.5, "none": None}
    row = {"question": "how ?", "answer": "8", **truth, "id": 77, "split": "test", "object": {"a": 1}}
    path.write_text(json.dumps(row) + "\n" + '{"question": "many ?", "answer": "8", "score": NaN}\n')
    assert extract("--dataset", path)[0] == 0
    lines = (tmp_path / "activations/examples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": 0, "question": "how ?", "answer": "8", **truth, "split": "train"},
        {"id": 1, "question": "many ?", "answer": "8", "score": None, "split": "validation"},
    ]


def test_a_folder_from_before_the_ground_truth_was_kept_goes_on(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_truth = tmp_path / "truth.jsonl"
    rows = example_questions()
    with_truth.write_text("".join(json.dumps(row | {"values": [1, 2]}) + "\n" for row in rows))
    before = json.dumps([{"id": row, **example} for row, example in enumerate(rows)])
    with monkeypatch.context() as patch:
        Batches(patch, stop_after=2)
        extract("--batch-size", 5)
    metadata_path = tmp_path / "activations/metadata.json"
    metadata = json.loads(metadata_path.read_text())
    assert metadata["examples_sha256"] == hashlib.sha256(before.encode()).hexdigest()
    code, stdout, _ = extract("--batch-size", 5, "--dataset", with_truth)
    assert code == 2  # another file is another data set
    metadata_path.write_text(json.dumps(metadata | {"dataset": str(with_truth)}))
    code, stdout, _ = extract("--batch-size", 5, "--dataset", with_truth)
    assert code == 0
    assert "already has 10 of 23 questions" in stdout


def test_other_columns_and_answers_that_are_no_text_are_taken(extract: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "how ?", "result": 5}\n{"q": "many ?", "result": null}\n{"q": "many ?"}\n')
    assert extract("--dataset", path, "--question-column", "q", "--answer-column", "result")[0] == 0
    lines = (tmp_path / "activations/examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["5", None, None]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", '{"question": "a", "answer": "b"}\n\n{"question": "a', "line 3 of "),
        ("a.jsonl", '{"question": "a", "answer": "b"}\n[1]\n', "line 2 of "),
        ("a.json", '[{"question": "a"', "cannot be read as json"),
        ("a.json", '{"question": "a", "answer": "b"}', "is not a list of records"),
        ("a.jsonl", b"\xff\xfe\n", "cannot be read as jsonl"),
        ("a.parquet", "garbage", "cannot be read as parquet"),
        ("a.parquet", "", "cannot be read as parquet"),
        ("a.tsv", "question\tanswer\na\tb\n", "is not a .jsonl, .json, .parquet, .csv or .txt file"),
        ("a.csv", "question,answer\na,b\na,b,c\n", "line 3 of "),
        ("a.csv", "question,answer\na\n", "line 2 of "),
        ("a.csv", "q,a\na,b\n", "has no column 'question'; it has q, a"),
        ("a.csv", b"question,answer\n\xff,b\n", "cannot be read as csv"),
        ("a.txt", "a||b\nno mark\n", "line 2 of "),
        ("a.json", "[" * 200_000, "cannot be read as json"),
        ("a.jsonl", "[" * 200_000, "line 1 of "),
        ("a.jsonl", '{"q": "a", "a": "b"}\n', "has no column 'question'; it has q, a"),
        ("a.jsonl", '{"question": "a", "x": "b"}\n', "has no column 'answer'; it has question, x"),
        ("a.jsonl", '{"question": "a", "answer": "b"}\n{"question": 7, "answer": "b"}\n', "row 1 of "),
        ("a.jsonl", '{"question": "a", "answer": "b"}\n{"answer": "b"}\n', "row 1 of "),
        ("a.jsonl", '{"question": "a \\ud800", "answer": "b"}\n', "row 0 of "),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named(
    extract: Call, tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = extract("--dataset", path)
    assert_refused(result, message, tmp_path / "activations")
    assert str(path) in result[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "absent.jsonl"), "no file absent.jsonl"),
        (("--dataset", ""), "--dataset is empty: it takes a file, a hub data set, or gsm8k, svamp, gsm-hard"),
        (("--dataset", "svamp"), "the data set ChilleD/SVAMP cannot be loaded"),
        (("--dataset", "openai/gsm8k"), "the data set openai/gsm8k cannot be loaded"),
        (("--model", "no/such/folder"), "'no/such/folder' is neither a folder nor a model on the hub"),
        (("--model", "some/model"), "'some/model' is no folder, and the hub cannot be reached"),
        (("--model", "absent.gguf"), "no file absent.gguf"),
        (("--layers", "0,3,5"), "not among the layers of "),
        (("--layers", "x"), "argument --layers: 'x' is not 'all', '3', '0-5' or '0,7,14'"),
        (("--positions", "5-2"), "the range '5-2' is empty"),
        (("--batch-size", 0), "--batch-size must be at least 1, not 0"),
        (("--limit", 0), "--limit must be at least 1, not 0"),
        (("--dtype", "int8"), "invalid choice: 'int8'"),
        (("--device", "cuda:77"), "there is no device 'cuda:77' here"),
        (("--device", "abacus"), "there is no device 'abacus' here"),
        (("--no-such-flag", 1), "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    extract: Call, tmp_path: Path, flags: tuple[Any, ...], message: str
) -> None:
    assert_refused(extract(*flags), message, tmp_path / "activations")


def test_a_layer_that_is_not_there_lists_those_that_are(extract: Call) -> None:
    assert ": 3,5; there are 0-2\n" in extract("--layers", "0,3,5")[2]


def test_a_damaged_model_is_one_line_and_nothing_is_written(extract: Call, tmp_path: Path, codi: CodiFiles) -> None:
    folder = tmp_path / "activations"
    (tmp_path / "model.safetensors").write_bytes((codi.checkpoint / "model.safetensors").read_bytes()[:-9])
    assert_refused(extract("--model", tmp_path), "model.safetensors is damaged", folder)
    (tmp_path / "model.safetensors").unlink()
    assert_refused(extract("--model", tmp_path), "is no model", folder)
    assert_refused(extract("--base-model", tmp_path), "is no causal LM", folder)


def test_an_activations_path_that_is_a_file_is_named(extract: Call, questions: Path) -> None:
    assert_refused(extract("--activations", questions), f"File exists: {questions}")


def test_a_question_too_long_for_the_models_positions_is_named(call: Call, plain_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"  # GPT-2 here has 96 positions: 92 tokens and 4 thoughts fill them
    rows = [{"question": " ".join(["a"] * length), "answer": ""} for length in (3, 92)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--model", plain_gpt2, "--dataset", path, "--activations", tmp_path / "out")
    result = call(extract_activations.main, *words, "--positions", "0-5")
    assert_refused(result, "question 1 has 92 tokens; with 5 thoughts the model takes at most 91", tmp_path / "out")
    assert call(extract_activations.main, *words, "--positions", "0-4")[0] == 0


def test_a_question_without_tokens_is_named(call: Call, plain_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "answer": ""}\n{"question": " ", "answer": ""}\n')
    words = ("--model", plain_gpt2, "--dataset", path, "--activations", tmp_path / "out")
    assert_refused(call(extract_activations.main, *words), "question 1 is empty", tmp_path / "out")


def scaled_states(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    hidden_states = LatentReasoner.hidden_states
    monkeypatch.setattr(LatentReasoner, "hidden_states", lambda *words: hidden_states(*words) * factor)


def last_line(result: tuple[int, str, str]) -> str:
    """The line on stderr after the progress bar's."""
    assert result[0] == 2
    assert "Traceback" not in result[2]
    return result[2].splitlines()[-1]


def test_an_overflow_of_float16_is_named_and_nothing_counts_as_done(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_states(monkeypatch, 1e6)
    message = last_line(extract("--dtype", "float16"))
    assert message.startswith("error: the activation of question ")
    assert message.endswith("is not finite in float16; use --dtype float32")
    with pytest.raises(InputError, match="unfinished: 0 of 23"):
        ActivationCache(tmp_path / "activations")


def test_a_state_that_is_not_a_number_is_named(extract: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_states(monkeypatch, float("nan"))
    assert last_line(extract()).endswith("layer 0, position 0 is not finite in float32")


def test_too_little_memory_names_the_batch_size(extract: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LatentReasoner, "hidden_states", refuse)
    assert last_line(extract("--batch-size", 7)) == "error: out of memory with 7 questions: lower --batch-size"


def disk_full(*_words: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_too_small_is_known_before_the_work_and_nothing_stays(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", disk_full)
    batches = Batches(monkeypatch)
    assert_refused(extract(), "No space left on device")
    assert batches.seen == []
    assert content(tmp_path / "activations") == {}
    assert not list((tmp_path / "activations").glob(".*.tmp"))


def too_small_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


def test_a_disk_that_has_no_room_for_the_activations_is_refused_before_anything_is_written(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_small_a_disk(monkeypatch)
    # 18 cells of 23 x 32 float32 and a header of 128 bytes
    assert_refused(extract(), "needs 55.3 KB more, and its disk has 1.0 KB left", tmp_path / "activations")


def test_a_run_that_goes_on_needs_no_new_room(extract: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Batches(patch, stop_after=2)
        extract("--batch-size", 5)
    too_small_a_disk(monkeypatch)
    assert extract("--batch-size", 5)[0] == 0


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, stdout, stderr = extract("--dry-run", "--dtype", "float16", "--batch-size", 4)
    assert (code, stderr) == (0, "")
    rows, cells, disk, memory, seconds = stdout.splitlines()
    assert rows == "rows: 23 questions of 5 to 44 tokens"
    assert cells == "cells: 18 (3 layers x 6 positions), each 23 x 32 float16"
    assert disk.startswith(f"disk: 28.8 KB in {tmp_path / 'activations'}, of which 28.8 KB are not there yet; ")
    assert memory.endswith(" at the longest batch, on cpu")
    assert re.fullmatch(r"time: about \d+ s for 6 batches of 4", seconds)
    assert not (tmp_path / "activations").exists()
    too_small_a_disk(monkeypatch)
    code, stdout, stderr = extract("--dry-run")
    assert code == 2
    assert "55.3 KB" in stdout
    assert "and its disk has 1.0 KB left" in stderr


def test_bfloat16_weights_give_a_cache_of_their_own(extract: Call, tmp_path: Path) -> None:
    assert extract("--model-dtype", "bfloat16")[0] == 0
    assert json.loads((tmp_path / "activations/metadata.json").read_text())["model_dtype"] == "bfloat16"
    assert extract("--activations", tmp_path / "full")[0] == 0
    assert_refused(extract("--model-dtype", "bfloat16", "--activations", tmp_path / "full"), "model_dtype: None there")
    full, half = (ActivationCache(tmp_path / name).cell(Cell(1, 2)) for name in ("full", "activations"))
    assert 0 < np.abs(half - full).max() < 0.5 * np.abs(full).max()


def test_a_device_beside_a_device_map_is_refused(extract: Call) -> None:
    assert_refused(extract("--device-map", "auto"), "leave --device out")


def test_a_disk_full_amid_the_run_leaves_a_cache_that_goes_on(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Batches(patch, stop_after=2)
        extract("--batch-size", 5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        assert last_line(extract("--batch-size", 5)) == "error: No space left on device"
    with pytest.raises(InputError, match="unfinished: 10 of 23"):
        ActivationCache(tmp_path / "activations")
    assert extract("--batch-size", 5)[0] == 0
    extract("--batch-size", 5, "--activations", tmp_path / "undisturbed")
    assert content(tmp_path / "activations") == content(tmp_path / "undisturbed")


def test_a_second_run_on_the_same_folder_at_once_is_refused(extract: Call, tmp_path: Path) -> None:
    with only_writer(tmp_path / "activations"):
        assert_refused(extract(), "another run is writing to")
    assert extract()[0] == 0


def test_no_batch_outlives_the_next_one(extract: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_states = LatentReasoner.hidden_states
    batches: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watched(*words: Any) -> Tensor:
        states = hidden_states(*words)
        alive.append(sum(batch() is not None for batch in batches))
        batches.append(weakref.ref(states))
        return states

    monkeypatch.setattr(LatentReasoner, "hidden_states", watched)
    assert extract("--batch-size", 2)[0] == 0
    assert len(alive) == 12
    assert max(alive) <= 1


def test_an_eos_appending_tokenizer_changes_nothing(call: Call, tmp_path: Path, plain: Path, questions: Path) -> None:
    model = write_plain(tmp_path / "model")
    save_tokenizer(model, bos=True, eos=True)
    for name, folder in (("with", model), ("without", plain)):
        words = ("--model", folder, "--dataset", questions, "--activations", tmp_path / name, "--positions", "0-1")
        assert call(extract_activations.main, *words)[0] == 0
    with_eos, without = (ActivationCache(tmp_path / name) for name in ("with", "without"))
    for cell in without.cells:
        assert np.array_equal(with_eos.cell(cell), without.cell(cell))


def test_every_setting_is_a_flag_with_help(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["extract_activations.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        extract_activations.main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name in extract_activations.ExtractConfig.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in shown
