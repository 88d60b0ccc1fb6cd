"""What is left to do of a grid, cut into the jobs that workers take."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.common.machine import check_disk, there_already
from thought_saes.results.names import checkpoint_path
from thought_saes.results.store import Results
from thought_saes.saes.checkpoint import checkpoint_bytes
from thought_saes.training.baselines import baselines_are_there
from thought_saes.training.config import TrainConfig
from thought_saes.training.existing import find_existing
from thought_saes.training.jobs import Job, MeasureCell, TrainSaes
from thought_saes.training.run import Part

Item = TypeVar("Item")
# A metrics file: some 900 bytes for each SAE and as much for the rest.
METRICS_BYTES = 900


class Plan(NamedTuple):
    """What a run will do."""

    jobs: list[Job]
    n_done: int  # SAEs that are there already

    @property
    def n_saes(self) -> int:
        return sum(job.n_saes for job in self.jobs)


def plan_jobs(
    config: TrainConfig,
    cache: ActivationCache,
    cells: Sequence[Cell],
    latent_dims: Sequence[int],
    cells_per_stack: Callable[[int], int] = lambda latent_dim: 1,
) -> Plan:
    """What is left to do in `cells`. `cells_per_stack` says for each latent_dim how many cells make a job.

    Says on stdout what is damaged and will be trained again. Raises InputError if a cell's activations are not finite,
    or if an SAE is of another run and `config.overwrite` is off.
    """
    results = Results(config.results)
    parts: dict[int, list[Part]] = {latent_dim: [] for latent_dim in sorted(latent_dims, reverse=True)}
    unmeasured: dict[Cell, MeasureCell] = {}
    n_done, n_metrics_only, differences = 0, 0, []
    for cell in tqdm(cells, desc="checking activations", unit="cell", leave=False, delay=1):
        fingerprint = cache.fingerprint(cell)
        run = config.run(fingerprint)
        if not baselines_are_there(results, cell, run, latent_dims, config.k_values, config.gaussian_control):
            unmeasured[cell] = MeasureCell(cell, tuple(latent_dims), fingerprint)
        for latent_dim in parts:
            existing = find_existing(results, cell, latent_dim, config.k_values, run, config.no_checkpoints)
            for problem in existing.damaged:
                tqdm.write(f"{problem}: its SAEs are trained again")
            if existing.difference:
                differences.append(existing.difference)
            n_done += len(existing.done)
            n_metrics_only += existing.n_metrics_only
            if left := tuple(k for k in config.k_values if k not in existing.done):
                parts[latent_dim].append(Part(cell, latent_dim, left, fingerprint))
    if differences and not config.overwrite:
        raise InputError(
            f"{config.results} holds SAEs trained with other settings ({differences[0]}; {len(differences)} files "
            "in all): choose another --results, or --overwrite them"
        )
    if n_metrics_only:
        print(f"{n_metrics_only:,} SAEs have metrics and, by --no-checkpoints, no checkpoint: they are trained again")
    stacks = (batched(parts[latent_dim], cells_per_stack(latent_dim)) for latent_dim in parts)
    # Cell by cell, and of a cell the longest first, for an even end; a cell is measured before its SAEs train.
    jobs: list[Job] = []
    for turn in zip_longest(*stacks):
        for stack in turn:
            if stack:
                jobs += [unmeasured.pop(part.cell) for part in stack if part.cell in unmeasured]
                jobs.append(TrainSaes(stack[0].latent_dim, stack))
    return Plan([*jobs, *unmeasured.values()], n_done)


def batched(items: Sequence[Item], n: int) -> Iterator[tuple[Item, ...]]:
    """Neighbouring items, n at a time; the last may be fewer."""
    return (tuple(items[start : start + n]) for start in range(0, len(items), n))


def check_room(config: TrainConfig, input_dim: int, jobs: Sequence[Job]) -> None:
    """Raises InputError if the disk is too small for what `jobs` write."""
    way_out = "train fewer SAEs" if config.no_checkpoints else "keep the metrics only, with --no-checkpoints"
    check_disk(config.results, bytes_to_write(config, input_dim, jobs), way_out)


def bytes_to_write(config: TrainConfig, input_dim: int, jobs: Sequence[Job]) -> int:
    """What the files of `jobs` need of the disk, beyond those that they replace."""
    n_bytes = 0
    for job in jobs:
        for part in job.parts if isinstance(job, TrainSaes) else ():
            n_bytes += (len(part.k_values) + 1) * METRICS_BYTES
            if not config.no_checkpoints:
                n_bytes += len(part.k_values) * checkpoint_bytes(input_dim, part.latent_dim)
                n_bytes -= there_already(checkpoint_path(config.results, key) for key in part.keys)
    return n_bytes
