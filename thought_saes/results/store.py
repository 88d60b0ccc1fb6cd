"""The files of a results folder: the only code that reads or writes them.

    grid_metrics_pos{p}_layer{l}_latent{latent_dim}.json   the metrics of a cell's SAEs of one latent_dim, by k
    pos{p}_layer{l}_d{latent_dim}_k{k}.pt                  an SAE
    baselines_pos{p}_layer{l}.json                         what a cell's SAEs are compared with
    grid_plan.json, last_run.json                          what is to be there, and what the last run took

A metrics file is written last: an SAE that it does not name is not finished.
"""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thought_saes.activations.cell import Cell
from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import read_json, write_json
from thought_saes.common.schema import Record, check, read_checked
from thought_saes.results.formats import BaselinesContent, GridPlan, LastRun, MetricsContent
from thought_saes.results.names import (
    AXES,
    SaeKey,
    baselines_path,
    checkpoint_path,
    last_run_path,
    metrics_path,
    plan_path,
)
from thought_saes.results.recipe import Recipe, Run

if TYPE_CHECKING:
    from thought_saes.saes.sae import SparseAutoencoder

SHARED = ("backend", "device", "versions")  # also said once in a file whose SAEs all agree on it


@dataclass(frozen=True)
class MetricsFile:
    """What a metrics file says, ours or the original's."""

    path: Path
    cell: Cell
    latent_dim: int
    metadata: Mapping[str, Any]
    run: Run
    by_k: Mapping[int, dict[str, Any]]
    without_checkpoint: frozenset[int]  # k of SAEs whose weights were not kept
    provenance: Mapping[int, dict[str, Any]]  # by k, where it is recorded

    @classmethod
    def of(cls, path: Path, content: Any) -> MetricsFile:
        """Raises DamagedFile if `content` is no metrics file's."""
        checked = check(content, MetricsContent, str(path))
        metadata, results = content["metadata"], content["results"]
        check(metadata, Recipe, f"{path}: metadata")
        if len(results) != 1:
            raise DamagedFile(f"{path}: results is of {len(results)} latent_dims, not of one")
        [(latent_dim, by_k)] = results.items()
        # Before provenance was recorded for each SAE, a file said it once.
        once = {name: metadata[name] for name in SHARED if name in metadata}
        made = checked.metadata.provenance
        if made is None:
            made = dict.fromkeys(by_k, once) if once else {}
        return cls(
            path=path,
            cell=Cell(metadata["layer"], metadata["position"]),
            latent_dim=int(latent_dim),
            metadata=metadata,
            run=Run.of(metadata),
            by_k={int(k): metrics for k, metrics in by_k.items()},
            without_checkpoint=frozenset(checked.metadata.without_checkpoint or ()),
            provenance={int(k): one for k, one in made.items()},
        )


WRITING = threading.Lock()  # among the threads of this process: a metrics file is read, and written with an SAE more


class Results:
    """A folder of results, which need not exist yet."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def metrics_files(self) -> Iterator[MetricsFile]:
        """Every metrics file, in the order of their names. Raises DamagedFile at the first that is damaged."""
        pattern = re.compile(r"grid_metrics_pos\d+_layer\d+_latent\d+\.json")
        names = sorted(path.name for path in self.folder.glob("grid_metrics_pos*.json") if pattern.fullmatch(path.name))
        for name in names:
            yield self._read_metrics(self.folder / name)

    def metrics(self, cell: Cell, latent_dim: int) -> MetricsFile | None:
        """The metrics of a cell's SAEs of one latent_dim; None if there are none. Raises DamagedFile."""
        path = metrics_path(self.folder, cell, latent_dim)
        if not path.exists():
            return None
        found = self._read_metrics(path)
        if (found.cell, found.latent_dim) != (cell, latent_dim):
            raise DamagedFile(f"{path} is of {found.cell}, latent_dim {found.latent_dim}, not of what its name says")
        return found

    def _read_metrics(self, path: Path) -> MetricsFile:
        return MetricsFile.of(path, read_json(path))

    def add(
        self,
        key: SaeKey,
        sae: SparseAutoencoder,
        run: Run,
        about: Mapping[str, Any],
        made: Mapping[str, Any],
        keep_checkpoint: bool,
    ) -> None:
        """Write an SAE with its metrics, beside those of the same run that the metrics file already holds.

        `about` is of the cell's rows, `made` the SAE's provenance. A metrics file that cannot be read, or is of another
        run, is replaced: the caller has found that before, and trains all of its SAEs again. Several threads of a
        process may add SAEs at once.
        """
        path = metrics_path(self.folder, key.cell, key.latent_dim)
        with WRITING:
            if self._of_run(key, run) is None:
                path.unlink(missing_ok=True)  # its checkpoints will not be its own
        where = {"position": key.cell.position, "layer": key.cell.layer}
        sae.config |= where | run.record() | {"provenance": dict(made)}
        checkpoint = checkpoint_path(self.folder, key)
        if keep_checkpoint:
            sae.save(checkpoint)
        else:
            checkpoint.unlink(missing_ok=True)  # one of another run would be taken for this SAE's
        with WRITING:
            self._add_metrics(path, key, sae, run, where | dict(about), made, keep_checkpoint)

    def _add_metrics(
        self,
        path: Path,
        key: SaeKey,
        sae: SparseAutoencoder,
        run: Run,
        about: Mapping[str, Any],
        made: Mapping[str, Any],
        has_checkpoint: bool,
    ) -> None:
        there = self._of_run(key, run)
        by_k = dict(there.by_k) if there else {}
        unkept = (set(there.without_checkpoint) if there else set()) - {key.k}
        made_by_k = dict(there.provenance) if there else {}
        if not has_checkpoint:
            unkept.add(key.k)
        by_k[key.k], made_by_k[key.k] = sae.metrics, dict(made)
        metadata = dict(about)
        metadata |= agreed(made_by_k.values())
        if unkept:
            metadata["without_checkpoint"] = sorted(unkept)
        metadata |= run.record()
        metadata["provenance"] = {str(k): made_by_k[k] for k in sorted(made_by_k)}
        ordered = {str(k): by_k[k] for k in sorted(by_k)}
        write_json(path, {"metadata": metadata, "results": {str(key.latent_dim): ordered}})

    def _of_run(self, key: SaeKey, run: Run) -> MetricsFile | None:
        try:
            there = self.metrics(key.cell, key.latent_dim)
        except DamagedFile:
            return None
        return there if there is not None and not there.run.differences(run) else None

    def baselines(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell's SAEs are compared with; None if it was not measured. Raises DamagedFile."""
        return _read(baselines_path(self.folder, cell), BaselinesContent, "measure it anew")

    def write_baselines(self, cell: Cell, content: Mapping[str, Any]) -> None:
        """Replace what a cell's SAEs are compared with."""
        write_json(baselines_path(self.folder, cell), content)

    def plan(self) -> dict[str, Any]:
        """What the runs into this folder set out to train, by axis, and what the activations are of.

        Empty if nothing is recorded. Raises DamagedFile.
        """
        return _read(plan_path(self.folder), GridPlan, "remove it, and what is there is what was planned") or {}

    def record_plan(self, values: Mapping[str, Sequence[int]], origin: Mapping[str, Any]) -> None:
        """Add a run's values of every axis to those that the folder is meant to hold, and what the rows are of."""
        planned = self.plan()
        for axis in AXES:
            planned[axis] = sorted({*planned.get(axis, []), *values[axis]})
        write_json(plan_path(self.folder), planned | dict(origin))

    def last_run(self) -> dict[str, Any] | None:
        """What the last run of the whole grid took; None if there was none. Raises DamagedFile."""
        return _read(last_run_path(self.folder), LastRun, "remove it: it only describes a run")

    def write_last_run(self, content: Mapping[str, Any]) -> None:
        """Replace what the last run took."""
        write_json(last_run_path(self.folder), content)

    def sae(self, key: SaeKey, input_dim: int | None = None) -> SparseAutoencoder:
        """One of the folder's SAEs, for rows of `input_dim` values.

        Raises InputError if its checkpoint is absent, damaged, for other rows, or not of what its name says.
        """
        from thought_saes.saes.checkpoint import load_sae  # which brings torch: who reads metrics need not wait for it

        path = checkpoint_path(self.folder, key)
        try:
            sae = load_sae(path)
        except FileNotFoundError:
            raise InputError(f"there is no SAE {path}: train it, or choose others") from None
        except ValueError as problem:
            raise DamagedFile(str(problem)) from problem
        check(sae.config, Recipe, f"{path}: config")
        other = [f"{name} {sae.config[name]}" for name in ("layer", "position") if _differs(sae, name, key)]
        if other or (sae.latent_dim, sae.k) != (key.latent_dim, key.k):
            holds = ", ".join([*other, f"latent_dim {sae.latent_dim}", f"k {sae.k}"])
            raise DamagedFile(f"{path} holds {holds}: not what its name says")
        if input_dim not in (None, sae.input_dim):
            raise InputError(f"{path} is for vectors of {sae.input_dim} values, the activations have {input_dim}")
        return sae

    def checkpoint_problem(self, key: SaeKey) -> str | None:
        """What is wrong with a checkpoint, by the checksums in it; None if it is whole."""
        path = checkpoint_path(self.folder, key)
        try:
            with zipfile.ZipFile(path) as archive:
                return f"{path} is damaged" if archive.testzip() else None
        except FileNotFoundError:
            return f"{path} is absent"
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
            return f"{path} is damaged"


def _read(path: Path, model: type[Record], way_out: str) -> dict[str, Any] | None:
    """What a file that need not be there says. Raises DamagedFile, which ends with the way out."""
    return read_checked(path, model, way_out) if path.exists() else None


def _differs(sae: SparseAutoencoder, name: str, key: SaeKey) -> bool:
    """Whether a checkpoint says that it is of another layer or position than its key."""
    return sae.config.get(name) not in (None, getattr(key.cell, name))


def agreed(made: Any) -> dict[str, Any]:
    """What all SAEs of a file were made with: those of SHARED on which they agree."""
    made = list(made)
    return {name: made[0][name] for name in SHARED if all(one.get(name) == made[0].get(name) for one in made)}
