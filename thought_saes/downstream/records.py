"""What substitution measured: one record a condition in `substitution.json`, and what follows from all of them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thought_saes.common.errors import InputError
from thought_saes.common.files import write_json
from thought_saes.common.schema import read_checked
from thought_saes.downstream.formats import SubstitutionContent
from thought_saes.downstream.statistics import ResampledMean, benjamini_hochberg, mcnemar, resample_weights
from thought_saes.downstream.substitutes import Condition
from thought_saes.downstream.substitution import Scores
from thought_saes.models.layouts import CODI_THOUGHTS

SUBSTITUTION_FILE = "substitution.json"
CLEARS = 0.02  # accuracy of own above mean thoughts, below which shares of it say nothing
KEYS = ("regime", "layer", "position", "condition", "latent_dim", "k")


class RecordKey(NamedTuple):
    """What a record is of, in the order of KEYS; `position` is None in regime 'layer'."""

    regime: str
    layer: int
    position: int | None
    condition: Condition

    def fields(self) -> dict[str, Any]:
        return dict(zip(KEYS, (self.regime, self.layer, self.position, *self.condition), strict=True))


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in KEYS)


def place(key: tuple[Any, ...]) -> tuple[tuple[bool, Any], ...]:
    """By which the file's records are ordered; what has no position, latent_dim or k comes first."""
    return tuple((value is not None, value) for value in key)


class Tally:
    """The sums of some conditions as the questions stream past: its size does not depend on their number."""

    def __init__(self, n_conditions: int, seed: int) -> None:
        self._seed = seed
        self.n_questions = 0
        names = ("accuracy", "delta_accuracy", "agreement", "kl", "log_probability_change", "answered_anew")
        self._means = {name: ResampledMean(n_conditions) for name in names}
        self._right_to_wrong, self._wrong_to_right = np.zeros(n_conditions, int), np.zeros(n_conditions, int)
        self._error, self._spread = np.zeros(n_conditions), np.zeros(n_conditions)

    def add(self, rows: Sequence[int], own: Scores, scores: Sequence[Scores]) -> None:
        """Take in a batch: the unmodified model's scores and those of every condition."""
        correct, agreement, kl, change, anew, error, spread = (np.stack(values) for values in zip(*scores, strict=True))
        weights = resample_weights(self._seed, rows)
        self.n_questions += len(rows)
        delta = correct - own.correct
        for name, values in zip(self._means, (correct, delta, agreement, kl, change, anew), strict=True):
            self._means[name].add(values, weights)
        self._right_to_wrong += (delta == -1).sum(1)
        self._wrong_to_right += (delta == 1).sum(1)
        self._error += error.sum(1)
        self._spread += spread.sum(1)

    def record(self, index: int) -> dict[str, Any]:
        """The measurements of one condition under their names in the file."""
        means = self._means
        accuracy = means["accuracy"]
        worse, better = int(self._right_to_wrong[index]), int(self._wrong_to_right[index])
        fields: dict[str, Any] = {
            "n_questions": self.n_questions,
            "n_correct": int(accuracy.total[index]) if accuracy.count[index] else None,
            "n_with_number": int(means["kl"].count[index]),
        }
        for name, mean in means.items():
            fields[name] = mean.mean(index)
            if name != "answered_anew":
                fields[f"{name}_interval"] = mean.interval(index)
        spread = self._spread[index]
        return fields | {
            "kl_sd": means["kl"].sd(index),
            "fvu": float(self._error[index] / spread) if spread else 0.0,
            "right_to_wrong": worse,
            "wrong_to_right": better,
            "p_value": mcnemar(worse, better),
        }


def conclude(records: list[dict[str, Any]]) -> None:
    """Add to the records what follows from others: q-values over cells, and the recovered shares.

    `q_value`: Benjamini and Hochberg over the cells of one condition and regime. `accuracy_recovered` =
    (accuracy - mean's) / (own - mean's), None unless the interval of own - mean clears CLEARS; `kl_recovered` =
    1 - kl / mean's.
    """
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    means = {}
    for record in records:
        families[record["regime"], record["condition"], record["latent_dim"], record["k"]].append(record)
        if record["condition"] == "mean":
            means[record["regime"], record["layer"], record["position"]] = record
    for family in families.values():
        for record, q in zip(family, benjamini_hochberg([one["p_value"] for one in family]), strict=True):
            record["q_value"] = q
    for record in records:
        mean = means.get((record["regime"], record["layer"], record["position"]))
        record["accuracy_recovered"] = record["kl_recovered"] = None
        if mean is None or mean["delta_accuracy"] is None or record["accuracy"] is None:
            continue
        if -mean["delta_accuracy_interval"][1] > CLEARS:
            record["accuracy_recovered"] = (record["accuracy"] - mean["accuracy"]) / -mean["delta_accuracy"]
            record["kl_recovered"] = 1 - record["kl"] / mean["kl"] if mean["kl"] else None


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def check_identity(path: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises InputError if the file's metadata are of another model, of other questions or settings."""
    there = {"n_thoughts": CODI_THOUGHTS} | there  # what every file meant that does not say it
    if different := [name for name in identity if there.get(name) != identity[name]]:
        name = different[0]
        raise InputError(
            f"{path} is of other answers ({name}: {there.get(name)} there, {identity[name]} asked for): "
            "remove it, or choose another --results"
        )


class Records:
    """`substitution.json`: whole after every unit of work, and taken up by the same command.

    Raises InputError if the folder holds records of another model, of other questions or settings.
    """

    def __init__(self, results: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = results / SUBSTITUTION_FILE, identity
        self.records: dict[tuple[Any, ...], dict[str, Any]] = {}
        if not self.path.exists():
            return
        content = read_checked(self.path, SubstitutionContent, "remove it to measure anew")
        there = content["metadata"]
        check_identity(self.path, there, identity)
        self.records = {key_of(record): record for record in content["records"]}

    def has(self, key: RecordKey, sae_hash: str | None) -> bool:
        """Whether the record is there, and of the same SAE."""
        record = self.records.get(tuple(key.fields().values()))
        return record is not None and record.get("sae") == sae_hash

    def write(self, fresh: Sequence[dict[str, Any]], metadata: dict[str, Any]) -> None:
        """Add records and write the whole file."""
        self.records |= {key_of(record): record for record in fresh}
        ordered = [self.records[key] for key in sorted(self.records, key=place)]
        conclude(ordered)
        write_json(self.path, {"metadata": self.identity | metadata, "records": ordered})
