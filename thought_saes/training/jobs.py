"""What a worker is given to do: train SAEs, or measure what a cell's SAEs are compared with.

Every kind of job is planned, resumed, run by any engine and reported alike. An SAE's start and its batches are seeded
by what it is, so it comes out the same whatever it is trained beside.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.results.store import Results
from thought_saes.training.baselines import baselines_are_there, measure_cell
from thought_saes.training.config import TrainConfig
from thought_saes.training.existing import find_existing
from thought_saes.training.run import Part, train_parts

OnEpochs = Callable[[int], object]  # called with the number of epochs (each of one SAE) that were done


class Job(Protocol):
    """Work for one worker."""

    @property
    def n_saes(self) -> int:
        """How many SAEs it trains."""

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
    def n_saes(self) -> int:
        return sum(len(part.k_values) for part in self.parts)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(part.cell for part in self.parts)

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts))

    def failed(self, why: str) -> list[str]:
        return [f"{key}: {why}" for part in self.parts for key in part.keys]

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

    def run(
        self, config: TrainConfig, cache: ActivationCache, device: torch.device, backend: str, on_epochs: OnEpochs
    ) -> list[str]:
        return train_parts(self.parts, config, cache, device, backend, on_epochs)


@dataclass(frozen=True)
class MeasureCell:
    """The baselines of one cell: the mean, PCA, and untrained SAEs of these latent_dims."""

    cell: Cell
    latent_dims: tuple[int, ...]
    fingerprint: str

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
