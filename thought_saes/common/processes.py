"""Jobs side by side, each in a process with one core."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Job = TypeVar("Job")
Done = TypeVar("Done")


def done_side_by_side(function: Callable[[Job], Done], jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """What `function` makes of each job, as they end; of one job or with one worker, in this process.

    What goes to a process and back is pickled. Raises what the function raises; jobs that wait are given up then.
    """
    if min(workers, len(jobs)) < 2:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), initializer=_leave_interrupts)
    try:
        for done in as_completed([pool.submit(_on_one_thread, function, job) for job in jobs]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us


def _on_one_thread(function: Callable[[Job], Done], job: Job) -> Done:
    """NumPy's, SciPy's and PyTorch's threads; at this time, for it reaches the libraries that are loaded."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return function(job)
