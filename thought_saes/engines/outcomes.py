"""How a stack's training ends in a worker, whichever engine runs it."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError, one_line
from thought_saes.training.run import train_task
from thought_saes.training.task import Task, TrainConfig


class Outcome(NamedTuple):
    """How a worker's task ended."""

    n_trained: int
    failures: list[str]  # the SAEs that failed, and why
    seconds: float
    refusal: str | None = None  # what is wrong with the input, the disk or the machine, if that ended it


class RunReport(NamedTuple):
    """What a run did."""

    n_trained: int
    failures: list[str]
    busy_seconds: float  # of all workers together, in training, measuring and writing

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "RunReport":
        outcomes = list(outcomes)
        return cls(
            n_trained=sum(outcome.n_trained for outcome in outcomes),
            failures=[failure for outcome in outcomes for failure in outcome.failures],
            busy_seconds=sum(outcome.seconds for outcome in outcomes),
        )


def attempt(
    task: Task,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> Outcome:
    """`train_task`, its errors caught and logged: those of one task as failures, those of all as a refusal."""
    started = time.perf_counter()
    failures, refusal = [], None
    try:
        failures = train_task(task, config, cache, device, backend, on_epochs)
    except (RuntimeError, MemoryError) as problem:  # out of memory, on any device
        logging.exception("%s failed", task)
        failures = task.failed(one_line(problem)[:200])
    except (InputError, OSError) as problem:
        logging.exception("%s failed", task)
        refusal = str(problem)
    seconds = time.perf_counter() - started
    logging.info("%s: %.1f s%s", task, seconds, "".join(f"; {failure}" for failure in failures))
    return Outcome(max(0, task.n_saes - len(failures)), failures, seconds, refusal)
