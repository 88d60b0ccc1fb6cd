"""Edits of single features: by hand on tiny SAEs, and in the loop against plain hooks on one question at a time."""

import json
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.edits import problem_examples, write_run
from tests.helpers.paths import ROOT
from tests.helpers.plain_substitution import plain_run
from tests.helpers.substitution import ALL
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.downstream.cell_edits import CellEdits, EditPlan
from thought_saes.downstream.edit_job import make_plan, states_at
from thought_saes.downstream.edit_records import Means, SwapKey, swap_fields
from thought_saes.downstream.edit_tasks import UNKNOWN, Outcome, Task, number_token, run_tasks
from thought_saes.downstream.feature_edits import (
    Swap,
    ablate,
    along_axes,
    as_long,
    coactive_change,
    random_change,
    several_change,
    swap_change,
)
from thought_saes.downstream.job import Plan, Settings, batches_of, choose_grid
from thought_saes.downstream.known_features import KnownFeatures
from thought_saes.downstream.substitution import unmodified
from thought_saes.models.numbers import last_number, number_span
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.results.names import SaeKey
from thought_saes.saes.sae import TopKSAE

MOST = 6


class Case(NamedTuple):
    reasoner: LatentReasoner
    cache: ActivationCache
    edits: EditPlan


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("edits")
    reasoner = LatentReasoner.load(str(ROOT / "demo/model"))
    cache = write_run(folder, reasoner, [0, 1], [1, 2])
    grid = choose_grid(folder / "results", cache, reasoner.facts(), ALL, ALL, [24], [3], False)
    plan = Plan(cache.folder, folder / "results", problem_examples("test", 20), Settings(0, MOST, 8), grid)
    return Case(reasoner, cache, make_plan(plan, cache, None, 3))


def known_by_hand() -> KnownFeatures:
    """Two features in three dimensions, x = (z0, z1, rest): W_enc reads them, W_dec writes 2 and 3 times as long."""
    sae = TopKSAE(3, 2, 2)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[0.5, 0.0, 0.0], [0.0, 1 / 3, 0.0]]))
        sae.encoder.bias.zero_()
        sae.decoder.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        sae.decoder.bias.copy_(torch.tensor([0.0, 0.0, 7.0]))
    sae.requires_grad_(False)
    directions = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 3, 0], [0, -3, 0]])
    # Concept 0 is told by 0+, concept 1 by 1-, concept 2 by 0+ as well.
    return KnownFeatures(
        sae,
        np.array([0, 3, 0]),
        np.ones(3),
        np.array([5, 5, 5, 5]),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        directions,
        torch.tensor([[1.0, 0.0], [0.25, -1.0], [1.0, 1.0]]),
    )


X = torch.tensor([[4.0, 6.0, 1.0], [-4.0, -3.0, 5.0]])  # latents (2, 2) and (-2, -1)


def swap_of(values: list[int], others: list[int]) -> Swap:
    return Swap(np.array(values), np.array(others), np.array([0, 1, 2]), list(range(len(values))), [0])


def test_ablating_takes_out_what_a_half_adds_and_leaves_the_error() -> None:
    known = known_by_hand()
    assert torch.allclose(known.magnitudes(X), torch.tensor([[2.0, 0, 2, 0], [0, 2, 0, 1]]))
    assert torch.allclose(ablate(known, 0, X), torch.tensor([[0.0, 6, 1], [-4, -3, 5]]))  # 4 - 2 * 2; 0+ is silent
    assert torch.allclose(ablate(known, 3, X), torch.tensor([[4.0, 6, 1], [-4, 0, 5]]))  # -3 - 1 * (-3)


def test_a_swap_takes_out_the_one_values_half_and_puts_in_the_others_mean() -> None:
    known = known_by_hand()
    # Row 0: 2 * (2, 0, 0) out, 4 * (0, -3, 0) in. Row 1: 0+ does not fire, so nothing is taken out.
    expected = torch.tensor([[-4.0, -12, 0], [0, -12, 0]])
    assert torch.allclose(swap_change(known, X, swap_of([0, 0], [1, 1])), expected)
    # The other way: 1- out, which fires on row 1 alone, with 1 * (0, -3, 0); 1 * (2, 0, 0) in.
    assert torch.allclose(swap_change(known, X, swap_of([1, 1], [0, 0])), torch.tensor([[2.0, 0, 0], [2, 3, 0]]))


def test_a_swap_into_the_same_value_or_one_with_the_same_half_changes_nothing() -> None:
    known = known_by_hand()
    for others in ([0, 0], [2, 2]):
        swap = swap_of([0, 0], others)
        assert not swap_change(known, X, swap).any()
        assert not coactive_change(known, X, swap).any()
        assert not random_change(swap_change(known, X, swap), swap.rows, swap.seed).any()
    assert not several_change(known, swap_of([0, 1], [0, 1]), 2).any()
    assert several_change(known, swap_of([0, 0], [2, 2]), 2).any()


def test_several_features_go_from_one_values_mean_to_the_others() -> None:
    known, swap = known_by_hand(), swap_of([0], [1])
    # Latents change by (-0.75, -1), lengths 1.5 and 3: all of it is (-1.5, -3, 0), the largest alone (0, -3, 0).
    assert torch.allclose(several_change(known, swap, 2), torch.tensor([[-1.5, -3, 0]]))
    assert torch.allclose(several_change(known, swap, 1), torch.tensor([[0.0, -3, 0]]))


def test_a_change_made_as_long_as_another_keeps_its_direction() -> None:
    change, other = torch.tensor([[0.0, 2, 0], [0, 0, 0]]), torch.tensor([[3.0, 0, 4], [1, 0, 0]])
    assert torch.equal(as_long(change, other), torch.tensor([[0.0, 5, 0], [0, 0, 0]]))


def test_along_axes_keeps_the_largest_parts_of_a_difference() -> None:
    axes = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    difference = torch.tensor([[1.0, -3.0, 0.5, 2.0]]) @ axes.T
    expected = torch.tensor([[0.0, -3.0, 0.0, 2.0]]) @ axes.T
    assert torch.allclose(along_axes(difference, axes, 2), expected, atol=1e-6)
    assert torch.allclose(along_axes(difference, axes, 4), difference, atol=1e-6)


def test_controls_are_as_long_and_go_elsewhere(case: Case) -> None:
    cells = edits_at(case, Cell(1, 1))
    known, columns = cells.known, list(case.edits.columns(1).values())
    x = cells.x[:40]
    values, others = np.resize(columns, len(x)), np.resize(np.roll(columns, 1), len(x))
    swap = Swap(values, others, np.array(columns), list(range(len(x))), [0, 1])
    change = swap_change(known, x, swap)
    random = random_change(change, swap.rows, swap.seed)
    assert torch.allclose(random.norm(dim=1), change.norm(dim=1), rtol=1e-4)
    assert torch.cosine_similarity(random, change).abs().mean() < 0.3
    assert torch.equal(random[5:9], random_change(change[5:9], swap.rows[5:9], swap.seed)), "a question's own"
    coactive = coactive_change(known, x, swap)
    moved = coactive.norm(dim=1) > 0
    assert moved.any()
    telling = {int(half) for half in known.half[columns]}
    assert len(telling) > 1
    nearest = (torch.nn.functional.normalize(known.directions) @ coactive[moved].T).argmax(dim=0)
    assert not telling & set(nearest.tolist())


def edits_at(case: Case, cell: Cell, n_features: int = 3) -> CellEdits:
    key = SaeKey(cell, 24, 3)
    return CellEdits(case.edits, case.cache, key, case.edits.swap_keys(key), bool(n_features))


def test_means_and_choices_come_from_the_training_rows(case: Case) -> None:
    cells = edits_at(case, Cell(1, 1))
    train = case.cache.split.train
    latents = cells.known.sae.encode(cells.x[train])
    half = next(iter(cells.told))
    fires = latents[:, half // 2] * (-1 if half % 2 else 1)
    assert cells.known.fired[half] == (fires > 0).sum()
    assert cells.known.mean[half] == pytest.approx(float(fires[fires > 0].mean()), rel=1e-4)
    examples = [json.loads(line) for line in (case.cache.folder / "examples.jsonl").read_text().splitlines()]
    column = case.edits.columns(1)[3.0]
    having = [row for row in train if examples[row]["values"][0] == 3]
    assert sorted(cells.class_rows[column]) == sorted(having)
    assert torch.allclose(cells.class_means[column], cells.x[having].mean(0), atol=1e-5)
    expected = cells.known.sae.encode(cells.x[having]).mean(0)
    assert torch.allclose(cells.known.of_concept[column], expected, atol=1e-5)


@pytest.mark.parametrize("cell", [Cell(0, 2), Cell(1, 1)], ids=str)
def test_edits_equal_plain_hooks_on_one_question_at_a_time(case: Case, cell: Cell) -> None:
    reasoner, cache, edits = case
    cells = edits_at(case, cell)
    batch = list(batches_of(reasoner, edits.plan, cache))[1]
    own = unmodified(reasoner, batch, cell.position, MOST)
    cells.run(reasoner, batch, own, states_at(own.start, cell.position)[cell.layer], MOST)
    half = cells.halves[0]
    step = edits.steps_at(cell.position)[0]
    rows, targets = cells.targets(batch, own, step)
    assert len(rows) >= 3
    columns = edits.columns(step)

    def latents(x: Tensor) -> Tensor:
        """AbsTopK written out."""
        sae = cells.known.sae
        z = x @ sae.encoder.weight.T + sae.encoder.bias
        kept = torch.zeros_like(z)
        top = z.abs().argsort(descending=True)[: sae.k]
        kept[top] = z[top]
        return kept

    def signed(half: int) -> Tensor:
        return cells.known.sae.decoder.weight[:, half // 2] * (-1 if half % 2 else 1)

    def magnitude(x: Tensor, half: int) -> Tensor:
        return (latents(x)[half // 2] * (-1 if half % 2 else 1)).clamp(min=0)

    def without(state: Tensor) -> Tensor:
        return state - magnitude(state[0], half) * signed(half)

    def swapped(state: Tensor, out: int, into: int) -> Tensor:
        mean = float(cells.known.mean[into])
        return state if out == into else state - magnitude(state[0], out) * signed(out) + mean * signed(into)

    ids, _, found = cells.kept(("ablate", half))
    assert ids
    for place, number in enumerate(ids):
        question = batch.token_ids[batch.rows.index(number)]
        unedited, logits = plain_run(reasoner, question, {}, MOST)
        edited, _ = plain_run(reasoner, question, {cell: without}, MOST)
        _, forced = plain_run(reasoner, question, {cell: without}, MOST, feed=unedited.tokens)
        assert found.number[place] == last_number(reasoner.decode(edited.tokens))
        span = number_span(unedited.tokens[:-1], reasoner.decode)
        assert span
        p, q = (torch.log_softmax(each[span.first].double(), -1) for each in (logits, forced))
        assert found.kl[place] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=2e-4, rel=2e-3)

    ids, answers, found = cells.kept(("swap", SwapKey(SaeKey(cell, 24, 3), step, "sae")))
    assert ids == [batch.rows[row] for row in rows]
    for place, (row, target) in enumerate(zip(rows, targets, strict=True)):
        out, into = (int(cells.known.half[columns[value]]) for value in (target.value, target.other))
        replace = {cell: partial(swapped, out=out, into=into)}
        unedited, _ = plain_run(reasoner, batch.token_ids[row], {}, MOST)
        edited, _ = plain_run(reasoner, batch.token_ids[row], replace, MOST)
        _, forced = plain_run(reasoner, batch.token_ids[row], replace, MOST, feed=unedited.tokens)
        assert found.number[place] == last_number(reasoner.decode(edited.tokens))
        assert answers[place].tolist() == [target.answer, own.answers.numbers[row]]
        span = number_span(unedited.tokens[:-1], reasoner.decode)
        assert span
        p = torch.softmax(forced[span.first].double(), -1)
        token = reasoner.tokenizer(f"{target.answer:g}", add_special_tokens=False)["input_ids"][0]
        expected = [float(p[token]), float(p[unedited.tokens[span.first]])]
        assert found.probabilities[place] == pytest.approx(expected, abs=1e-4)


def test_the_difference_of_class_means_swaps_answers_and_a_random_direction_as_long_does_not(case: Case) -> None:
    reasoner, cache, edits = case
    cell = Cell(1, 1)
    cells = edits_at(case, cell, 0)
    for batch in batches_of(reasoner, edits.plan, cache):
        own = unmodified(reasoner, batch, 1, MOST)
        cells.run(reasoner, batch, own, states_at(own.start, 1)[1], MOST)
    records = {(r["condition"], r["n_features"]): r for r in cells.swap_records() if r["step"] == 1}
    means, chance = records["class_means", None], records["random_long", None]
    assert means["n_questions"] >= 15
    assert means["length"] == pytest.approx(chance["length"], rel=1e-3)
    assert means["counterfactual"] > 0.4
    assert chance["counterfactual"] < 0.1
    assert chance["original"] > 0.8
    assert means["p_value"] < 0.05
    for record in records.values():
        shares = [record[name] for name in ("counterfactual", "original", "other")]
        assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_an_edit_of_nothing_and_one_of_the_last_layer_at_the_last_thought_leave_every_answer(case: Case) -> None:
    reasoner, cache, edits = case
    batch = next(batches_of(reasoner, edits.plan, cache))
    rows = np.array([3, 0, 5])
    tokens = np.full((3, 2), UNKNOWN)
    for cell, change in ((Cell(0, 2), lambda x: x), (Cell(1, 6), torch.zeros_like)):
        own = unmodified(reasoner, batch, cell.position, MOST)
        empty = Task(rows[:0], lambda x: x, tokens[:0])
        first, nothing = run_tasks(reasoner, batch, own, cell, [Task(rows, change, tokens), empty], MOST)
        assert first.agreement.tolist() == [1, 1, 1]
        assert np.abs(first.kl).max() < 1e-6
        assert first.number.tolist() == [own.answers.numbers[row] for row in rows]
        assert np.isnan(first.probabilities).all()
        assert len(nothing.number) == 0
    own = unmodified(reasoner, batch, 1, MOST)
    [zeroed] = run_tasks(reasoner, batch, own, Cell(1, 1), [Task(rows, torch.zeros_like, tokens)], MOST)
    assert zeroed.kl.max() > 0.01


def test_the_token_of_another_number_is_found_where_the_two_begin_differently(case: Case) -> None:
    reasoner = case.reasoner
    answer = reasoner.tokenizer("#### 7", add_special_tokens=False)["input_ids"]
    span = number_span(answer, reasoner.decode)
    assert span
    token = number_token(reasoner, answer, span, 12.0)
    assert reasoner.decode([token]) == "12"
    assert number_token(reasoner, answer, span, 7.0) == UNKNOWN
    assert number_token(reasoner, answer, span, 1234.0) == UNKNOWN, "the model knows no such number"
    assert number_token(reasoner, answer, None, 12.0) == UNKNOWN


def test_shares_and_tests_of_a_swap_by_hand() -> None:
    # Four questions, original answers 1, 2, 3, 4, counterfactual ones 5, 6, 7, 8.
    probabilities = np.array([[0.5, 0.25], [0.25, 0.5], [np.nan, np.nan], [0.75, 0.0]])
    none = np.zeros(4)
    outcome = Outcome(np.array([5.0, 6, 3, np.nan]), none, none, none, none, np.array([1.0, 2, 3, 4]), probabilities)
    chance = outcome._replace(number=np.array([1.0, 2, 7, 4]))
    originals, counterfactuals = np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])
    fields = swap_fields([0, 1, 2, 3], originals, counterfactuals, outcome, chance, 0)
    assert (fields["counterfactual"], fields["original"], fields["other"]) == (0.5, 0.25, 0.25)
    assert fields["n_with_probability"] == 3
    assert (fields["p_counterfactual"], fields["p_original"]) == (0.5, 0.25)
    assert fields["length"] == 2.5
    assert fields["p_value"] == 1.0  # two one way, one the other
    low, high = fields["counterfactual_interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_a_measurement_without_a_question_is_missing_not_zero() -> None:
    assert Means([], 0).of("kl", np.zeros(0)) == {"kl": None, "kl_interval": None}
    assert Means([4, 9], 0).of("kl", np.array([np.nan, np.nan])) == {"kl": None, "kl_interval": None}
