"""The demo: its problems, its training, and the model that is shipped."""

import json
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from demo.losses import codi_losses
from demo.measure_demo_model import (
    MeasureConfig,
    last_number,
    measure_accuracy,
    probe_accuracy,
    readme,
    swap_partners,
)
from demo.problems import MAX_STEPS, OTHER_PHRASES, PHRASES, PHRASINGS, SPLITS, make_problem, problems, split_of, words
from demo.train_demo_model import Curriculum, DemoConfig, Training, learning_rate_factor
from tests.helpers.edits import edits_content
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.models.reasoner import LatentReasoner

MODEL = ROOT / "demo" / "model"


def demo(script: str, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "demo" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@given(st.integers(0, 10**9), st.sampled_from(SPLITS), st.integers(1, MAX_STEPS), st.sampled_from(PHRASINGS))
def test_the_worked_steps_lead_from_the_start_to_the_answer(seed: int, split: str, n_steps: int, phrasing: str) -> None:
    problem = make_problem(random.Random(seed), split, n_steps, phrasing)
    value = problem.start
    for step, line in zip(problem.steps, problem.worked_steps(), strict=True):
        left, sign, right, _, result = line.split()
        assert int(left) == value
        value = int(eval(f"{left} {sign} {right}"))
        assert value == int(result) == step.value
        assert 1 <= value <= 20
    assert problem.record()["answer"] == "\n".join([*problem.worked_steps(), f"#### {value}"])
    assert problem.question.count("In ") == n_steps
    assert split_of(problem.start, problem.steps) == split


@given(st.integers(0, 10**9), st.integers(1, MAX_STEPS), st.sampled_from(PHRASINGS))
def test_a_question_tells_its_start_and_every_amount_in_order(seed: int, n_steps: int, phrasing: str) -> None:
    problem = make_problem(random.Random(seed), "train", n_steps, phrasing)
    told = [int(found) for found in re.findall(r"\d+", problem.question)]
    assert told == [problem.start, *(step.amount for step in problem.steps if step.operation in ("add", "subtract"))]


@given(st.integers(0, 10**9), st.integers(1, MAX_STEPS))
def test_the_other_phrasing_has_the_same_words_in_other_sentences(seed: int, n_steps: int) -> None:
    problem = make_problem(random.Random(seed), "train", n_steps, "other")
    assert set(re.findall(r"\w+|[.?]", problem.question)) <= set(words())
    for operation, phrases in OTHER_PHRASES.items():
        assert not set(phrases) & {phrase.replace("{they}", "{name}") for phrase in PHRASES[operation]}


def test_no_two_splits_share_a_problem_whatever_the_words_and_seeds() -> None:
    arithmetic = {}
    for split in SPLITS:
        some = [p for seed in range(2) for p in islice(problems(seed, split, range(1, 4)), 500)]
        arithmetic[split] = {(p.start, tuple((step.operation, step.amount) for step in p.steps)) for p in some}
        assert len(arithmetic[split]) > 100
    assert not arithmetic["train"] & arithmetic["test"]
    assert not arithmetic["train"] & arithmetic["validation"]
    assert not arithmetic["validation"] & arithmetic["test"]


def test_the_problems_script_writes_a_data_set_of_different_problems(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "problems.jsonl"
    first = demo("problems.py", "--split", "test", "--n-problems", 300, "--max-steps", 4, "--output", path)
    assert first.returncode == 0, first.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["question"] for record in records}) == 300
    assert {len(record["values"]) for record in records} == {1, 2, 3, 4}
    assert all(record["answer"].endswith(f"#### {record['values'][-1]}") for record in records)
    content = path.read_bytes()
    demo("problems.py", "--split", "test", "--n-problems", 300, "--max-steps", 4, "--output", path)
    assert path.read_bytes() == content
    refused = demo("problems.py", "--max-steps", 9)
    assert (refused.returncode, refused.stderr) == (2, "error: --max-steps must be from 1 to 8, not 9\n")


def small(tmp_path: Path, **values: int) -> DemoConfig:
    settings = {"width": 32, "layers": 2, "batch_size": 8, "steps": 8, "max_steps": 3} | values
    return DemoConfig(**settings, output=tmp_path / "model", training=tmp_path)


def test_the_words_that_the_demo_model_knows_are_printed() -> None:
    result = subprocess.run(
        [sys.executable, "demo/problems.py", "--words"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    special = {"<pad>", "<eos>", "<bot>", "<eot>"}
    known = LatentReasoner.load(str(ROOT / "demo/model")).tokenizer.get_vocab()
    printed = result.stdout.split()
    assert set(printed) == {word for word in known if not word.startswith("<")}
    assert len(known) - len(printed) <= len(special) + 1


def test_the_losses_are_those_of_each_problem_alone_without_cache_or_padding(tmp_path: Path) -> None:
    training = Training(small(tmp_path, max_steps=6))
    reasoner = training.reasoner
    for weight in training.modules.parameters():  # zero biases and small weights would hide what is left out
        weight.data = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    some = [make_problem(random.Random(seed), "train", n_steps) for seed, n_steps in enumerate((1, 6, 3))]
    batch = training.encoder.batch(some)
    embed, head = reasoner.model.get_input_embeddings(), reasoner.model.lm_head
    teacher, student, stepwise, solved, targets, reached = [], [], [], [], [], []
    for row, problem in enumerate(some):
        question = reasoner.tokenizer(problem.question)["input_ids"]
        answer = batch.answer[row]
        steps = " ".join(problem.worked_steps())
        worked = torch.tensor(reasoner.tokenizer(steps, add_special_tokens=False)["input_ids"])
        whole = torch.cat([torch.tensor(question), worked, answer])
        taught = reasoner.model(whole[None], output_hidden_states=True)
        expected = torch.cat([worked, answer])
        teacher.append(F.cross_entropy(taught.logits[0, len(question) - 1 : -1], expected, reduction="none"))
        targets.append(torch.stack([states[0, -3] for states in taught.hidden_states[1:]]))
        inputs = embed(torch.tensor([[*question, reasoner.bot_token_id]]))
        for _ in range(6):
            last = reasoner.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
            inputs = torch.cat([inputs, reasoner.feed_back(last)], dim=1)
        thought_states = reasoner.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -6:]
        values = [step.value for step in problem.steps]
        values += [problem.answer] * (6 - len(values))
        value_ids = torch.tensor([training.encoder.ids[str(value)] for value in values])
        stepwise.append(F.cross_entropy(head(thought_states), value_ids))
        said = embed(torch.tensor([[reasoner.eot_token_id, *answer[:2].tolist()]]))
        output = reasoner.backbone(
            inputs_embeds=torch.cat([inputs, said], dim=1), use_cache=False, output_hidden_states=True
        )
        logits = head(output.last_hidden_state[0, -3:])
        student.append(F.cross_entropy(logits, answer))
        solved.append(bool(logits[1].argmax() == answer[1]))
        reached.append(torch.stack([states[0, -2] for states in output.hidden_states[1:]]))
    ours, theirs = torch.stack(reached, dim=1), torch.stack(targets, dim=1)  # (n_layers, batch, width)
    distances = [F.smooth_l1_loss(ours[layer], theirs[layer]) / theirs[layer].std() for layer in range(2)]
    losses = codi_losses(reasoner, batch)
    torch.testing.assert_close(losses.teacher, torch.cat(teacher).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.student, torch.stack(student).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.steps, torch.stack(stepwise).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.distillation, torch.stack(distances).mean(), rtol=1e-4, atol=1e-5)
    assert losses.solved.tolist() == solved


def test_the_distillation_moves_the_student_and_not_the_teacher(tmp_path: Path) -> None:
    training = Training(small(tmp_path))
    batch = training.encoder.batch(training.curriculum.draw(random.Random(0), 8))
    codi_losses(training.reasoner, batch).distillation.backward()
    assert training.reasoner.projection is not None
    assert all(weight.grad is not None for weight in training.reasoner.projection.parameters())
    only_the_teacher_reads = training.reasoner.model.get_input_embeddings().weight.grad[training.encoder.ids["="]]
    assert only_the_teacher_reads.abs().sum() == 0


def weights_after(config: DemoConfig, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    training = Training(config)
    training.resume()
    while training.step < (stop_at or config.steps):
        training.train_step()
    training.save()
    return training.modules.state_dict()


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = weights_after(small(tmp_path / "whole"))
    weights_after(small(tmp_path / "parts"), stop_at=3)
    parts = weights_after(small(tmp_path / "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    other_seed = weights_after(small(tmp_path / "other", seed=1))
    assert not all(torch.equal(whole[name], other_seed[name]) for name in whole)


def test_a_training_may_get_other_steps_until_its_learning_rate_falls(tmp_path: Path) -> None:
    assert [learning_rate_factor(step, 1000) for step in (99, 500, 750, 875)] == [0.5, 1, 1, 0.5]
    weights_after(small(tmp_path, steps=40), stop_at=3)
    shorter = weights_after(small(tmp_path, steps=8))
    assert all(torch.equal(weight, shorter[name]) for name, weight in weights_after(small(tmp_path / "b")).items())
    with pytest.raises(InputError, match="state of another training"):
        Training(small(tmp_path, steps=10)).resume()
    with pytest.raises(InputError, match="state of another training"):
        Training(small(tmp_path, seed=1)).resume()
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(InputError, match="is damaged"):
        Training(small(tmp_path)).resume()


def test_the_curriculum_adds_a_step_when_enough_of_the_longest_are_solved() -> None:
    curriculum = Curriculum(max_steps=2)
    for step in range(9):
        curriculum.judge(step, torch.ones(100, dtype=torch.long), torch.arange(100) % 10 < 8)
        assert curriculum.longest == 1
    curriculum.judge(9, torch.tensor([1] * 100 + [2] * 500), torch.tensor([True] * 80 + [False] * 520))
    assert (curriculum.longest, curriculum.raised_at, len(curriculum.solved)) == (2, [9], 0)
    assert {len(problem.steps) for problem in curriculum.draw(random.Random(0), 50)} == {1, 2}
    for step in range(20):
        curriculum.judge(step, torch.full((100,), 2), torch.ones(100, dtype=torch.bool))
    assert curriculum.longest == 2


def test_the_training_script_writes_a_model_that_the_extraction_loads(tmp_path: Path) -> None:
    flags = ["--width", 32, "--batch-size", 4, "--steps", 3, "--layers", 1, "--training", tmp_path / "training"]
    trained = demo("train_demo_model.py", *flags, "--output", tmp_path / "model")
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "model" / "training.json").read_text())["settings"]["steps"] == 3
    assert not (tmp_path / "training" / "state.pt").exists()
    reasoner = LatentReasoner.load(str(tmp_path / "model"))
    assert reasoner.hidden_states([reasoner.tokenize("Ada has 3 apples.")], [0], range(7)).shape == (1, 7, 1, 32)
    refused = demo("train_demo_model.py", "--width", 40)
    assert (refused.returncode, refused.stderr) == (2, "error: --width must be a multiple of 32, not 40\n")


def test_partners_have_as_many_steps_and_are_somebody_else() -> None:
    n_steps = torch.tensor([1, 2, 2, 1, 3, 3, 3])
    partners = swap_partners(n_steps, seed=0)
    assert torch.equal(n_steps[partners], n_steps)
    assert sorted(partners.tolist()) == list(range(7))
    assert not (partners == torch.arange(7)).any()


def test_a_probe_reads_what_is_linear_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(1, 21, (3000,), generator=generator)
    x = torch.randn(20, 32, generator=generator)[values - 1] + 0.1 * torch.randn(3000, 32, generator=generator)
    assert probe_accuracy(x[:2000], values[:2000], x[2000:], values[2000:]) > 0.99
    assert probe_accuracy(x[:2000], values[:2000].flip(0), x[2000:], values[2000:]) < 0.3


def test_the_answer_is_the_last_number_without_commas() -> None:
    assert last_number("3 + 4 = 7, so #### 1,234") == 1234
    assert last_number("-2.5") == -2.5
    assert last_number("none") != last_number("none")  # NaN: never right


def test_the_shipped_model_solves_unseen_problems_and_needs_its_thoughts_for_it() -> None:
    reasoner = LatentReasoner.load(str(MODEL))
    accuracy = measure_accuracy(reasoner, MeasureConfig(n_problems=300, batch_size=100, seed=7), max_steps=6)
    assert accuracy["all"]["own"] >= 0.9
    for steps in ("5", "6"):
        row = accuracy["by_steps"][steps]
        assert row["own"] - max(row["mean"], row["swapped"]) >= 0.4
    assert accuracy["differ_one_at_a_time"] == 0


def test_the_shipped_models_page_is_made_of_its_measurements() -> None:
    training, measured = (json.loads((MODEL / name).read_text()) for name in ("training.json", "measurements.json"))
    assert (MODEL / "README.md").read_text() == readme(training, measured["accuracy"], measured["probes"])


def test_the_findings_are_those_of_the_files(tmp_path: Path) -> None:
    missing = demo("tell_findings.py", "--results", tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "")
    best = {"layer": 1, "position": 2, "latent_dim": 64, "k": 5, "fvu": 0.25}
    judged = {"layers": [{"layer": 1, "best": best}, {"layer": 2, "best": None}], "better_than_pca": 3}
    judged |= {"collapsed": 1, "rank_correlation": {"high_ev_low_fvu": 0.5}}
    (tmp_path / "analysis_summary.json").write_text(json.dumps({"total_saes": 8, "by_error": judged}))
    (tmp_path / "a.png").write_bytes(b"")
    told = demo("tell_findings.py", "--results", tmp_path)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert [line[:2] for line in lines[:3]] == ["1.", "2.", "3."]
    assert "0.250, at layer 1, position 2, latent_dim 64, k 5" in lines[1]
    assert lines[2].startswith("3. 3 of 8 SAEs have a lower fvu than PCA")
    assert lines[-1].strip() == str(tmp_path / "a.png")
    (tmp_path / "edits.json").write_text(json.dumps(edits_content()))
    swapped = demo("tell_findings.py", "--results", tmp_path).stdout.splitlines()
    assert swapped[:-1] == lines
    assert "one feature for one makes 12.5% [0.0%, 25.0%]" in swapped[-1]
