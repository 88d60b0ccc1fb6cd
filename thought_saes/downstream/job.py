"""The records of a substitution, planned, checked against what is there, and measured unit by unit."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.common.flags import Selection
from thought_saes.common.text import without_path
from thought_saes.downstream.records import RecordKey, Records, Tally, file_hash
from thought_saes.downstream.substitutes import OF_AN_SAE, Condition, Substitutes, conditions
from thought_saes.downstream.substitution import Batch, Scores, Unit, own_scores, run_conditions, unmodified
from thought_saes.models.numbers import gold_number
from thought_saes.models.reasoner import LatentReasoner, ModelFacts
from thought_saes.results.names import SaeKey, checkpoint_keys, checkpoint_path

FEWEST = 20  # questions: of fewer, no share has an interval that says anything


class Grid(NamedTuple):
    """The SAEs that are put to use; positions are those whose cells are edited one at a time."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    all_positions: tuple[int, ...]  # that regime 'layer' edits
    latent_dims: tuple[int, ...]
    k_values: tuple[int, ...]


def saes_there(results: Path) -> list[SaeKey]:
    """Every SAE that the folder holds. Raises InputError if there is none."""
    if not results.is_dir():
        raise InputError(f"no results at {results}: train_all_layers_positions.py writes them")
    found = checkpoint_keys(results)
    if not found:
        raise InputError(f"no SAEs in {results}: no file named pos<p>_layer<l>_d<latent_dim>_k<k>.pt")
    return found


def choose_grid(
    results: Path,
    cache: ActivationCache,
    facts: ModelFacts,
    layers: Selection,
    positions: Selection,
    latent_dims: Sequence[int] | None,
    k_values: Sequence[int] | None,
    whole_layers: bool,
    flags: tuple[str, str] = ("--latent-dims", "--k-values"),
) -> Grid:
    """The chosen part of `results`; `flags` chose latent_dim and k. Raises InputError if part of it is missing."""
    there = saes_there(results)
    axes = [sorted({value for value in axis}) for axis in zip(*(key.values for key in there), strict=True)]
    for name, chosen, available in zip(flags, (latent_dims, k_values), axes[2:], strict=True):
        if absent := [value for value in chosen or () if value not in available]:
            raise InputError(f"{results} has no SAEs of {name} {absent[0]}; it has {', '.join(map(str, available))}")
    all_positions = tuple(cache.positions)
    grid = Grid(
        layers.resolve(axes[0], f"layers of the SAEs in {results}"),
        positions.resolve(axes[1], f"positions of the SAEs in {results}"),
        all_positions,
        tuple(sorted(set(latent_dims or axes[2]))),
        tuple(sorted(set(k_values or axes[3]))),
    )
    wanted = [
        SaeKey(Cell(layer, position), latent_dim, k)
        for layer in grid.layers
        for position in sorted({*grid.positions, *(all_positions if whole_layers else ())})
        for latent_dim in grid.latent_dims
        for k in grid.k_values
    ]
    if missing := [key for key in wanted if key not in set(there)]:
        raise InputError(
            f"{len(missing)} of {len(wanted)} SAEs are missing, first {checkpoint_path(results, missing[0])}: "
            f"train them, or choose --layers, --positions, {flags[0]} and {flags[1]} that are there"
        )
    if unknown := [key.cell for key in wanted if key.cell not in cache.cells]:
        raise InputError(f"{cache.folder} has no activations of {unknown[0]}")
    if max(grid.layers) >= facts.n_layers or max(all_positions) > facts.n_thoughts:
        raise InputError(
            f"the model has {facts.n_layers} layers and positions 0-{facts.n_thoughts}: the SAEs go beyond"
        )
    return grid


def check_model(cache: ActivationCache, facts: ModelFacts, model: str) -> None:
    """Raises InputError if the activations were not extracted from this model."""
    expected = cache.metadata.get("model_fingerprint")
    if expected is None:
        raise InputError(f"{cache.folder} does not say which model it is of: extract it with extract_activations.py")
    if expected != facts.fingerprint:
        raise InputError(
            f"{model} is not the model of {cache.folder}: its fingerprint is {facts.fingerprint}, "
            f"that of the activations {expected} ({cache.metadata.get('model')})"
        )


def check_saes(cache: ActivationCache, results: Path, grid: Grid) -> None:
    """Raises InputError if the first SAE of a cell is of other activations than those at hand."""
    first = Condition("sae", grid.latent_dims[0], grid.k_values[0])
    for layer in grid.layers:
        for position in grid.positions:
            Substitutes(cache, results, Cell(layer, position), 0, torch.device("cpu")).sae(first)


def check_questions(
    cache: ActivationCache, examples: Sequence[dict[str, Any]], dataset: str, split: str, allow_training_rows: bool
) -> None:
    """Raises InputError if the questions are too few, or some are among the SAEs' training rows."""
    if len(examples) < FEWEST:
        raise InputError(f"{dataset} holds {len(examples)} questions: at least {FEWEST} are needed to compare answers")
    if allow_training_rows:
        return
    texts = [example["question"] for example in cache.examples()]
    trained_on = {texts[row] for row in cache.split.train}
    same_set = (cache.metadata.get("dataset"), cache.metadata.get("dataset_split")) == (dataset, split)
    ids = set(cache.split.train.tolist()) if same_set else set()
    seen = [example for example in examples if example["id"] in ids or example["question"] in trained_on]
    if seen:
        raise InputError(
            f"{len(seen)} of {len(examples)} questions of {dataset} are training rows of the SAEs, first row "
            f"{seen[0]['id']}: choose another --split or --dataset, or --allow-training-rows"
        )


class Settings(NamedTuple):
    """What decides the numbers, beside model, questions and SAEs."""

    seed: int
    max_new_tokens: int
    batch_size: int


class Plan(NamedTuple):
    """Everything that a process needs to measure units; paths are as this machine knows them."""

    activations: Path
    results: Path
    examples: list[dict[str, Any]]
    settings: Settings
    grid: Grid


def identity_of(plan: Plan, facts: ModelFacts, dataset: str, split: str) -> dict[str, Any]:
    """What must be the same for records to stand in one file."""
    texts = [[example["id"], example["question"], example["answer"]] for example in plan.examples]
    return {
        "model_fingerprint": facts.fingerprint,
        "dataset": without_path(dataset),
        "dataset_split": split,
        "n_questions": len(plan.examples),
        "questions_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "all_positions": list(plan.grid.all_positions),
        "n_thoughts": facts.n_thoughts,
        "seed": plan.settings.seed,
        "max_new_tokens": plan.settings.max_new_tokens,
    }


def units_of(grid: Grid, regime: str) -> list[Unit]:
    """The units of work, those of regime 'layer' first."""
    units = []
    if regime != "cell":
        units.append(Unit("layer", None, grid.all_positions, grid.layers))
    if regime != "layer":
        units += [Unit("cell", position, (position,), grid.layers) for position in grid.positions]
    return units


def keys_of(unit: Unit, grid: Grid) -> list[RecordKey]:
    return [
        RecordKey(unit.regime, layer, unit.position, condition)
        for layer in unit.layers
        for condition in conditions(grid.latent_dims, grid.k_values)
    ]


def sae_hash(results: Path, key: RecordKey, positions: Sequence[int]) -> str | None:
    """What the checkpoints hold that the record depends on; None if it depends on none."""
    _, latent_dim, k = key.condition
    if key.condition.name not in OF_AN_SAE or latent_dim is None or k is None:
        return None
    cells = [Cell(key.layer, position) for position in positions]
    hashes = [file_hash(checkpoint_path(results, SaeKey(cell, latent_dim, k))) for cell in cells]
    # Earlier records of `untrained` started as nn.Linear does, whatever the recipe: they are measured again.
    return "-".join([*hashes, *(["start"] if key.condition.name == "untrained" else [])])


def keys_left(unit: Unit, plan: Plan, records: Records) -> list[RecordKey]:
    """The unit's records that are not in the file yet, or of other SAEs."""
    return [
        key for key in keys_of(unit, plan.grid) if not records.has(key, sae_hash(plan.results, key, unit.positions))
    ]


def batches_of(reasoner: LatentReasoner, plan: Plan, cache: ActivationCache) -> Iterator[Batch]:
    """The questions in batches of similar length, longest first; another question for each."""
    token_ids = [reasoner.tokenize(example["question"]) for example in plan.examples]
    texts = [example["question"] for example in cache.examples()]
    limit = reasoner.max_tokens
    for example, tokens in zip(plan.examples, token_ids, strict=True):
        if limit and len(tokens) + reasoner.n_thoughts + plan.settings.max_new_tokens > limit:
            raise InputError(f"question {example['id']} has {len(tokens)} tokens: too many for the model's {limit}")
    order = sorted(range(len(token_ids)), key=lambda row: (-len(token_ids[row]), row))
    for begin in range(0, len(order), plan.settings.batch_size):
        rows = order[begin : begin + plan.settings.batch_size]
        yield Batch(
            [plan.examples[row]["id"] for row in rows],
            [token_ids[row] for row in rows],
            [gold_number(plan.examples[row]["answer"]) for row in rows],
            [another_row(plan.settings.seed, plan.examples[row], cache.split.train, texts) for row in rows],
        )


def another_row(seed: int, example: dict[str, Any], rows: np.ndarray, texts: Sequence[str]) -> int:
    """A training row, drawn by the question's id, with another question."""
    for row in np.random.default_rng([seed, 3, example["id"]]).choice(rows, 10):
        if texts[row] != example["question"]:
            return int(row)
    raise InputError(f"the activations hold no question but '{example['question'][:60]}'")


def measure_unit(
    reasoner: LatentReasoner,
    plan: Plan,
    unit: Unit,
    keys: Sequence[RecordKey],
    on_progress: Callable[[int], object] = lambda n: None,
    batches: int | None = None,
) -> list[dict[str, Any]]:
    """The records of `keys`, all of the unit. `on_progress(n)`: n more questions of a condition are done.

    `batches` stops after so many, for a forecast.
    """
    cache = ActivationCache(plan.activations)
    device = torch.device(reasoner.model.device)
    chosen = {
        layer: [key.condition for key in keys if key.layer == layer and key.condition.name != "own"]
        for layer in sorted({key.layer for key in keys})
    }
    substitutes = {
        layer: {
            position: Substitutes(cache, plan.results, Cell(layer, position), plan.settings.seed, device)
            for position in unit.positions
        }
        for layer in chosen
    }
    tally = Tally(sum(map(len, chosen.values())) + 1, plan.settings.seed)
    for number, batch in enumerate(batches_of(reasoner, plan, cache)):
        if number == batches:
            break
        own = unmodified(reasoner, batch, min(unit.positions), plan.settings.max_new_tokens)
        unedited = own_scores(batch, own)
        scores: list[Scores] = [unedited]
        for layer, some in chosen.items():
            scores += run_conditions(reasoner, batch, own, substitutes[layer], some, plan.settings.max_new_tokens)
            on_progress(len(batch.rows) * len(some))
        tally.add(batch.rows, unedited, scores)
    index = {
        (layer, condition): place
        for place, (layer, condition) in enumerate(
            ((layer, condition) for layer, some in chosen.items() for condition in some), start=1
        )
    }
    return [
        key.fields()
        | tally.record(index.get((key.layer, key.condition), 0))
        | {"sae": sae_hash(plan.results, key, unit.positions)}
        for key in keys
    ]


def forecast_seconds(reasoner: LatentReasoner, plan: Plan, left: Sequence[tuple[Unit, list[RecordKey]]]) -> float:
    """About how long the units left take: a batch of some conditions at the middle position, scaled by passes."""
    unit, keys = left[len(left) // 2]
    some = [key for key in keys if key.layer == keys[0].layer]

    def passes(unit: Unit, n_conditions: int, n_questions: int) -> int:
        return n_conditions * n_questions * (reasoner.n_thoughts + 2 - min(unit.positions))

    measure_unit(reasoner, plan, unit, some[:2], batches=1)
    started = time.perf_counter()
    measure_unit(reasoner, plan, unit, some, batches=1)
    seconds = time.perf_counter() - started
    n_batch = min(plan.settings.batch_size, len(plan.examples))
    total = sum(passes(unit, len(keys), len(plan.examples)) for unit, keys in left)
    return seconds * total / passes(unit, len(some), n_batch)
