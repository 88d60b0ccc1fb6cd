"""Substitution in batches with shared prefixes, against plain hooks on one question at a time."""

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from demo.problems import make_problem
from tests.helpers.codi_checkpoints import LORA_ALPHA, write_codi
from tests.helpers.paths import ROOT
from tests.helpers.plain_substitution import plain_run
from tests.helpers.substitution import as_examples, make_plan, write_cache, write_saes
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.downstream import substitution
from thought_saes.downstream.job import Plan, batches_of, keys_of, measure_unit, units_of
from thought_saes.downstream.substitutes import Condition, Substitutes, conditions
from thought_saes.downstream.substitution import own_scores, run_conditions, unmodified
from thought_saes.models.numbers import last_number, number_span, same_answer
from thought_saes.models.reasoner import LatentReasoner

MODELS = ["llama", "gpt2", "longer", "demo"]
COMPARED = [Condition("mean"), Condition("pca", None, 3), Condition("sae", 24, 3), Condition("noise_cell", 24, 3)]


class Case(NamedTuple):
    reasoner: LatentReasoner
    cache: ActivationCache
    plan: Plan


def tiny_questions(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["a", "how", "many", "apples", "has", "Tom", "?", *map(str, range(20))]
    return [" ".join(rng.choice(words) for _ in range(rng.randint(1, 12))) for _ in range(n)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        if name == "demo":
            reasoner = LatentReasoner.load(str(ROOT / "demo/model"))
            rng = random.Random(0)
            problems = {split: [make_problem(rng, split, 1 + n % 6) for n in range(24)] for split in ("train", "test")}
            train, test = (
                as_examples([p.question for p in some], [str(p.answer) for p in some]) for some in problems.values()
            )
        else:
            files = write_codi(folder, "llama" if name == "longer" else name)
            n_thoughts = 8 if name == "longer" else None
            reasoner = LatentReasoner.load(str(files.checkpoint), str(files.base), LORA_ALPHA, n_thoughts=n_thoughts)
            train = as_examples(tiny_questions(40, 1), ["3"] * 40)
            test = as_examples(tiny_questions(24, 2), [str(n % 20) for n in range(24)])
        positions = range(reasoner.n_thoughts + 1)
        cache = write_cache(folder / "activations", reasoner, train, range(reasoner.n_layers), positions)
        write_saes(folder / "results", cache, [24], [3, 6])
        made[name] = Case(reasoner, cache, make_plan(cache, folder / "results", test, reasoner))
    return made


@pytest.mark.parametrize("position", [None, 0, 3], ids=["every position", "position 0", "position 3"])
@pytest.mark.parametrize("name", MODELS)
def test_substitution_equals_plain_hooks_on_one_question_at_a_time(
    cases: dict[str, Case], name: str, position: int | None
) -> None:
    reasoner, cache, plan = cases[name]
    layer, most = (0 if position == 0 else reasoner.n_layers - 1), plan.settings.max_new_tokens
    batch = list(batches_of(reasoner, plan, cache))[1]
    positions = tuple(cache.positions) if position is None else (position,)
    own = unmodified(reasoner, batch, min(positions), most)
    substitutes = {p: Substitutes(cache, plan.results, Cell(layer, p), 0, torch.device("cpu")) for p in positions}
    found = run_conditions(reasoner, batch, own, substitutes, COMPARED, most)
    differ = 0
    for index, question in enumerate(batch.token_ids):
        unedited, logits = plain_run(reasoner, question, {}, most)
        assert unedited.tokens == own.answers.tokens[index]
        own_text = decoded(reasoner, unedited.tokens)
        for condition, scores in zip(COMPARED, found, strict=True):
            replace = {
                Cell(layer, p): single(each, condition, batch.rows[index], batch.others[index])
                for p, each in substitutes.items()
            }
            edited, _ = plain_run(reasoner, question, replace, most)
            text = decoded(reasoner, edited.tokens)
            agrees = same_answer(last_number(text), last_number(own_text), text, own_text)
            assert scores.agreement[index] == agrees
            assert scores.correct[index] == (last_number(text) == batch.gold[index])
            differ += not agrees
            span = number_span(without_end(reasoner, unedited.tokens), reasoner.decode)
            if span is None:
                assert np.isnan(scores.kl[index])
                continue
            _, forced = plain_run(reasoner, question, replace, most, feed=unedited.tokens)
            p, q = (torch.log_softmax(each[span.first].double(), -1) for each in (logits, forced))
            assert scores.kl[index] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=2e-4, rel=2e-3)
    assert differ or position is not None, "the substitutes should change an answer, or the comparison says little"


def single(substitutes: Substitutes, condition: Condition, row: int, other: int):  # type: ignore[no-untyped-def]
    questions = substitutes.questions([row], [other])
    return lambda state: substitutes.apply(condition, state, questions)


def without_end(reasoner: LatentReasoner, tokens: list[int]) -> list[int]:
    return [token for token in tokens if token != reasoner.tokenizer.eos_token_id]


def decoded(reasoner: LatentReasoner, tokens: list[int]) -> str:
    return reasoner.decode(without_end(reasoner, tokens))


@pytest.mark.parametrize("name", MODELS)
def test_identity_edits_and_the_last_layer_at_the_last_thought_change_nothing(
    cases: dict[str, Case], name: str
) -> None:
    reasoner, cache, plan = cases[name]
    last, end = reasoner.n_layers - 1, reasoner.n_thoughts
    batch = next(batches_of(reasoner, plan, cache))
    for layer, position, some in ((0, 2, [Condition("identity")]), (last, end, conditions([24], [3])[1:])):
        own = unmodified(reasoner, batch, position, 5)
        substitutes = {position: Substitutes(cache, plan.results, Cell(layer, position), 0, torch.device("cpu"))}
        for scores in run_conditions(reasoner, batch, own, substitutes, some, 5):
            assert scores.agreement.all()
            assert np.nan_to_num(scores.kl).max() < 1e-6
            assert np.array_equal(scores.correct, own_scores(batch, own).correct)
    before = {end - 1: Substitutes(cache, plan.results, Cell(last, end - 1), 0, torch.device("cpu"))}
    own = unmodified(reasoner, batch, end - 1, 5)
    [zeroed] = run_conditions(reasoner, batch, own, before, [Condition("zero")], 5)
    assert np.abs(np.nan_to_num(zeroed.log_probability_change)).max() > 1e-6  # one thought earlier it does


def test_records_do_not_depend_on_the_batch_nor_on_how_many_conditions_run_together(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasoner, _, plan = cases["demo"]
    unit = units_of(plan.grid, "cell")[3]
    keys = [key for key in keys_of(unit, plan.grid) if key.layer == 1]
    wide = measure_unit(reasoner, plan, unit, keys)
    monkeypatch.setattr(substitution, "ROWS_TOGETHER", 10)
    narrow = measure_unit(reasoner, plan._replace(settings=plan.settings._replace(batch_size=5)), unit, keys)
    for one, other in zip(wide, narrow, strict=True):
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float | list) else value), name


def test_the_substitutes_are_what_their_names_say(cases: dict[str, Case]) -> None:
    _, cache, plan = cases["llama"]
    cell = Cell(1, 2)
    made = Substitutes(cache, plan.results, cell, 0, torch.device("cpu"))
    train = torch.from_numpy(cache.cell(cell)[cache.split.train])
    x = torch.from_numpy(cache.cell(cell)[cache.split.validation])
    questions = made.questions(range(len(x)), [int(cache.split.train[0])] * len(x))
    assert torch.allclose(made.apply(Condition("mean"), x, questions), train.mean(0).expand_as(x), atol=1e-5)
    assert torch.equal(made.apply(Condition("other_question"), x, questions), train[:1].expand_as(x))
    assert not made.apply(Condition("zero"), x, questions).any()
    _, _, axes = torch.linalg.svd(train.double() - train.double().mean(0), full_matrices=False)
    centred = x.double() - train.double().mean(0)
    expected = train.double().mean(0) + centred @ axes[:3].T @ axes[:3]
    assert torch.allclose(made.apply(Condition("pca", None, 3), x, questions).double(), expected, atol=1e-4)
    reconstruction = made.apply(Condition("sae", 24, 3), x, questions)
    assert not torch.allclose(reconstruction, made.apply(Condition("untrained", 24, 3), x, questions), atol=0.01)
    lengths = (x - reconstruction).norm(dim=1)
    noises: dict[str, Tensor] = {}
    for name in ("noise_isotropic", "noise_cell"):
        noises[name] = made.apply(Condition(name, 24, 3), x, questions) - x
        assert torch.allclose(noises[name].norm(dim=1), lengths, rtol=1e-3)
    share = [(noise @ axes[:4].T.float()).square().sum() / noise.square().sum() for noise in noises.values()]
    assert share[1] > 2 * share[0]  # along the cell's own directions


def test_an_sae_of_other_activations_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    reasoner, _, plan = cases["llama"]
    other = write_cache(tmp_path / "other", reasoner, as_examples(tiny_questions(30, 9), ["1"] * 30), [0], [2])
    with pytest.raises(InputError, match="was trained on other activations"):
        Substitutes(other, plan.results, Cell(0, 2), 0, torch.device("cpu")).sae(Condition("sae", 24, 3))
