"""The run of interpret_features.py: cells one after another, their tables kept until all are one.

features.parquet        a row a half of every SAE looked at
concepts.parquet        a row a concept x representation x cell (and SAE)
coverage.csv            a row an SAE: its coverage beside the baselines
concept_scores.json     coverage by families of concepts, monosemantic share, splitting; baselines, intervals
parts/                  the same of each cell, by which a killed run resumes
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import read_json, write_bytes, write_json
from thought_saes.common.processes import done_side_by_side
from thought_saes.common.schema import read_record
from thought_saes.features.cells import score_cell
from thought_saes.features.collect import collect_entries, rows_of
from thought_saes.features.concepts import Concepts
from thought_saes.features.formats import CellScoresFile
from thought_saes.features.matches import Halved, best_matches, halve
from thought_saes.features.summary import coverage_table
from thought_saes.features.tables import CONCEPTS, COVERAGE, FEATURES, SCORES
from thought_saes.results.names import SLICE_K, SLICE_LATENT_DIM, SaeKey, checkpoint_keys, checkpoint_path
from thought_saes.results.store import Results

UNTRAINED = "as its recipe starts"  # of parts that say less, nn.Linear's start was compared, whatever the recipe


class Chosen(NamedTuple):
    """The SAEs to look at."""

    keys: dict[Cell, list[SaeKey]]  # all that are scored
    latent_dim: int  # those of this shape get a page and are matched
    k: int


def there(results: Path) -> list[SaeKey]:
    """The SAEs whose checkpoints are in `results`, sorted. Raises InputError if there are none."""
    keys = checkpoint_keys(results)
    if not keys:
        raise InputError(f"no checkpoints in {results}: train_all_layers_positions.py writes them")
    return keys


def choose_saes(results: Path, cells: Sequence[Cell], latent_dim: int, k: int, every: bool) -> Chosen:
    """The SAEs of `cells` of one latent_dim and k, or of `every` one.

    Where the results lack the published latent_dim or k, the middle value stands in. Raises InputError if they lack
    another one that was asked for, or an SAE of a cell.
    """
    keys = [key for key in there(results) if key.cell in set(cells)]
    picked = []
    for name, wanted, published in (("latent_dim", latent_dim, SLICE_LATENT_DIM), ("k", k, SLICE_K)):
        values = sorted({getattr(key, name) for key in keys})
        if wanted not in values and (wanted != published or not values):
            raise InputError(f"{results} has no SAE of {name} {wanted} there; it has {', '.join(map(str, values))}")
        picked.append(wanted if wanted in values else values[len(values) // 2])
    shape = picked[0], picked[1]
    by_cell: dict[Cell, list[SaeKey]] = {}
    for cell in cells:
        if SaeKey(cell, *shape) not in keys:
            raise InputError(f"no file {checkpoint_path(results, SaeKey(cell, *shape))}")
        by_cell[cell] = [key for key in keys if key.cell == cell and (every or key[1:] == shape)]
    return Chosen(by_cell, *shape)


def to_parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


class _Part(NamedTuple):
    """The files of one cell's tables."""

    features: Path
    concepts: Path
    scores: Path  # written last, with the identity of what they are of

    def is_of(self, identity: str) -> bool:
        """Whether the cell is done: its files are whole, and of this identity. A damaged one is made anew."""
        try:
            scores = read_record(self.scores, CellScoresFile)
            return (scores.identity, scores.tables) == (identity, self.hash_of_tables())
        except (FileNotFoundError, DamagedFile):
            return False

    def hash_of_tables(self) -> str:
        return hashlib.sha256(self.features.read_bytes() + self.concepts.read_bytes()).hexdigest()[:16]


def _part(output: Path, cell: Cell) -> _Part:
    stem = f"pos{cell.position}_layer{cell.layer}"
    folder = output / "parts"
    return _Part(*(folder / f"{stem}_{name}" for name in (FEATURES, CONCEPTS, SCORES)))


def score_cells(
    cache: ActivationCache, results: Path, output: Path, chosen: Chosen, concepts: Concepts, seed: int, workers: int
) -> dict[Cell, _Part]:
    """Score every cell that is not done yet; returns where each one's tables are. Shows its progress.

    With several `workers` as many cells at a time, each in a process with one core.
    """
    (output / "parts").mkdir(parents=True, exist_ok=True)
    parts, left = {}, []
    for cell, keys in chosen.keys.items():
        part = parts[cell] = _part(output, cell)
        identity = _identity(cache, cell, concepts, [checkpoint_path(results, key) for key in keys], seed)
        if not part.is_of(identity):
            left.append(_Job(cache, cell, concepts, results, keys, seed, part, identity))
    n_saes = sum(map(len, chosen.keys.values()))
    n_left = sum(len(job.keys) for job in left)
    with tqdm(total=n_saes, initial=n_saes - n_left, unit="SAE") as bar:
        for n_done in done_side_by_side(_score, left, workers):
            bar.update(n_done)
    return parts


class _Job(NamedTuple):
    """A cell to score, and where its tables go."""

    cache: ActivationCache
    cell: Cell
    concepts: Concepts
    results: Path
    keys: list[SaeKey]
    seed: int
    part: _Part
    identity: str


def _score(job: _Job) -> int:
    """Write the tables of one cell; returns the number of its SAEs."""
    job.part.scores.unlink(missing_ok=True)  # first: the tables about to be written are not what it is of
    found = score_cell(job.cache, job.cell, job.concepts, Results(job.results), job.keys, job.seed)
    write_bytes(job.part.features, to_parquet(found.features))
    write_bytes(job.part.concepts, to_parquet(found.concepts))
    about = {"identity": job.identity, "tables": job.part.hash_of_tables()}
    write_json(job.part.scores, about | {"cell": found.cell, "saes": found.saes})
    return len(job.keys)


def _identity(cache: ActivationCache, cell: Cell, concepts: Concepts, checkpoints: Sequence[Path], seed: int) -> str:
    """Equal exactly when the same tables would come out."""
    labels = concepts.labels
    digest = hashlib.sha256(json.dumps([cache.fingerprint(cell), concepts.names, seed, UNTRAINED]).encode())
    for array in (labels.concepts.indptr, labels.concepts.indices, labels.defined.indices, labels.family):
        digest.update(array.astype("<i8").tobytes())
    for path in checkpoints:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def match_cells(cache: ActivationCache, folders: Sequence[Path], chosen: Chosen) -> dict[Cell, dict[str, Any]]:
    """Of each cell, the closest halves of the SAEs of its layer, of its position, and of it in the other `folders`.

    SAEs of the page's latent_dim and k alone. By half: a list of (where, half, correlation).
    """
    halved: dict[tuple[Path, Cell], Halved] = {}
    for cell in tqdm(chosen.keys, unit="cell", desc="matches", leave=False):
        x = rows_of(cache, cell)
        for folder in folders:
            key = SaeKey(cell, chosen.latent_dim, chosen.k)
            if folder == folders[0] or checkpoint_path(folder, key).exists():
                halved[folder, cell] = halve(collect_entries(Results(folder).sae(key, cache.input_dim), x))
    found = {}
    for cell in tqdm(chosen.keys, unit="cell", desc="matches", leave=False):
        others = {
            page_name(other) if folder == folders[0] else f"{folder.name} {page_name(other)}": theirs
            for (folder, other), theirs in halved.items()
            if (
                folder == folders[0]
                and other != cell
                and (other.layer == cell.layer or other.position == cell.position)
            )
            or (folder != folders[0] and other == cell)
        }
        found[cell] = best_matches(halved[folders[0], cell], others)
    return found


def page_name(cell: Cell) -> str:
    """What a cell's page is called, without `.html`."""
    return f"pos{cell.position}_layer{cell.layer}"


def join_parts(
    parts: Mapping[Cell, _Part],
    matches: Mapping[Cell, Mapping[str, Any]],
    lenses: Callable[[Cell, pd.DataFrame], dict[str, list[Any]]] | None,
    chosen: Chosen,
    output: Path,
    facts: Any,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write the four files of all cells; returns the halves and the scores.

    `lenses` gives the columns of what the halves of a cell's page, which it is given, say to the model.
    """
    tables = []
    for cell, part in parts.items():
        table = pd.read_parquet(part.features)
        shown = (table["latent_dim"] == chosen.latent_dim) & (table["k"] == chosen.k)
        told = [matches[cell].get(half, []) if here else [] for half, here in zip(table["half"], shown, strict=True)]
        table["matches"] = [[f"{where} {half}" for where, half, _ in found] for found in told]
        table["match_correlations"] = [[value for *_, value in found] for found in told]
        if lenses is not None:
            for name, values in lenses(cell, table[shown]).items():
                table[name] = [[] for _ in range(len(table))]
                table.loc[shown, name] = pd.Series(values, index=table.index[shown], dtype=object)
        tables.append(table)
    features = pd.concat(tables, ignore_index=True)
    records = [read_json(part.scores) for part in parts.values()]
    scores = {
        "metadata": facts,
        "cells": [record["cell"] for record in records],
        "saes": [sae for record in records for sae in record["saes"]],
    }
    concepts = pd.concat([pd.read_parquet(part.concepts) for part in parts.values()], ignore_index=True)
    write_bytes(output / FEATURES, to_parquet(features))
    write_bytes(output / CONCEPTS, to_parquet(concepts))
    write_json(output / SCORES, scores)
    write_bytes(output / COVERAGE, coverage_table(scores).to_csv(index=False, float_format="%.4f").encode())
    return features, scores
