"""What edits of single features measured: two kinds of records in `edits.json`, and what follows from all of them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thought_saes.common.files import write_bytes
from thought_saes.common.schema import read_checked
from thought_saes.downstream.edit_findings import EDITS_FILE
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.downstream.edit_tasks import Outcome
from thought_saes.downstream.records import check_identity, place
from thought_saes.downstream.statistics import ResampledMean, benjamini_hochberg, mcnemar, resample_weights
from thought_saes.results.names import SaeKey

ABLATION_KEYS = ("layer", "position", "latent_dim", "k", "half")
SWAP_KEYS = ("layer", "position", "latent_dim", "k", "step", "condition", "n_features")
DIGITS = 4  # of a number in the file


class AblationKey(NamedTuple):
    sae: SaeKey
    half: str

    def fields(self) -> dict[str, Any]:
        return dict(zip(ABLATION_KEYS, (*self.sae.values, self.half), strict=True))


class SwapKey(NamedTuple):
    sae: SaeKey
    step: int
    condition: str
    n_features: int | None = None

    def fields(self) -> dict[str, Any]:
        return dict(zip(SWAP_KEYS, (*self.sae.values, *self[1:]), strict=True))


class Means:
    """Means and intervals over some questions, the same resamples for whatever is compared."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self._weights = resample_weights(seed, rows) if len(rows) else np.zeros((0, 1))

    def of(self, name: str, values: np.ndarray, interval: bool = True) -> dict[str, Any]:
        """`name` and `name`_interval of values (n_questions,), NaN where there is none."""
        mean = ResampledMean(1, self._weights.shape[1])
        mean.add(values[None], self._weights)
        fields: dict[str, Any] = {name: rounded(mean.mean(0))}
        if interval:
            found = mean.interval(0)
            fields[f"{name}_interval"] = found and [rounded(value) for value in found]
        return fields


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def ablation_fields(
    rows: Sequence[int], own_correct: np.ndarray, edited: Outcome, random: Outcome, mean: Outcome, seed: int
) -> dict[str, Any]:
    """The measurements of a feature taken out, all on the questions `rows` on which it fires."""
    means = Means(rows, seed)
    change = edited.correct - own_correct
    worse, better = int((change == -1).sum()), int((change == 1).sum())
    fields = {
        "n_questions": len(rows),
        "right_to_wrong": worse,
        "wrong_to_right": better,
        "p_value": rounded(mcnemar(worse, better)),
        **means.of("length", edited.length, interval=False),
    }
    for name in ("agreement", "kl", "log_probability_change"):
        fields |= means.of(name, getattr(edited, name))
    for control, outcome in (("random", random), ("mean", mean)):
        for name in ("agreement", "kl"):
            fields |= means.of(f"{control}_{name}", getattr(outcome, name), interval=False)
    over = means.of("kl_over_random", edited.kl - random.kl)
    return fields | {"kl_over_random_interval": over["kl_over_random_interval"]}


def swap_fields(
    rows: Sequence[int],
    originals: np.ndarray,
    counterfactuals: np.ndarray,
    outcome: Outcome,
    random: Outcome,
    seed: int,
) -> dict[str, Any]:
    """The measurements of one condition of a swap on the questions `rows`, by the numbers of their two answers."""
    means = Means(rows, seed)
    said, original = (outcome.number == numbers for numbers in (counterfactuals, originals))
    by_chance = random.number == counterfactuals
    fields = {
        "n_questions": len(rows),
        "n_with_probability": int(np.isfinite(outcome.probabilities).all(axis=1).sum()),
        "p_value": rounded(mcnemar(int((said & ~by_chance).sum()), int((by_chance & ~said).sum()))),
        **means.of("length", outcome.length, interval=False),
    }
    for name, values in (("counterfactual", said), ("original", original), ("other", ~said & ~original)):
        fields |= means.of(name, values.astype(float))
    for column, name in enumerate(("p_counterfactual", "p_original")):
        fields |= means.of(name, outcome.probabilities[:, column])
    return fields


def conclude(ablations: Sequence[dict[str, Any]], swaps: Sequence[dict[str, Any]]) -> None:
    """Add q-values: over all features that were taken out, and over the cells and steps of a swap's condition."""
    families: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in (*ablations, *swaps):
        names = ("latent_dim", "k", "condition", "n_features")
        families[tuple(record.get(name) for name in names)].append(record)
    for family in families.values():
        for record, q in zip(family, benjamini_hochberg([one["p_value"] for one in family]), strict=True):
            record["q_value"] = rounded(q)


class EditRecords:
    """`edits.json`: whole after every position, and taken up by the same command.

    Raises InputError if the file is damaged, or of another model, of other questions or settings.
    """

    def __init__(self, results: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = results / EDITS_FILE, identity
        self.ablations: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.swaps: dict[tuple[Any, ...], dict[str, Any]] = {}
        if not self.path.exists():
            return
        content = read_checked(self.path, EditsContent, "remove it to measure anew")
        check_identity(self.path, content["metadata"], identity)
        for kept, keys, found in (
            (self.ablations, ABLATION_KEYS, content["ablations"]),
            (self.swaps, SWAP_KEYS, content["swaps"]),
        ):
            kept |= {tuple(record[name] for name in keys): record for record in found}

    def __len__(self) -> int:
        return len(self.ablations) + len(self.swaps)

    def has(self, key: SwapKey, sae_hash: str) -> bool:
        """Whether the record is there, and of the same SAE."""
        record = self.swaps.get(tuple(key.fields().values()))
        return record is not None and record.get("sae") == sae_hash

    def has_ablations(self, sae: SaeKey, sae_hash: str) -> bool:
        """Whether the features of an SAE have been taken out: they are written together."""
        there = (record for key, record in self.ablations.items() if key[:4] == sae.values)
        return any(record.get("sae") == sae_hash for record in there)

    def write(
        self, ablations: Sequence[dict[str, Any]], swaps: Sequence[dict[str, Any]], metadata: dict[str, Any]
    ) -> None:
        """Add records and write the whole file."""
        self.ablations |= {tuple(record[name] for name in ABLATION_KEYS): record for record in ablations}
        self.swaps |= {tuple(record[name] for name in SWAP_KEYS): record for record in swaps}
        ordered = [[kept[key] for key in sorted(kept, key=place)] for kept in (self.ablations, self.swaps)]
        conclude(*ordered)
        # A record a line: the file is half as long.
        ablations_text, swaps_text = (",\n".join(map(json.dumps, records)) for records in ordered)
        write_bytes(
            self.path,
            (
                f'{{"metadata": {json.dumps(self.identity | metadata, indent=2)},\n'
                f'"ablations": [\n{ablations_text}\n],\n"swaps": [\n{swaps_text}\n]}}\n'
            ).encode(),
        )
