"""Everything that is edited at one cell with one SAE, batch by batch, and the records of it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.downstream.counterfactuals import Target, draw_target
from thought_saes.downstream.edit_records import AblationKey, SwapKey, ablation_fields, rounded, swap_fields
from thought_saes.downstream.edit_tasks import N_TOKENS, UNKNOWN, Outcome, Task, number_token, run_tasks
from thought_saes.downstream.feature_edits import (
    SEVERAL,
    Swap,
    ablate,
    along_axes,
    as_long,
    coactive_change,
    features_change,
    random_change,
    swap_change,
)
from thought_saes.downstream.job import Plan
from thought_saes.downstream.known_features import KnownFeatures
from thought_saes.downstream.records import file_hash
from thought_saes.downstream.substitutes import Condition, Substitutes
from thought_saes.downstream.substitution import Batch, Own, own_scores
from thought_saes.features.collect import rows_of
from thought_saes.features.concepts import Concepts, family_of
from thought_saes.features.scores import half_name
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.saes.baselines import covariance

FAMILY = "value after step"
MEAN = ("mean", None)  # the task on all questions, of which each half takes those on which it fires
CHANCE = "random_long"  # against which every condition is tested
Name = tuple[str, Any]  # of a task


class EditPlan(NamedTuple):
    """What is edited, beside what `Plan` says of questions, settings and SAEs."""

    plan: Plan
    concepts: Concepts
    steps: tuple[int, ...] | None  # None: the position's and the one before
    n_features: int
    with_swaps: bool
    input_dim: int

    def key(self, cell: Any) -> SaeKey:
        return SaeKey(cell, self.plan.grid.latent_dims[0], self.plan.grid.k_values[0])

    def sae_hash(self, key: SaeKey) -> str:
        return file_hash(checkpoint_path(self.plan.results, key))

    def columns(self, step: int) -> dict[float, int]:
        """The concepts of the values after a step, columns of the labels, by value."""
        names = enumerate(self.concepts.names)
        return {float(name.partition(" = ")[2]): column for column, name in names if family_of(name) == family(step)}

    def steps_at(self, position: int) -> list[int]:
        chosen = self.steps or sorted({max(1, position - 1), max(1, position)})
        return [step for step in chosen if family(step) in self.concepts.families]

    def swap_keys(self, key: SaeKey) -> list[SwapKey]:
        """Every condition of every step at an SAE's cell."""
        if not self.with_swaps:
            return []
        single = ("sae", "sae_long", "coactive", "random", CHANCE, "untrained", "class_means", "whole", "mean")
        some = [n for n in SEVERAL if n < min(key.latent_dim, self.input_dim)]
        conditions = [
            *((name, None) for name in single),
            *((name, n) for name in ("several", "untrained", "pca") for n in some),
            ("several", key.latent_dim),
        ]
        return [SwapKey(key, step, *each) for step in self.steps_at(key.cell.position) for each in conditions]

    @property
    def possible(self) -> set[float]:
        """Every value that a concept is about, after whatever step."""
        names = [name for name in self.concepts.names if name.startswith(f"{FAMILY} ")]
        return {float(name.partition(" = ")[2]) for name in names}


def family(step: int) -> str:
    return f"{FAMILY} {step}"


class CellEdits:
    """One SAE at its cell. Raises InputError if the SAE is damaged or of other activations."""

    def __init__(
        self, edits: EditPlan, cache: ActivationCache, key: SaeKey, swaps: Sequence[SwapKey], ablations: bool
    ) -> None:
        """`swaps` are those to be measured; `ablations` says whether features are to be taken out."""
        plan = edits.plan
        self.edits, self.cache, self.key, self.swaps = edits, cache, key, list(swaps)
        self.examples = {example["id"]: example for example in plan.examples}
        self._substitutes = Substitutes(cache, plan.results, key.cell, plan.settings.seed, torch.device("cpu"))
        self.known = self._features("sae")
        self.told = {int(self.known.half[c]): c for c in self.known.told(edits.n_features if ablations else 0)}
        busiest = self.known.busiest(edits.n_features if ablations else 0)
        self.halves = list(dict.fromkeys([*self.told, *busiest]))
        self._kept: dict[Name, list[tuple[list[int], np.ndarray, Outcome]]] = defaultdict(list)

    def _features(self, name: str) -> KnownFeatures:
        sae = self._substitutes.sae(Condition(name, self.key.latent_dim, self.key.k))
        return KnownFeatures.of(sae, self.x, self.cache, self.edits.concepts)

    @cached_property
    def untrained(self) -> KnownFeatures:
        return self._features("untrained")

    @cached_property
    def x(self) -> Tensor:
        """The activations of the cell, (n_rows, input_dim)."""
        return rows_of(self.cache, self.key.cell)

    @cached_property
    def mean(self) -> Tensor:
        """(input_dim,) of the training rows."""
        return self.x[self.cache.split.train].mean(0)

    @cached_property
    def axes(self) -> Tensor:
        """(input_dim, input_dim) principal axes of the training rows, in columns."""
        train = self.x[self.cache.split.train]
        return torch.linalg.eigh(covariance(train, train.double().mean(0))).eigenvectors.float()

    @cached_property
    def class_means(self) -> Tensor:
        """(n_concepts, input_dim) mean state of the training rows that have each concept."""
        return torch.stack([self.x[rows].mean(0) for rows in self.class_rows])

    @cached_property
    def class_rows(self) -> list[np.ndarray]:
        """The training rows that have each concept."""
        train = self.cache.split.train
        having = self.edits.concepts.labels.take(train).concepts.tocsc()
        return [train[having.indices[a:b]] for a, b in zip(having.indptr, having.indptr[1:], strict=False)]

    def run(self, reasoner: LatentReasoner, batch: Batch, own: Own, states: Tensor, max_new_tokens: int) -> None:
        """Measure a batch; `states` (batch, input_dim) are the unmodified ones of the cell, on the CPU."""
        planned = [*self.ablations(batch, own, states), *self.all_swaps(reasoner, batch, own)]
        tasks = [task for _, task, _ in planned]
        outcomes = run_tasks(reasoner, batch, own, self.key.cell, tasks, max_new_tokens)
        mean = next((outcome for (name, _, _), outcome in zip(planned, outcomes, strict=True) if name == MEAN), None)
        for (name, task, beside), outcome in zip(planned, outcomes, strict=True):
            ids = [batch.rows[row] for row in task.rows]
            if name[0] == "ablate" and mean is not None:
                self._kept["mean", name[1]].append((ids, np.zeros(0), mean.take(task.rows)))
            if name != MEAN:
                self._kept[name].append((ids, beside, outcome))

    def ablations(self, batch: Batch, own: Own, states: Tensor) -> Iterator[tuple[Name, Task, np.ndarray]]:
        """The tasks of every half that is taken out, where it fires; beside each, whether the own answers are right."""
        if not self.halves:
            return
        seed = [self.edits.plan.settings.seed, *self.key.cell]
        unknown = np.full((len(batch.rows), N_TOKENS), UNKNOWN)
        correct = own_scores(batch, own).correct
        magnitudes = self.known.magnitudes(states).numpy()
        yield MEAN, Task(np.arange(len(batch.rows)), self.mean.expand_as, unknown), correct
        for half in self.halves:
            rows = np.flatnonzero(magnitudes[:, half])
            ids = [batch.rows[row] for row in rows]
            yield ("ablate", half), Task(rows, partial(ablate, self.known, half), unknown[rows]), correct[rows]
            yield ("astray", half), Task(rows, partial(self.astray, half, ids, seed), unknown[rows]), correct[rows]

    def all_swaps(self, reasoner: LatentReasoner, batch: Batch, own: Own) -> Iterator[tuple[Name, Task, np.ndarray]]:
        """The tasks of every swap; beside each (n, 2), the counterfactual and the original answers."""
        for step in sorted({key.step for key in self.swaps}):
            rows, targets = self.targets(batch, own, step)
            columns = self.edits.columns(step)
            swap = Swap(
                np.array([columns[target.value] for target in targets], int),
                np.array([columns[target.other] for target in targets], int),
                np.array(list(columns.values())),
                [batch.rows[row] for row in rows],
                [self.edits.plan.settings.seed, *self.key.cell],
            )
            pairs = list(zip(rows.tolist(), targets, strict=True))
            tokens = np.array([two_tokens(reasoner, own, row, target.answer) for row, target in pairs], int)
            answers = np.array([(target.answer, own.answers.numbers[row]) for row, target in pairs], float)
            for key in self.swaps:
                if key.step == step:
                    task = Task(rows, self.swapped(key, swap), tokens.reshape(-1, N_TOKENS))
                    yield ("swap", key), task, answers.reshape(-1, 2)

    def astray(self, half: int, ids: list[int], seed: list[int], x: Tensor) -> Tensor:
        """As far from x as without the half, in a random direction."""
        return x + random_change(ablate(self.known, half, x) - x, ids, seed)

    def targets(self, batch: Batch, own: Own, step: int) -> tuple[np.ndarray, list[Target]]:
        """The places of the batch's questions whose value after `step` can be swapped, and into what."""
        others, possible = list(self.edits.columns(step)), self.edits.possible
        rows, found = [], []
        for row, number in enumerate(batch.rows):
            if own.answers.numbers[row] is None or own.answers.numbers[row] != batch.gold[row]:
                continue
            target = draw_target(self.examples[number], step, others, possible, self.edits.plan.settings.seed)
            if target:
                rows.append(row)
                found.append(target)
        return np.array(rows, int), found

    def swapped(self, key: SwapKey, swap: Swap) -> Callable[[Tensor], Tensor]:
        """The edit of a condition."""
        n_features = key.n_features or 0
        shift = self.class_means[swap.others] - self.class_means[swap.values]
        match key.condition:
            case "pca":
                return lambda x: x + along_axes(shift, self.axes, n_features)
            case "sae" | "several":
                return lambda x: x + features_change(self.known, x, swap, n_features)
            case "sae_long":
                return lambda x: x + as_long(swap_change(self.known, x, swap), shift)
            case "untrained":
                return lambda x: (
                    x
                    + as_long(
                        features_change(self.untrained, x, swap, n_features),
                        features_change(self.known, x, swap, n_features),
                    )
                )
            case "coactive":
                return lambda x: x + coactive_change(self.known, x, swap)
            case "random":
                return lambda x: x + random_change(swap_change(self.known, x, swap), swap.rows, swap.seed)
            case "random_long":
                return lambda x: x + random_change(shift, swap.rows, swap.seed)
            case "class_means":
                return lambda x: x + shift
            case "whole":
                return lambda x: torch.stack([self.x[row] for row in self.elsewhere(swap)])
        return self.mean.expand_as

    def elsewhere(self, swap: Swap) -> list[int]:
        """A training row with the other value for each question of a swap."""
        return [
            int(np.random.default_rng([*swap.seed, 10, row]).choice(self.class_rows[other]))
            for row, other in zip(swap.rows, swap.others, strict=True)
        ]

    def kept(self, name: Name) -> tuple[list[int], np.ndarray, Outcome]:
        """The questions of a task, what else is known of them, and the outcome, over all batches."""
        rows, beside, outcomes = zip(*self._kept[name], strict=True)
        return [row for some in rows for row in some], np.concatenate(beside), Outcome.together(outcomes)

    def ablation_records(self) -> list[dict[str, Any]]:
        seed, names, n_train = self.edits.plan.settings.seed, self.edits.concepts.names, len(self.cache.split.train)
        records = []
        for half in self.halves:
            rows, correct, edited = self.kept(("ablate", half))
            concept = self.told.get(half)
            about = {
                "concept": None if concept is None else names[concept],
                "f1": None if concept is None else finite(self.known.f1[concept]),
                "density": rounded(self.known.fired[half] / n_train),
                "sae": self.edits.sae_hash(self.key),
            }
            random, mean = self.kept(("astray", half))[2], self.kept(("mean", half))[2]
            fields = ablation_fields(rows, correct, edited, random, mean, seed)
            records.append(AblationKey(self.key, half_name(half)).fields() | about | fields)
        return records

    def swap_records(self) -> list[dict[str, Any]]:
        seed = self.edits.plan.settings.seed
        records = []
        for key in self.swaps:
            rows, answers, outcome = self.kept(("swap", key))
            random = self.kept(("swap", key._replace(condition=CHANCE, n_features=None)))[2]
            known = {"untrained": self.untrained, "sae": self.known}.get(key.condition)
            f1 = known.f1[list(self.edits.columns(key.step).values())] if known else np.array([np.nan])
            about = {"f1": finite(f1.mean()), "sae": self.edits.sae_hash(self.key)}
            fields = swap_fields(rows, answers[:, 1], answers[:, 0], outcome, random, seed)
            records.append(key.fields() | about | fields)
        return records


def two_tokens(reasoner: LatentReasoner, own: Own, row: int, number: float) -> tuple[int, int]:
    """The tokens with which a counterfactual and the original number begin, where both can be told."""
    span, answer = own.spans[row], own.answers.tokens[row]
    token = number_token(reasoner, answer, span, number)
    return (UNKNOWN, UNKNOWN) if token == UNKNOWN or span is None else (token, answer[span.first])


def finite(value: float) -> float | None:
    return rounded(float(value)) if np.isfinite(value) else None
