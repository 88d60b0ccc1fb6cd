"""The stacks of the grid as Ray jobs: `train_all_layers_positions.py --engine ray`.

A job is given out again, a few times, when the process or the node that had it is lost; it then trains only what
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
from thought_saes.engines.outcome import Outcome, RunReport, attempt
from thought_saes.engines.ray_cluster import RETRIES, Share, answer, check_fits, takes_gpu, why_died
from thought_saes.results.names import logs_path
from thought_saes.training.config import GridConfig
from thought_saes.training.forecast import cells_that_fit, seconds_to_train
from thought_saes.training.jobs import Job

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
    """What every job of a run is given."""

    config: GridConfig  # with absolute paths
    cache: ActivationCache
    device: torch.device
    threads: int | None
    backend: str  # of every job
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
    job: Job, order: Order, first: bool, stamps: Mapping[Cell, Stamp | None], carried: Mapping[Cell, Any]
) -> Outcome | None:
    """Train `job` in a worker process of some node; None if that does not see the activations.

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
    n_saes = job.n_saes
    if not first:
        left = job.left(config)
        if left is None:
            return Outcome(n_saes, [], time.perf_counter() - started)
        job = left
    unseen = [cell for cell in job.cells if Stamp.of(cell_path(cache.folder, cell)) != stamps[cell]]
    if not carried.keys() >= set(unseen):
        return None
    cache = CarriedCache(cache, {cell: ray.get(carried[cell]) for cell in unseen})
    outcome = attempt(job, config, cache, order.device, order.backend)
    if outcome.device_lost:
        os._exit(1)  # Ray gives the job to another process
    return outcome._replace(
        n_trained=outcome.n_trained + n_saes - job.n_saes,
        failures=[f"{failure}; see {log}" for failure in outcome.failures],
        seconds=time.perf_counter() - started,
    )


@functools.cache
def start_log(folder: Path) -> Path:
    """Have this process log as the local workers do: to a file of its own, which is returned."""
    path = folder / f"worker_{platform.node()}_{os.getpid()}.log"
    logging.basicConfig(filename=path, format="%(asctime)s %(message)s", level=logging.INFO, force=True)
    logging.info("process %d on %s", os.getpid(), platform.node())
    return path


def free_on_gpu() -> int:
    """The bytes free on this job's GPU."""
    return torch.cuda.mem_get_info()[0]


class RayJobs:
    """The nodes of a Ray cluster: `outcome.Engine`.

    `n_stacks` is how many there would be if each spanned one cell. Raises InputError if no node has room for a job.
    """

    def __init__(self, config: GridConfig, cache: ActivationCache, n_stacks: int) -> None:
        on_gpu = takes_gpu(config.device)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.threads = None if on_gpu else config.cpus_per_task
        cpus, gpus = (0, config.gpus_per_task) if on_gpu else (config.cpus_per_task, 0)
        self._share = Share(cpus=cpus, gpus=gpus)
        check_fits(self._share)
        self.most_workers = config.workers or self._share.fits()
        self.sharing = max(1, round(1 / gpus)) if gpus else 1
        self._n_stacks = n_stacks
        self._room_found, self._room_looked_at = 1, -ROOM_LOOKED_AT_EVERY
        self._config = dataclasses.replace(
            config,
            results=config.results.resolve(),
            activations=config.activations.resolve(),
            device=self.device.type,
        )
        self._cache = copy.copy(cache)
        self._cache.folder = cache.folder.resolve()

    def _remote(self, function: Callable[..., Any]) -> Any:
        # Ray's own retries would train again what is done, and never end where the memory is too small.
        return ray.remote(max_retries=0, **self._share.options())(function)

    def cells_that_fit(self, latent_dim: int) -> int:
        """What fits the memory, but not so many that workers idle while the last stacks train."""
        free = answer(self._remote(free_on_gpu).remote()) if self.device.type == "cuda" else None
        fit = cells_that_fit(self._config, self._cache, latent_dim, self.sharing, free)
        return min(fit, max(1, self._n_stacks // (TURNS * self.most_workers)))

    def seconds_to_train(self, jobs: list[Job], backend: str) -> float:
        remote = self._remote(seconds_to_train)
        return answer(remote.remote(jobs, self._config, self._cache, self.device, backend))

    def run(self, jobs: list[Job], backend: str, on_epochs: Callable[[int], object]) -> RunReport:
        """Raises InputError if what one job meets concerns them all."""
        token = self._config.results / f".{uuid.uuid4().hex}.tmp"  # a new name: no node remembers that it is absent
        token.touch()
        try:
            order = Order(self._config, self._cache, self.device, self.threads, backend, token.name)
            return RunReport.of(self._outcomes(jobs, order, on_epochs), min(self.most_workers, len(jobs)))
        finally:
            token.unlink(missing_ok=True)

    def _outcomes(self, jobs: list[Job], order: Order, on_epochs: Callable[[int], object]) -> Iterator[Outcome]:
        """Of each job, as they end."""
        remote, order_ref = self._remote(train_on_node), ray.put(order)
        waiting, deaths = deque(jobs), Counter[Job]()
        running: dict[Any, Job] = {}
        jobs_left = Counter(cell for job in jobs for cell in job.cells)
        stamps = {cell: Stamp.of(cell_path(self._cache.folder, cell)) for cell in jobs_left}
        carry, carried = False, dict[Cell, Any]()
        while waiting or running:
            while waiting and len(running) < self._room():
                job = waiting.popleft()
                cells = job.cells
                if carry:
                    carried |= {cell: ray.put(self._cache.cell(cell)) for cell in cells if cell not in carried}
                its_own = {cell: carried[cell] for cell in cells if cell in carried}
                its_stamps = {cell: stamps[cell] for cell in cells}
                running[remote.remote(job, order_ref, not deaths[job], its_stamps, its_own)] = job
            [ref], _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ref)
            try:
                outcome = answer(ref)
            except RayError as problem:
                deaths[job] += 1
                if deaths[job] <= RETRIES:
                    tqdm.write(f"{job}: given out again ({why_died(problem)})")
                    waiting.appendleft(job)
                    continue
                failures = job.failed(f"{deaths[job]} processes died with it ({why_died(problem)})")
                outcome = Outcome(0, failures, 0.0)
            if outcome is None:
                carry = True
                waiting.appendleft(job)
                continue
            if outcome.refusal:
                raise InputError(outcome.refusal)
            on_epochs(job.n_saes * self._config.epochs)
            jobs_left.subtract(job.cells)
            carried = {cell: array for cell, array in carried.items() if jobs_left[cell]}
            yield outcome

    def _room(self) -> int:
        """How many jobs may be given out."""
        if self._config.workers:
            return self._config.workers
        if time.monotonic() - self._room_looked_at > ROOM_LOOKED_AT_EVERY:
            self._room_found, self._room_looked_at = max(1, AHEAD * self._share.fits()), time.monotonic()
        return self._room_found
