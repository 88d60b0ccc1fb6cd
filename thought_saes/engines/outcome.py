"""How a job ends in a worker, and what a run did, whichever engine ran it."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError, one_line
from thought_saes.common.machine import has_lost_device
from thought_saes.training.config import TrainConfig
from thought_saes.training.jobs import Job


class Outcome(NamedTuple):
    """How a worker's job ended."""

    n_trained: int
    failures: list[str]  # the SAEs that failed, and why
    seconds: float
    refusal: str | None = None  # what is wrong with the input, the disk or the machine, if that ended it
    device_lost: bool = False  # whether this process can compute on its GPU no more: it has to end


class RunReport(NamedTuple):
    """What a run did."""

    n_trained: int
    failures: list[str]
    busy_seconds: float  # of all workers together, in training, measuring and writing
    workers: int  # that took part

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], workers: int) -> "RunReport":
        outcomes = list(outcomes)
        return cls(
            n_trained=sum(outcome.n_trained for outcome in outcomes),
            failures=[failure for outcome in outcomes for failure in outcome.failures],
            busy_seconds=sum(outcome.seconds for outcome in outcomes),
            workers=workers,
        )


class Engine(Protocol):
    """What runs the jobs: processes of this machine, or a Ray cluster."""

    device: torch.device
    most_workers: int
    sharing: int  # how many workers share a device

    @property
    def threads(self) -> int | None:
        """Of each worker; None: as many as PyTorch takes."""

    def cells_that_fit(self, latent_dim: int) -> int:
        """How many cells a stack of this latent_dim may span."""

    def seconds_to_train(self, jobs: list[Job], backend: str) -> float:
        """An estimate for one worker."""

    def run(self, jobs: list[Job], backend: str, on_epochs: Callable[[int], object]) -> RunReport:
        """Do all jobs with `backend`. Raises InputError if what one meets concerns them all."""


def attempt(
    job: Job,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> Outcome:
    """Run the job, its errors caught and logged: those of one job as failures, those of all as a refusal."""
    started = time.perf_counter()
    failures, refusal, device_lost = [], None, False
    try:
        failures = job.run(config, cache, device, backend, on_epochs)
    except (RuntimeError, MemoryError) as problem:  # out of memory, on any device
        logging.exception("%s failed", job)
        failures, device_lost = job.failed(one_line(problem)[:200]), has_lost_device(problem)
    except (InputError, OSError) as problem:
        logging.exception("%s failed", job)
        refusal = str(problem)
    seconds = time.perf_counter() - started
    logging.info("%s: %.1f s%s", job, seconds, "".join(f"; {failure}" for failure in failures))
    return Outcome(max(0, job.n_saes - len(failures)), failures, seconds, refusal, device_lost)
