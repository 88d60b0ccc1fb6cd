"""Jobs in worker processes of this machine, which live for the whole run and take from one queue."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError
from thought_saes.common.machine import choose_device, cores, free_memory
from thought_saes.engines.outcome import Outcome, RunReport, attempt
from thought_saes.results.names import logs_path
from thought_saes.training.config import GridConfig
from thought_saes.training.forecast import cells_that_fit, cpu_worker_bytes, seconds_to_train
from thought_saes.training.jobs import Job

WORKERS_ON_A_GPU = 3  # the experiment's


def work(connection: Connection, config: GridConfig, log: Path, threads: int, backend: str) -> None:
    """A worker process: do the jobs that come. Sends epochs done (each of one SAE), then the Outcome.

    Ends when its GPU is lost to it: a new process can use it again.
    """
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):  # of the operating system: a scheduler may have closed Python's
        os.dup2(log_file, stream)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(threads)
    device = choose_device(config.device)
    cache = ActivationCache(config.activations)
    logging.info("process %d on %s, %d threads", os.getpid(), device, torch.get_num_threads())
    while True:
        job = connection.recv()
        outcome = attempt(job, config, cache, device, backend, connection.send)
        connection.send(outcome)
        if outcome.device_lost:
            os._exit(1)  # at once: what an interpreter does at its end would ask the device again


def exit_with_parent() -> None:
    """End this process when its parent has ended, however that came: an orphan must not go on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Worker:
    """One worker process as the main process sees it; begun anew when it has died."""

    def __init__(self, number: int, config: GridConfig, threads: int, backend: str) -> None:
        self.log = logs_path(config.results) / f"worker{number}.log"
        self._settings = (config, self.log, threads, backend)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self._settings), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def run(self, job: Job, on_epochs: Callable[[int], object]) -> Outcome:
        """Have the process do `job`, and once more in a new process if the first one's GPU is lost to it."""
        epochs_done = 0

        def count(epochs: int) -> None:
            nonlocal epochs_done
            epochs_done += epochs
            on_epochs(epochs)

        first = self._attempt(job, count)
        if not first.device_lost:
            return first
        left = job.left(self._settings[0])
        n_there = job.n_saes - (left.n_saes if left else 0)
        on_epochs(self._settings[0].epochs * n_there - epochs_done)
        if left is None:
            return Outcome(n_there, [], first.seconds)
        second = self._attempt(left, on_epochs)
        return second._replace(n_trained=n_there + second.n_trained, seconds=first.seconds + second.seconds)

    def _attempt(self, job: Job, on_epochs: Callable[[int], object]) -> Outcome:
        """If the process dies of it, all of the job has failed."""
        started = time.perf_counter()
        try:
            if not self.process.is_alive():
                self._start()
            self._connection.send(job)
            while isinstance(message := self._connection.recv(), int):
                on_epochs(message)
            if message.device_lost:
                self.process.join()
            return message
        except (EOFError, ConnectionError):
            self.process.join()
            failures = job.failed(f"the worker died (exit code {self.process.exitcode})")
            return Outcome(0, failures, time.perf_counter() - started)


def run_jobs(jobs: list[Job], workers: list[Worker], on_epochs: Callable[[int], object]) -> RunReport:
    """Have `workers` do `jobs`, and end them. Raises InputError if what one meets concerns them all."""
    queue = deque(jobs)
    outcomes: list[Outcome] = []

    def serve(worker: Worker) -> None:
        while queue:
            try:
                job = queue.popleft()
            except IndexError:  # another worker took the last one
                return
            outcome = worker.run(job, on_epochs)
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
    return RunReport.of(outcomes, len(workers))


class Processes:
    """Worker processes on this machine: `outcome.Engine`.

    Three share a GPU, as in the experiment. On the CPU one process a core is faster than fewer with more threads, so
    there are as many as the memory that is free allows. Workers share the cores, on a GPU for what is done beside it.
    """

    def __init__(self, config: GridConfig, cache: ActivationCache) -> None:
        self._config, self._cache = config, cache
        self.device = choose_device(config.device)
        on_cpu = self.device.type == "cpu"
        self.most_workers = config.workers or (self._workers_on_cores() if on_cpu else WORKERS_ON_A_GPU)
        self.threads = max(1, cores() // self.most_workers)
        self.sharing = 1 if on_cpu else self.most_workers

    def _workers_on_cores(self) -> int:
        largest = cpu_worker_bytes(self._config, max(self._config.latent_dims), self._cache)
        return max(1, min(cores(), free_memory() // largest))

    def cells_that_fit(self, latent_dim: int) -> int:
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None
        return cells_that_fit(self._config, self._cache, latent_dim, self.most_workers, free)

    def seconds_to_train(self, jobs: list[Job], backend: str) -> float:
        torch.set_num_threads(self.threads)
        return seconds_to_train(jobs, self._config, self._cache, self.device, backend)

    def run(self, jobs: list[Job], backend: str, on_epochs: Callable[[int], object]) -> RunReport:
        n_workers = min(self.most_workers, len(jobs))
        workers = [Worker(number, self._config, self.threads, backend) for number in range(n_workers)]
        return run_jobs(jobs, workers, on_epochs)
