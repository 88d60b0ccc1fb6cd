"""Edits of single features, planned, checked against what is there, and measured position by position."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.flags import Selection
from thought_saes.downstream.cell_edits import CHANCE, FAMILY, CellEdits, EditPlan
from thought_saes.downstream.counterfactuals import COLUMNS, check_operations, tell_operations
from thought_saes.downstream.edit_records import EditRecords, SwapKey
from thought_saes.downstream.job import Plan, batches_of
from thought_saes.downstream.substitution import unmodified
from thought_saes.features.concepts import find_concepts
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.rollout import Rollout
from thought_saes.results.names import SaeKey


class CellLeft(NamedTuple):
    """What is not in the file yet of one cell."""

    key: SaeKey
    swaps: list[SwapKey]
    ablations: bool


def make_plan(plan: Plan, cache: ActivationCache, steps: Selection | None, n_features: int) -> EditPlan:
    """What is to be edited. Raises InputError if no concept is known, or a step is not."""
    concepts = find_concepts(cache.examples(), cache)
    with_swaps = tell_operations(plan.examples)
    if with_swaps:
        check_operations(plan.examples)
    known = sorted(int(name.removeprefix(FAMILY)) for name in concepts.families if name.startswith(f"{FAMILY} "))
    chosen = None if steps is None else steps.resolve(known, f"steps whose values {cache.folder} knows")
    return EditPlan(plan, concepts, chosen, n_features, with_swaps, cache.input_dim)


def why_no_swap(edits: EditPlan, dataset: str) -> str | None:
    """In a line why nothing is swapped; None if it is."""
    if edits.with_swaps:
        return None
    return (
        f"swap left out: {dataset} does not say by which operations its answers come about "
        f"(columns {', '.join(COLUMNS)}), so no counterfactual answer is known"
    )


def cells_left(edits: EditPlan, records: EditRecords) -> dict[int, list[CellLeft]]:
    """What is left to measure, by position. A cell's features are taken out together."""
    grid = edits.plan.grid
    left: dict[int, list[CellLeft]] = {}
    for position in grid.positions:
        for layer in grid.layers:
            key = edits.key(Cell(layer, position))
            sae_hash = edits.sae_hash(key)
            swaps = [one for one in edits.swap_keys(key) if not records.has(one, sae_hash)]
            if swaps:  # what the others are held against is measured with them
                chance = [one for one in edits.swap_keys(key) if one.condition == CHANCE]
                swaps = list(dict.fromkeys([*swaps, *(c for c in chance if c.step in {one.step for one in swaps})]))
            ablations = not records.has_ablations(key, sae_hash)
            if swaps or ablations:
                left.setdefault(position, []).append(CellLeft(key, swaps, ablations))
    return left


def measure_position(
    reasoner: LatentReasoner,
    edits: EditPlan,
    left: Sequence[CellLeft],
    on_progress: Callable[[int], object] = lambda n: None,
    batches: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The ablation and the swap records of some cells of one position. `on_progress(n)`: n questions of a cell more.

    `batches` stops after so many, for a forecast, and gives no records.
    """
    plan, most = edits.plan, edits.plan.settings.max_new_tokens
    cache = ActivationCache(plan.activations)
    cells = [CellEdits(edits, cache, one.key, one.swaps, one.ablations) for one in left]
    position = left[0].key.cell.position
    for number, batch in enumerate(batches_of(reasoner, plan, cache)):
        if number == batches:
            return [], []
        own = unmodified(reasoner, batch, position, most)
        states = states_at(own.start, position)
        for each in cells:
            each.run(reasoner, batch, own, states[each.key.cell.layer], most)
            on_progress(len(batch.rows))
    return (
        [record for each in cells for record in each.ablation_records()],
        [record for each in cells for record in each.swap_records()],
    )


def states_at(start: Rollout, position: int) -> list[Tensor]:
    """The unmodified states (batch, input_dim) of every layer at the position that `start` stands before."""
    rollout = start.fork()
    output = rollout.think() if position else rollout.read()
    return [stream[:, -1].float().cpu() for stream in output.hidden_states[1:]]


def forecast_seconds(reasoner: LatentReasoner, edits: EditPlan, left: dict[int, list[CellLeft]]) -> float:
    """About how long all that is left takes: the middle position's first batch, scaled."""
    some = left[sorted(left)[len(left) // 2]]
    started = time.perf_counter()
    measure_position(reasoner, edits, some, batches=0)
    prepared = time.perf_counter()
    measure_position(reasoner, edits, some, batches=1)
    preparation = prepared - started
    batch = max(0.0, time.perf_counter() - prepared - preparation)
    n_batches = len(edits.plan.examples) / min(len(edits.plan.examples), edits.plan.settings.batch_size)
    n_cells = sum(map(len, left.values())) / len(some)
    return n_cells * (preparation + n_batches * batch)
