"""What a training run would take: for `--dry-run` of `train_grid.py` and `train_all_layers_positions.py`.

The time comes from training one stack of each latent_dim for some seconds, measuring one of its SAEs, and, where they
are still to be measured, the baselines of one cell.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.machine import free_bytes
from thought_saes.common.text import in_bytes
from thought_saes.results.recipe import Recipe
from thought_saes.saes.measures import evaluate
from thought_saes.saes.sae import SparseAutoencoder, n_weights
from thought_saes.training.baselines import baselines_of
from thought_saes.training.config import TrainConfig
from thought_saes.training.frame import bytes_of_rows
from thought_saes.training.jobs import Job, MeasureCell, TrainSaes
from thought_saes.training.plan import Plan, bytes_to_write
from thought_saes.training.prepared import Prepared
from thought_saes.training.rows import load_cells
from thought_saes.training.run import lacks_kernel, train_saes
from thought_saes.training.stack import bytes_of_a_cell
from thought_saes.training.start import epoch_orders

# A stack trains for an epoch, then for two, four and so on, until a run of it takes so long; on so many batches.
CALIBRATION_SECONDS = 3.0
MOST_BATCHES = 24
# A worker process before it has any data: Python, torch and the compiled trainer. Measured on Linux.
PROCESS_BYTES = 490_000_000
# What the fused trainer holds, in copies of an SAE's weights: they, two moments, and what it works with.
FUSED_COPIES = 4
MOST_CELLS = 8  # of a stack by default: more steps at once bring nothing, and a kill would cost more
USED_OF_FREE = 0.8  # of a GPU's free memory, by stacks: the rest is for fragmentation
# Of a worker on a GPU, beside its stack: CUDA's context, the products' and the metrics' scratch space.
OVERHEAD_BYTES = 1 << 30


class Workers(NamedTuple):
    """Who would train."""

    n: int
    device: str
    backend: str


def describe(config: TrainConfig, cache: ActivationCache, plan: Plan, workers: Workers) -> str:
    """The run in words, without its time."""
    stacks = stacks_of(plan.jobs)
    cells = {cell for job in plan.jobs for cell in job.cells}
    what = "metrics" if config.no_checkpoints else "checkpoints and metrics"
    memory = max((worker_bytes(stack, config, cache, workers) for stack in stacks), default=0)
    return (
        f"{plan.n_saes:,} SAEs to train in {len(stacks):,} stacks on {workers.device}; {plan.n_done:,} are done\n"
        f"cells: {len(cells):,}, each {cache.n_examples:,} x {cache.input_dim:,}\n"
        f"disk: {in_bytes(bytes_to_write(config, cache.input_dim, plan.jobs))} of {what} in {config.results}; "
        f"{in_bytes(free_bytes(config.results))} free\n"
        f"memory: about {in_bytes(memory)} for each of {workers.n} workers"
    )


def stacks_of(jobs: Sequence[Job]) -> list[TrainSaes]:
    """Those of the jobs that train."""
    return [job for job in jobs if isinstance(job, TrainSaes)]


def worker_bytes(stack: TrainSaes, config: TrainConfig, cache: ActivationCache, workers: Workers) -> int:
    """The memory that a worker needs for `stack`: the device's, on the CPU with the process itself."""
    n_cells, input_dim = len(stack.parts), cache.input_dim
    if workers.backend == "fused":
        return fused_worker_bytes(config.settings, stack.latent_dim, cache, n_cells)
    most = max(len(part.k_values) for part in stack.parts)
    of_a_cell = bytes_of_a_cell(most, cache.n_examples, input_dim, stack.latent_dim, config.batch_size, config.settings)
    return n_cells * of_a_cell + (PROCESS_BYTES if workers.device == "cpu" else 0)


def fused_worker_bytes(recipe: Recipe, latent_dim: int, cache: ActivationCache, n_cells: int = 1) -> int:
    """The memory of a worker that trains SAEs one by one, compiled."""
    of_an_sae = 4 * n_weights(cache.input_dim, latent_dim) * FUSED_COPIES
    return PROCESS_BYTES + n_cells * bytes_of_rows(recipe, cache.n_examples, cache.input_dim) + of_an_sae


def cpu_worker_bytes(config: TrainConfig, latent_dim: int, cache: ActivationCache) -> int:
    """The memory of a worker on the CPU whose stacks are of one cell and of all k."""
    if lacks_kernel(config.settings) is None:
        return fused_worker_bytes(config.settings, latent_dim, cache)
    stack = len(config.k_values), cache.n_examples, cache.input_dim, latent_dim, config.batch_size
    return PROCESS_BYTES + bytes_of_a_cell(*stack, config.settings)


def cells_that_fit(config: TrainConfig, cache: ActivationCache, latent_dim: int, workers: int, free: int | None) -> int:
    """How many cells the stacks of a latent_dim may span where `workers` share a GPU with `free` bytes.

    1 without a GPU (`free` is None).
    """
    if free is None:
        return 1
    of_a_worker = free / workers * USED_OF_FREE - OVERHEAD_BYTES
    stack = len(config.k_values), cache.n_examples, cache.input_dim, latent_dim, config.batch_size
    of_a_cell = bytes_of_a_cell(*stack, config.settings)
    return min(max(1, int(of_a_worker / of_a_cell)), MOST_CELLS)


def seconds_to_train(
    jobs: Sequence[Job], config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str
) -> float:
    """How long one worker would take for all `jobs`."""
    seconds, stacks = 0.0, stacks_of(jobs)
    for latent_dim in {stack.latent_dim for stack in stacks}:
        alike = [stack for stack in stacks if stack.latent_dim == latent_dim]
        of_one = seconds_of_a_stack(alike[0], config, cache, device, backend)
        seconds += of_one * sum(stack.n_saes for stack in alike) / alike[0].n_saes
    measured = [job for job in jobs if isinstance(job, MeasureCell)]
    if measured:
        first, started = measured[0], time.perf_counter()
        baselines_of(first.cell, first.latent_dims, first.fingerprint, config, cache, device)
        seconds += (time.perf_counter() - started) * len(measured)
    return seconds


def seconds_of_a_stack(
    stack: TrainSaes, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str
) -> float:
    """Training the stack and measuring its SAEs."""
    x_raw, x_validation = load_cells(cache, stack.cells, device)
    prepared = [Prepared(rows, config.settings) for rows in x_raw]
    x_train = torch.stack([one.x for one in prepared])
    members = [(cell, key) for cell, part in enumerate(stack.parts) for key in part.keys]

    def train(x: Tensor, epochs: int) -> tuple[float, list[SparseAutoencoder]]:
        saes = [prepared[cell].start(key, config.seed) for cell, key in members]

        def orders(cell: int) -> Iterator[np.ndarray]:
            return epoch_orders(x.shape[1], epochs, config.seed, stack.cells[cell])

        started = time.perf_counter()
        train_saes(saes, [cell for cell, _ in members], x, orders, config, backend, on_epochs=lambda n: None)
        return time.perf_counter() - started, saes

    train(x_train[:, : config.batch_size], epochs=1)  # the first time everything is slow
    some = x_train[:, : MOST_BATCHES * config.batch_size]
    n_all = config.epochs * batches(x_train, config.batch_size) / batches(some, config.batch_size)
    epochs, seconds, pace = 0, 0.0, 0.0
    while seconds < CALIBRATION_SECONDS and epochs < n_all:
        n_more = min(max(epochs, 1), math.ceil(n_all) - epochs)
        longer, saes = train(some, epochs + n_more)
        # Of the later epochs alone: without what a stack costs once, and when dead features have become cheap.
        pace = max(0.0, longer - seconds) / n_more
        epochs, seconds = epochs + n_more, longer
    started = time.perf_counter()
    evaluate(saes[0], x_train[members[0][0]], x_validation[members[0][0]])
    return seconds + pace * (n_all - epochs) + (time.perf_counter() - started) * len(saes)


def batches(x: Tensor, batch_size: int) -> int:
    """Of an epoch on x (n_cells, n, input_dim)."""
    return -(-x.shape[1] // batch_size)
