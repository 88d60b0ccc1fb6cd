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
from thought_saes.results.names import SaeKey
from thought_saes.saes.topk_sae import TopKSAE, evaluate, n_weights
from thought_saes.training.run import baselines_of, epoch_orders, load_cells, seeded_sae, train_saes
from thought_saes.training.stack import bytes_of_a_cell
from thought_saes.training.task import Task, TrainConfig, bytes_to_write

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


def describe(config: TrainConfig, cache: ActivationCache, tasks: Sequence[Task], n_done: int, workers: Workers) -> str:
    """The run in words, without its time."""
    n_saes = sum(task.n_saes for task in tasks)
    cells = {part.cell for task in tasks for part in task.parts}
    what = "metrics" if config.no_checkpoints else "checkpoints and metrics"
    memory = max((worker_bytes(task, config, cache, workers) for task in tasks), default=0)
    return (
        f"{n_saes:,} SAEs to train in {len(tasks):,} stacks on {workers.device}; {n_done:,} are done\n"
        f"cells: {len(cells):,}, each {cache.n_examples:,} x {cache.input_dim:,}\n"
        f"disk: {in_bytes(bytes_to_write(config, cache.input_dim, tasks))} of {what} in {config.results}; "
        f"{in_bytes(free_bytes(config.results))} free\n"
        f"memory: about {in_bytes(memory)} for each of {workers.n} workers"
    )


def worker_bytes(task: Task, config: TrainConfig, cache: ActivationCache, workers: Workers) -> int:
    """The memory that a worker needs for `task`: the device's, on the CPU with the process itself."""
    n_cells, input_dim = len(task.parts), cache.input_dim
    if workers.backend == "fused":
        of_an_sae = 4 * n_weights(input_dim, task.latent_dim) * FUSED_COPIES  # it trains one by one
        return PROCESS_BYTES + n_cells * 4 * cache.n_examples * input_dim + of_an_sae
    most = max(len(part.k_values) for part in task.parts)
    of_a_cell = bytes_of_a_cell(most, cache.n_examples, input_dim, task.latent_dim, config.batch_size)
    return n_cells * of_a_cell + (PROCESS_BYTES if workers.device == "cpu" else 0)


def cells_that_fit(config: TrainConfig, cache: ActivationCache, latent_dim: int, workers: int, free: int | None) -> int:
    """How many cells the stacks of a latent_dim may span where `workers` share a GPU with `free` bytes.

    1 without a GPU (`free` is None).
    """
    if free is None:
        return 1
    of_a_worker = free / workers * USED_OF_FREE - OVERHEAD_BYTES
    of_a_cell = bytes_of_a_cell(len(config.k_values), cache.n_examples, cache.input_dim, latent_dim, config.batch_size)
    return min(max(1, int(of_a_worker / of_a_cell)), MOST_CELLS)


def seconds_to_train(
    tasks: Sequence[Task], config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str
) -> float:
    """How long one worker would take for all `tasks`."""
    seconds = 0.0
    for latent_dim in {task.latent_dim for task in tasks}:
        alike = [task for task in tasks if task.latent_dim == latent_dim and task.n_saes]
        if alike:
            of_one = seconds_of_a_stack(alike[0], config, cache, device, backend)
            seconds += of_one * sum(task.n_saes for task in alike) / alike[0].n_saes
    with_baselines = [part for task in tasks for part in task.parts if part.baselines]
    if with_baselines:
        x_train, x_validation = (x[0] for x in load_cells(cache, with_baselines[:1], device))
        started = time.perf_counter()
        baselines_of(with_baselines[0], x_train, x_validation, config)
        seconds += (time.perf_counter() - started) * len(with_baselines)
    return seconds


def seconds_of_a_stack(
    task: Task, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str
) -> float:
    """Training the stack and measuring its SAEs."""
    x_train, x_validation = load_cells(cache, task.parts, device)
    cells = [cell for cell, part in enumerate(task.parts) for _ in part.k_values]

    def train(x: Tensor, epochs: int) -> tuple[float, list[TopKSAE]]:
        saes = [
            seeded_sae(cache.input_dim, SaeKey(part.cell, part.latent_dim, k), config.seed)
            for part in task.parts
            for k in part.k_values
        ]

        def orders(cell: int) -> Iterator[np.ndarray]:
            return epoch_orders(x.shape[1], epochs, config.seed, task.parts[cell].cell)

        started = time.perf_counter()
        train_saes(saes, cells, x, orders, config, backend, on_epochs=lambda n: None)
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
    evaluate(saes[0], x_train[cells[0]], x_validation[cells[0]])
    return seconds + pace * (n_all - epochs) + (time.perf_counter() - started) * len(saes)


def batches(x: Tensor, batch_size: int) -> int:
    """Of an epoch on x (n_cells, n, input_dim)."""
    return -(-x.shape[1] // batch_size)
