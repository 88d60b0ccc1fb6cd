"""Train the whole grid of SAEs: every layer x position x latent_dim x k that the activations hold.

    python train_all_layers_positions.py [--layers 0-15] [--positions 0-5] [--latent-dims 512 1024 2048]

Worker processes side by side, three on a GPU as in the experiment, live for the whole run and take from one queue
the stacks of `train_grid.py`, cell by cell: with three workers the latent_dims of a (layer, position) train at once,
and nobody idles before the queue is empty. On a GPU a stack spans several cells, so that its steps are long enough
to keep the device busy. What is done is skipped; what fails is reported at the end and stops
nothing else. `--engine ray` gives the same stacks to a Ray cluster, of one machine or of many.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer, read_json, write_json
from thought_saes.common.flags import (
    MOST_THREADS,
    Selection,
    check_at_least,
    check_at_most,
    check_positive,
    check_ray_address,
    keep_once,
    option,
    parse_config,
    require_package,
)
from thought_saes.common.machine import choose_device
from thought_saes.common.text import in_time
from thought_saes.engines.outcomes import Outcome, RunReport, attempt
from thought_saes.results.names import AXES, LATENT_DIMS, logs_path, plan_path
from thought_saes.training.forecast import Workers, cells_that_fit, describe, seconds_to_train
from thought_saes.training.run import choose_backend
from thought_saes.training.task import Task, TrainConfig, check_room, plan_tasks

BAR = "{l_bar}{bar}| {n:.0f}/{total_fmt} SAEs [{elapsed}<{remaining}, {rate_fmt}]"
WORKERS_ON_A_GPU = 3  # the experiment's


@dataclass(frozen=True, kw_only=True)
class GridConfig(TrainConfig):
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="thought positions: all, 3, 0-5 or 0,2,4")
    latent_dims: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs")
    workers: int | None = option(
        None, help="processes that train side by side; by default 3 on a GPU, on the CPU at most one per core"
    )
    cells_per_stack: int | None = option(
        None,
        help="(layer, position) whose SAEs of one latent_dim train as one stack; what is killed in the middle of one "
        "begins it anew; by default what fits the memory of a CUDA device, at most 8, and 1 elsewhere",
    )
    engine: str = option(
        "local", choices=("local", "ray"), help="local: processes on this machine; ray: tasks on a Ray cluster"
    )
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")
    gpus_per_task: float = option(1 / 3, help="GPUs of each task on Ray; three share one by default")
    cpus_per_task: int = option(1, help="cores, and threads, of each task on Ray that trains on the CPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_once(self, "latent_dims")
        check_at_least(self, 1, "latent_dims", "workers", "cells_per_stack", "cpus_per_task")
        check_at_most(self, MOST_THREADS, "workers", "cpus_per_task")
        check_positive(self, "gpus_per_task")
        check_ray_address(self)
        self.check_k(self.latent_dims)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(connection: Connection, config: GridConfig, log: Path, threads: int | None, backend: str) -> None:
    """A worker process: train the tasks that come. Sends epochs done (each of one SAE), then the Outcome."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log_file, sys.stdout.fileno())
    os.dup2(log_file, sys.stderr.fileno())
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    device = choose_device(config.device)
    cache = ActivationCache(config.activations)
    logging.info("process %d on %s, %d threads", os.getpid(), device, torch.get_num_threads())
    while True:
        task = connection.recv()
        connection.send(attempt(task, config, cache, device, backend, connection.send))


def exit_with_parent() -> None:
    """End this process when its parent has ended, however that came: an orphan must not go on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Worker:
    """One worker process as the main process sees it; begun anew when it has died."""

    def __init__(self, number: int, config: GridConfig, threads: int | None, backend: str) -> None:
        self.log = logs_path(config.results) / f"worker{number}.log"
        self._settings = (config, self.log, threads, backend)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self._settings), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def train(self, task: Task, on_epochs: Callable[[int], object]) -> Outcome:
        """Have the process train `task`. If it dies of it, all of the task has failed."""
        started = time.perf_counter()
        try:
            if not self.process.is_alive():
                self._start()
            self._connection.send(task)
            while isinstance(message := self._connection.recv(), int):
                on_epochs(message)
            return message
        except (EOFError, ConnectionError):
            self.process.join()
            failures = task.failed(f"the worker died (exit code {self.process.exitcode})")
            return Outcome(0, failures, time.perf_counter() - started)


def run_tasks(tasks: list[Task], workers: list[Worker], on_epochs: Callable[[int], object]) -> RunReport:
    """Have `workers` train `tasks`, and end them. Raises InputError if what one meets concerns them all."""
    queue = deque(tasks)
    outcomes: list[Outcome] = []

    def serve(worker: Worker) -> None:
        while queue:
            try:
                task = queue.popleft()
            except IndexError:  # another worker took the last one
                return
            outcome = worker.train(task, on_epochs)
            if outcome.refusal:
                raise InputError(outcome.refusal)
            failures = [f"{failure}; see {worker.log}" for failure in outcome.failures]
            outcomes.append(outcome._replace(failures=failures))

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for served in as_completed([pool.submit(serve, worker) for worker in workers]):
                served.result()
        finally:
            queue.clear()
            for worker in workers:
                worker.process.kill()
    return RunReport.of(outcomes)


def record_plan(config: GridConfig, cache: ActivationCache, cells: list[Cell]) -> None:
    """Add this run's values of every axis to those that the results folder is meant to hold.

    And what the activations are of, for the report.
    """
    path = plan_path(config.results)
    planned = read_json(path) if path.exists() else {}
    layers, positions = zip(*cells, strict=True)
    for axis, values in zip(AXES, (layers, positions, config.latent_dims, config.k_values), strict=True):
        planned[axis] = sorted({*planned.get(axis, []), *values})
    origin = ("model", "dataset", "dataset_split", "thought_projection")
    write_json(path, planned | {name: cache.metadata.get(name) for name in origin})


class Engine(Protocol):
    """What trains the stacks: processes of this machine, or a Ray cluster."""

    device: torch.device
    threads: int | None  # of each worker on the CPU
    most_workers: int

    def cells_that_fit(self, latent_dim: int) -> int:
        """How many (layer, position) a stack of this latent_dim may span."""

    def seconds_to_train(self, tasks: list[Task], backend: str) -> float:
        """An estimate for one worker."""

    def train(
        self, tasks: list[Task], n_workers: int, backend: str, on_epochs: Callable[[int], object]
    ) -> RunReport: ...


class Processes:
    """Worker processes on this machine."""

    def __init__(self, config: GridConfig, cache: ActivationCache) -> None:
        self._config, self._cache = config, cache
        self.device = choose_device(config.device)
        on_cpu = self.device.type == "cpu"
        self.most_workers = config.workers or (min(WORKERS_ON_A_GPU, cores()) if on_cpu else WORKERS_ON_A_GPU)
        self.threads = max(1, cores() // self.most_workers) if on_cpu else None

    def cells_that_fit(self, latent_dim: int) -> int:
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None
        return cells_that_fit(self._config, self._cache, latent_dim, self.most_workers, free)

    def seconds_to_train(self, tasks: list[Task], backend: str) -> float:
        if self.threads:
            torch.set_num_threads(self.threads)
        return seconds_to_train(tasks, self._config, self._cache, self.device, backend)

    def train(self, tasks: list[Task], n_workers: int, backend: str, on_epochs: Callable[[int], object]) -> RunReport:
        workers = [Worker(number, self._config, self.threads, backend) for number in range(n_workers)]
        return run_tasks(tasks, workers, on_epochs)


@contextmanager
def open_engine(config: GridConfig, cache: ActivationCache, n_cells: int) -> Iterator[Engine]:
    """Raises InputError if its devices, or its cluster, cannot be had."""
    if config.engine == "local":
        yield Processes(config, cache)
        return
    require_package("ray", "--engine ray")
    from thought_saes.engines.ray_cluster import cluster
    from thought_saes.engines.ray_training import RayTasks

    with cluster(config.ray_address):
        share = (config.cpus_per_task, config.gpus_per_task)
        yield RayTasks(config, cache, config.workers, *share, n_cells * len(config.latent_dims))


def plan(config: GridConfig, cache: ActivationCache, cells: list[Cell], engine: Engine) -> tuple[list[Task], int]:
    """What is left to train, and how many SAEs are done."""

    def cells_per_stack(latent_dim: int) -> int:
        return config.cells_per_stack or engine.cells_that_fit(latent_dim)

    return plan_tasks(config, cache, cells, config.latent_dims, cells_per_stack)


def main() -> int:
    config = parse_config(GridConfig, __doc__ or "")
    cache = ActivationCache(config.activations)
    cells = cache.choose(config.layers, config.positions)
    with open_engine(config, cache, len(cells)) as engine:
        if config.dry_run:
            foretell(config, cache, cells, engine)
            return 0
        return train(config, cache, cells, engine)


def foretell(config: GridConfig, cache: ActivationCache, cells: list[Cell], engine: Engine) -> None:
    """Say what a run would take. Raises InputError if the disk is too small for it."""
    tasks, n_done = plan(config, cache, cells, engine)
    workers = Workers(
        min(engine.most_workers, len(tasks)), str(engine.device), choose_backend(config.backend, engine.device)
    )
    print(describe(config, cache, tasks, n_done, workers))
    check_room(config, cache.input_dim, tasks)
    seconds = engine.seconds_to_train(tasks, workers.backend) / max(1, workers.n)
    print(f"time: about {in_time(seconds)} if {workers.n} workers do not slow each other down")


def train(config: GridConfig, cache: ActivationCache, cells: list[Cell], engine: Engine) -> int:
    """Train what is not done. Returns the exit code."""
    with only_writer(config.results):
        tasks, n_done = plan(config, cache, cells, engine)
        check_room(config, cache.input_dim, tasks)
        n_saes = sum(task.n_saes for task in tasks)
        record_plan(config, cache, cells)
        logs_path(config.results).mkdir(exist_ok=True)
        n_workers = min(engine.most_workers, len(tasks))
        if n_done:
            print(f"{n_done:,} SAEs are already done")
        if not tasks:
            return 0
        backend = choose_backend(config.backend, engine.device)
        print(f"training {n_saes:,} SAEs, {n_workers} workers on {engine.device}, logs in {logs_path(config.results)}")
        started = time.perf_counter()
        with tqdm(total=n_done + n_saes, initial=n_done, unit="SAE", bar_format=BAR, smoothing=0.05) as bar:
            epochs_done = 0

            def on_epochs(epochs: int) -> None:
                nonlocal epochs_done
                with bar.get_lock():  # a thread for each worker comes here
                    epochs_done += epochs
                    bar.update(n_done + epochs_done / config.epochs - bar.n)

            report = engine.train(tasks, n_workers, backend, on_epochs)
        wall_seconds = time.perf_counter() - started
        overhead = 1 - report.busy_seconds / (n_workers * wall_seconds)
        costs = {"wall_seconds": wall_seconds, "overhead": overhead}
        settings = {"engine": config.engine, "workers": n_workers, "threads": engine.threads}
        settings |= {"device": str(engine.device), "backend": backend}
        write_json(config.results / "last_run.json", report._asdict() | costs | settings)
    print(
        f"{report.n_trained:,} SAEs trained in {wall_seconds:.1f} s; the workers had no task {overhead:.1%} of the time"
    )
    for failure in report.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    run(main)
