"""One cell's SAEs and its other representations held against the concepts: tables and scores.

    sae         halves of the SAE's latents
    untrained   halves of the same SAE as its recipe started it
    shuffled    halves of the SAE, the concepts dealt out to other rows: what the best of thousands reaches by chance
    raw         halves of the activation's dimensions
    pca         halves of the activation along the principal axes of the training rows
    probe       a linear probe of the activation, the ceiling; of a wide one its first PROBE_DIMENSIONS components

Coverage is the mean over concepts of the best F1 on the validation rows; its interval holds the middle 95 % of the
coverage over resamples of those rows, the same for everything that is compared.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.features.collect import Representation, collect_entries, principal_components, rows_of
from thought_saes.features.concepts import Concepts
from thought_saes.features.describe import describe_halves
from thought_saes.features.probe import Probe, fit_probes
from thought_saes.features.scores import (
    MONOSEMANTIC_PRECISION,
    Found,
    Halves,
    Split,
    bootstrap_weights,
    half_name,
    interval,
    judge,
    resampled_f1,
)
from thought_saes.results.names import AXES, SaeKey
from thought_saes.results.store import Results
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.prepared import AsStarted

CONCEPT_COLUMNS = [*AXES, "concept", "representation", "half", "f1", "precision", "recall", "threshold", "n_rows"]
# The probe's time grows with the cube of these.
PROBE_DIMENSIONS = 768


class CellScores(NamedTuple):
    """What is found of one cell."""

    features: pd.DataFrame  # a row a half of an SAE
    concepts: pd.DataFrame  # a row a concept x representation, by CONCEPT_COLUMNS
    cell: dict[str, Any]  # scores of raw, pca and probe
    saes: list[dict[str, Any]]  # scores of each SAE with its untrained and shuffled baselines


class _Judge:
    """Scores representations of one cell's rows against the concepts."""

    def __init__(self, cache: ActivationCache, cell: Cell, concepts: Concepts) -> None:
        self.cell, self.concepts = cell, concepts
        self.train, self.validation = cache.split.train, cache.split.validation
        generator = np.random.default_rng([*cell])
        self.dealt = np.arange(cache.n_examples)  # rows whose concepts the shuffled rows get
        for rows in (self.train, self.validation):
            self.dealt[rows] = generator.permutation(rows)
        self.weights = bootstrap_weights(len(self.validation))
        self.n_rows = concepts.labels.concepts[self.validation].sum(axis=0).astype(int)
        self.tables: list[pd.DataFrame] = []

    def halves(self, values: Representation, shuffled: bool = False) -> tuple[Found, Halves]:
        parts = [
            Split(values[rows], self.concepts.labels.take(self.dealt[rows] if shuffled else rows))
            for rows in (self.train, self.validation)
        ]
        return judge(*parts)

    def note(self, name: str, found: Found | Probe, key: SaeKey | None = None, dealt: bool = False) -> "Coverage":
        """Add the concepts' rows to the table; returns the coverage."""
        half, threshold = (
            (None, found.cut)
            if isinstance(found, Probe)
            else ([half_name(half) for half in found.half], found.threshold)
        )
        self.tables.append(
            pd.DataFrame(
                {
                    "layer": self.cell.layer,
                    "position": self.cell.position,
                    "latent_dim": key.latent_dim if key else pd.NA,
                    "k": key.k if key else pd.NA,
                    "concept": self.concepts.names,
                    "representation": name,
                    "half": half,
                    "f1": found.f1,
                    "precision": found.precision,
                    "recall": found.recall,
                    "threshold": threshold,
                    "n_rows": self.n_rows,
                },
                columns=CONCEPT_COLUMNS,
            ).astype({"latent_dim": "Int64", "k": "Int64", "half": "string"})
        )
        rows = self.dealt[self.validation] if dealt else self.validation
        return Coverage(found.f1, resampled_f1(found.predicted, self.concepts.labels.concepts[rows], self.weights))


class Coverage(NamedTuple):
    """F1 of every concept, and of every resample of the rows."""

    f1: np.ndarray  # (n_concepts,)
    resampled: np.ndarray  # (resamples, n_concepts)

    def of(self, concepts: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """The mean over `concepts`, with its interval."""
        low, high = interval(np.nanmean(self.resampled[:, concepts], axis=1))
        return {"coverage": float(np.mean(self.f1[concepts])), "low": low, "high": high}

    def record(self, concepts: Concepts) -> dict[str, Any]:
        """Over all concepts and by family."""
        family = concepts.labels.family
        by_family = {name: self.of(np.flatnonzero(family == index)) for index, name in enumerate(concepts.families)}
        return self.of() | {"families": by_family}

    def minus(self, other: "Coverage") -> dict[str, float]:
        """The difference of the two coverages, with the interval of the paired difference."""
        paired = np.nanmean(self.resampled, axis=1) - np.nanmean(other.resampled, axis=1)
        low, high = interval(paired)
        return {"difference": float(np.mean(self.f1) - np.mean(other.f1)), "low": low, "high": high}


def score_cell(
    cache: ActivationCache, cell: Cell, concepts: Concepts, results: Results, keys: Sequence[SaeKey], seed: int = 0
) -> CellScores:
    """Hold the SAEs `keys` of `results`, all of `cell`, against the concepts. `seed` is of the untrained SAEs.

    Raises InputError if a checkpoint is damaged or is of another input_dim.
    """
    x = rows_of(cache, cell)
    plain = x.numpy()
    judge_ = _Judge(cache, cell, concepts)
    raw = judge_.note("raw", judge_.halves(plain)[0])
    components = principal_components(x, judge_.train)
    pca = judge_.note("pca", judge_.halves(components)[0])
    train, validation = (concepts.labels.take(rows) for rows in (judge_.train, judge_.validation))
    probed = plain if plain.shape[1] <= PROBE_DIMENSIONS else components[:, :PROBE_DIMENSIONS]
    probe = judge_.note("probe", fit_probes(probed[judge_.train], train, probed[judge_.validation], validation))
    named = {"raw": raw, "pca": pca, "probe": probe}
    features, records = [], []
    as_started = AsStarted(lambda: x[judge_.train], seed)
    for key in keys:
        sae = results.sae(key, cache.input_dim)
        entries = collect_entries(sae, x)
        found, halves = judge_.halves(entries)
        features.append(describe_halves(key, entries, halves, concepts.names))
        records.append(_record(judge_, key, sae, x, found, halves, entries, raw, as_started.of(sae, key)))
    return CellScores(
        pd.concat(features, ignore_index=True),
        pd.concat(judge_.tables, ignore_index=True),
        {"layer": cell.layer, "position": cell.position}
        | {name: coverage.record(concepts) for name, coverage in named.items()},
        records,
    )


def _record(
    judge_: _Judge,
    key: SaeKey,
    sae: SparseAutoencoder,
    x: Tensor,
    found: Found,
    halves: Halves,
    entries: Any,
    raw: Coverage,
    start: SparseAutoencoder,
) -> dict[str, Any]:
    """The scores of one SAE."""
    concepts = judge_.concepts
    ours = judge_.note("sae", found, key)
    untrained = judge_.note("untrained", judge_.halves(collect_entries(start, x))[0], key)
    shuffled = judge_.note("shuffled", judge_.halves(entries, shuffled=True)[0], key, dealt=True)
    judged = ~np.isnan(halves.precise)
    monosemantic = int((halves.precise[judged] >= MONOSEMANTIC_PRECISION).sum())
    record = {
        name: coverage.record(concepts)
        for name, coverage in (("sae", ours), ("untrained", untrained), ("shuffled", shuffled))
    }
    gain = {
        name: record["sae"]["families"][name]["coverage"] - record["shuffled"]["families"][name]["coverage"]
        for name in concepts.families
    }
    return {
        **dict(zip(AXES, key.values, strict=True)),
        "fvu": sae.metrics.get("fvu"),
        "feature_death_rate": sae.metrics.get("feature_death_rate"),
        **record,
        "over_raw": ours.minus(raw),
        "over_untrained": ours.minus(untrained),
        "best_family": max(gain, key=lambda name: gain[name]),
        "monosemantic_share": monosemantic / judged.sum() if judged.any() else None,
        "monosemantic_halves": monosemantic,
        "judged_halves": int(judged.sum()),
        "splitting": float(halves.split_f1.mean()),
    }
