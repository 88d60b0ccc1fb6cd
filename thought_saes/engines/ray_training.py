"""The stacks of the grid as Ray tasks: `train_all_layers_positions.py --engine ray`.

A task is given out again, a few times, when the process or the node that had it is lost; it then trains only what
that one had not written. Results are on a file system that all nodes share. A node that does not see the activations
gets the cells it needs through Ray's object store, which keeps one copy on a node.
"""

import copy
import dataclasses
import functools
import logging
import os
import platform
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell, cell_path
from thought_saes.common.errors import InputError
from thought_saes.engines.outcomes import Outcome, RunReport, attempt
from thought_saes.engines.ray_cluster import RETRIES, Share, answer, check_fits, takes_gpu, why_died
from thought_saes.results.names import logs_path
from thought_saes.training.forecast import cells_that_fit, seconds_to_train
from thought_saes.training.run import choose_backend
from thought_saes.training.task import Task, TrainConfig, find_existing, has_baselines

# Tasks given out for each that can run, so that no worker waits for the main process.
AHEAD = 2
# Stacks for each worker, at least where there are so many cells: they end within a stack of each other.
TURNS = 4
ROOM_LOOKED_AT_EVERY = 5.0  # seconds: nodes come and go


class Stamp(NamedTuple):
    """What tells that a path is the same file on another machine."""

    n_bytes: int
    modified: int  # ns

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """None if this machine sees no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


class Order(NamedTuple):
    """What every task of a run is given."""

    config: TrainConfig  # with absolute paths
    cache: ActivationCache
    device: torch.device
    threads: int | None
    token: str  # a file in the results folder, which tells whether a node sees that folder


class CarriedCache(ActivationCache):
    """A cache of which some cells came through the object store."""

    def __init__(self, cache: ActivationCache, carried: Mapping[Cell, np.ndarray]) -> None:
        self.__dict__.update(vars(cache))
        self._carried = carried

    def cell(self, cell: Cell) -> np.ndarray:
        carried = self._carried.get(cell)
        return super().cell(cell) if carried is None else carried


def train_on_node(
    task: Task, order: Order, first: bool, stamps: Mapping[Cell, Stamp | None], carried: Mapping[Cell, Any]
) -> Outcome | None:
    """Train `task` in a worker process of some node; None if that does not see the activations.

    `carried` holds references to cells in the object store; they are fetched only where the files are not seen.
    """
    config, cache = order.config, order.cache
    if not (config.results / order.token).exists():
        here = f"the node {platform.node()} does not see {config.results}"
        return Outcome(0, [], 0.0, refusal=f"{here}: put --results on a file system that all nodes share")
    started = time.perf_counter()
    log = start_log(logs_path(config.results))
    if order.threads:
        torch.set_num_threads(order.threads)
    n_saes = task.n_saes
    if not first:
        task = what_is_left(task, config)
    unseen = [cell for cell in cells_of(task) if Stamp.of(cell_path(cache.folder, cell)) != stamps[cell]]
    if not carried.keys() >= set(unseen):
        return None
    cache = CarriedCache(cache, {cell: ray.get(carried[cell]) for cell in unseen})
    outcome = attempt(task, config, cache, order.device, backend_here(config.backend, order.device))
    return outcome._replace(
        n_trained=outcome.n_trained + n_saes - task.n_saes,
        failures=[f"{failure}; see {log}" for failure in outcome.failures],
        seconds=time.perf_counter() - started,
    )


def cells_of(task: Task) -> list[Cell]:
    return [part.cell for part in task.parts]


@functools.cache
def start_log(folder: Path) -> Path:
    """Have this process log as the local workers do: to a file of its own, which is returned."""
    path = folder / f"worker_{platform.node()}_{os.getpid()}.log"
    logging.basicConfig(filename=path, format="%(asctime)s %(message)s", level=logging.INFO, force=True)
    logging.info("process %d on %s", os.getpid(), platform.node())
    return path


backend_here = functools.cache(choose_backend)


def what_is_left(task: Task, config: TrainConfig) -> Task:
    """`task` without what another process wrote before it was lost."""
    parts = []
    for part in task.parts:
        where = (config.results, part.cell, part.latent_dim)
        settings = config.settings(part.fingerprint)
        done = find_existing(*where, part.k_values, settings, config.no_checkpoints).done
        measured = has_baselines(config, part.cell, part.fingerprint, part.baselines)
        left = tuple(k for k in part.k_values if k not in done)
        part = part._replace(k_values=left, baselines=() if measured else part.baselines)
        if part.k_values or part.baselines:
            parts.append(part)
    return task._replace(parts=tuple(parts))


def free_on_gpu() -> int:
    """The bytes free on this task's GPU."""
    return torch.cuda.mem_get_info()[0]


class RayTasks:
    """The nodes of a Ray cluster; `train_all_layers_positions.Engine`.

    `n_stacks` is how many there would be if each spanned one cell. Raises InputError if no node has room for a task.
    """

    def __init__(
        self,
        config: TrainConfig,
        cache: ActivationCache,
        workers: int | None,
        cpus_per_task: int,
        gpus_per_task: float,
        n_stacks: int,
    ) -> None:
        on_gpu = takes_gpu(config.device)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.threads = None if on_gpu else cpus_per_task
        self._share = Share(cpus=0, gpus=gpus_per_task) if on_gpu else Share(cpus=cpus_per_task, gpus=0)
        check_fits(self._share)
        self.most_workers = workers or self._share.fits()
        self._workers, self._n_stacks = workers, n_stacks
        self._room_found, self._room_looked_at = 1, -ROOM_LOOKED_AT_EVERY
        # A plain TrainConfig, whose class other processes can import; that of a script they cannot.
        own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
        paths = {"results": config.results.resolve(), "activations": config.activations.resolve()}
        self._config = TrainConfig(**own | paths | {"device": self.device.type})
        self._cache = copy.copy(cache)
        self._cache.folder = cache.folder.resolve()

    def _remote(self, function: Callable[..., Any]) -> Any:
        # Ray's own retries would train again what is done, and never end where the memory is too small.
        return ray.remote(max_retries=0, **self._share.options())(function)

    def cells_that_fit(self, latent_dim: int) -> int:
        """What fits the memory, but not so many that workers idle while the last stacks train."""
        free = answer(self._remote(free_on_gpu).remote()) if self.device.type == "cuda" else None
        sharing = max(1, round(1 / self._share.gpus)) if self._share.gpus else 1
        fit = cells_that_fit(self._config, self._cache, latent_dim, sharing, free)
        return min(fit, max(1, self._n_stacks // (TURNS * self.most_workers)))

    def seconds_to_train(self, tasks: list[Task], backend: str) -> float:
        remote = self._remote(seconds_to_train)
        return answer(remote.remote(tasks, self._config, self._cache, self.device, backend))

    def train(self, tasks: list[Task], n_workers: int, backend: str, on_epochs: Callable[[int], object]) -> RunReport:
        """Raises InputError if what one task meets concerns them all."""
        token = self._config.results / f".{uuid.uuid4().hex}.tmp"  # a new name: no node remembers that it is absent
        token.touch()
        try:
            order = Order(self._config, self._cache, self.device, self.threads, token.name)
            return RunReport.of(self._outcomes(tasks, order, on_epochs))
        finally:
            token.unlink(missing_ok=True)

    def _outcomes(self, tasks: list[Task], order: Order, on_epochs: Callable[[int], object]) -> Iterator[Outcome]:
        """Of each task, as they end."""
        remote, order_ref = self._remote(train_on_node), ray.put(order)
        waiting, deaths = deque(tasks), Counter[Task]()
        running: dict[Any, Task] = {}
        tasks_left = Counter(cell for task in tasks for cell in cells_of(task))
        stamps = {cell: Stamp.of(cell_path(self._cache.folder, cell)) for cell in tasks_left}
        carry, carried = False, dict[Cell, Any]()
        while waiting or running:
            while waiting and len(running) < self._room():
                task = waiting.popleft()
                cells = cells_of(task)
                if carry:
                    carried |= {cell: ray.put(self._cache.cell(cell)) for cell in cells if cell not in carried}
                its_own = {cell: carried[cell] for cell in cells if cell in carried}
                its_stamps = {cell: stamps[cell] for cell in cells}
                running[remote.remote(task, order_ref, not deaths[task], its_stamps, its_own)] = task
            [ref], _ = ray.wait(list(running), num_returns=1)
            task = running.pop(ref)
            try:
                outcome = answer(ref)
            except RayError as problem:
                deaths[task] += 1
                if deaths[task] <= RETRIES:
                    tqdm.write(f"{task}: given out again ({why_died(problem)})")
                    waiting.appendleft(task)
                    continue
                failures = task.failed(f"{deaths[task]} processes died with it ({why_died(problem)})")
                outcome = Outcome(0, failures, 0.0)
            if outcome is None:
                carry = True
                waiting.appendleft(task)
                continue
            if outcome.refusal:
                raise InputError(outcome.refusal)
            on_epochs(task.n_saes * self._config.epochs)
            tasks_left.subtract(cells_of(task))
            carried = {cell: array for cell, array in carried.items() if tasks_left[cell]}
            yield outcome

    def _room(self) -> int:
        """How many tasks may be given out."""
        if self._workers:
            return self._workers
        if time.monotonic() - self._room_looked_at > ROOM_LOOKED_AT_EVERY:
            self._room_found, self._room_looked_at = max(1, AHEAD * self._share.fits()), time.monotonic()
        return self._room_found
