"""What a worker is given to do: train SAEs, or measure what a cell's SAEs are compared with.

Every kind of job is planned, resumed, run by any engine and reported alike. An SAE's start and its batches are seeded
by what it is, so it comes out the same whatever it is trained beside: to the last bit by the compiled trainer, but for
rounding in a stack, by whose size the libraries of a GPU choose their kernels.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import one_line
from thought_saes.common.machine import is_out_of_memory, release_memory
from thought_saes.results.names import SaeKey
from thought_saes.results.store import Results
from thought_saes.training.baselines import baselines_are_there, measure_cell
from thought_saes.training.config import TrainConfig
from thought_saes.training.existing import find_existing
from thought_saes.training.run import Part, train_parts

OnEpochs = Callable[[int], object]  # called with the number of epochs (each of one SAE) that were done


class Job(Protocol):
    """Work for one worker."""

    @property
    def keys(self) -> tuple[SaeKey, ...]:
        """Which SAEs it trains."""

    @property
    def n_saes(self) -> int:
        """How many these are."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Whose activations it reads."""

    def failed(self, why: str) -> list[str]:
        """A line for everything that is lost with the job."""

    def left(self, config: TrainConfig) -> "Job | None":
        """What of it is not done yet; None if it is all done."""

    def run(
        self, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str, on_epochs: OnEpochs
    ) -> list[str]:
        """Do it and write its files. Returns what failed, in words."""


@dataclass(frozen=True)
class TrainSaes:
    """The SAEs of one latent_dim, of one or several cells: one stack of weights where they train together."""

    latent_dim: int
    parts: tuple[Part, ...]

    @property
    def keys(self) -> tuple[SaeKey, ...]:
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def n_saes(self) -> int:
        return len(self.keys)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(part.cell for part in self.parts)

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts))

    def failed(self, why: str) -> list[str]:
        return [f"{key}: {why}" for key in self.keys]

    def left(self, config: TrainConfig) -> "TrainSaes | None":
        parts = []
        for part in self.parts:
            run = config.run(part.fingerprint)
            done = find_existing(
                Results(config.results), part.cell, part.latent_dim, part.k_values, run, config.no_checkpoints
            ).done
            if left := tuple(k for k in part.k_values if k not in done):
                parts.append(part._replace(k_values=left))
        return replace(self, parts=tuple(parts)) if parts else None

    def halves(self) -> "tuple[TrainSaes, ...]":
        """The same SAEs in two jobs; in one if there is but one."""
        if len(self.parts) > 1:
            middle = len(self.parts) // 2
            return replace(self, parts=self.parts[:middle]), replace(self, parts=self.parts[middle:])
        [part] = self.parts
        middle = len(part.k_values) // 2
        some = (part.k_values[:middle], part.k_values[middle:])
        return tuple(replace(self, parts=(part._replace(k_values=k_values),)) for k_values in some if k_values)

    def run(
        self, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str, on_epochs: OnEpochs
    ) -> list[str]:
        """If they do not fit the memory together, they train by halves, down to one SAE."""
        epochs_done = 0

        def count(epochs: int) -> None:
            nonlocal epochs_done
            epochs_done += epochs
            on_epochs(epochs)

        try:
            return train_parts(self.parts, config, cache, device, backend, count)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            reason = one_line(problem)[:200]
        # Only here, with the error, what its frames held is gone.
        release_memory(device)
        if self.n_saes == 1:
            return self.failed(reason)
        logging.warning("%s: out of memory with %d SAEs, which train by halves now (%s)", self, self.n_saes, reason)
        left = self.left(config)
        n_left = left.n_saes if left else 0
        on_epochs(config.epochs * (self.n_saes - n_left) - epochs_done)
        halves = left.halves() if left else ()
        return [failure for half in halves for failure in half.run(config, cache, device, backend, on_epochs)]


@dataclass(frozen=True)
class MeasureCell:
    """The baselines of one cell: the mean, PCA, and untrained SAEs of these latent_dims."""

    cell: Cell
    latent_dims: tuple[int, ...]
    fingerprint: str

    keys = ()
    n_saes = 0

    @property
    def cells(self) -> tuple[Cell, ...]:
        return (self.cell,)

    def __str__(self) -> str:
        return f"{self.cell} baselines"

    def failed(self, why: str) -> list[str]:
        return [f"{self}: {why}"]

    def left(self, config: TrainConfig) -> "MeasureCell | None":
        run = config.run(self.fingerprint)
        there = baselines_are_there(
            Results(config.results), self.cell, run, self.latent_dims, config.k_values, config.gaussian_control
        )
        return None if there else self

    def run(
        self, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str, on_epochs: OnEpochs
    ) -> list[str]:
        measure_cell(self.cell, self.latent_dims, self.fingerprint, config, cache, device, backend)
        return []
