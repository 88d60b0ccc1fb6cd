"""What is put in a thought's place: an SAE's reconstruction, or one of the controls it is to be compared with.

Everything is fitted on the training rows of the activations; nothing depends on which questions share a batch.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.results.store import Results
from thought_saes.saes.baselines import covariance
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.prepared import AsStarted

OF_A_CELL = ("own", "identity", "mean", "other_question", "zero")
OF_A_RANK = ("pca",)
OF_AN_SAE = ("sae", "untrained", "noise_isotropic", "noise_cell")


class Condition(NamedTuple):
    """What takes the thought's place; `latent_dim` and `k` where it depends on them.

    own: nothing is edited. identity: the thought itself. mean: of the training rows. zero: off the distribution.
    other_question: the same cell's vector of a training question. pca: rank k. noise_isotropic, noise_cell: the
    thought plus noise as long as the SAE's error, in every direction alike or with the cell's covariance.
    """

    name: str
    latent_dim: int | None = None
    k: int | None = None


def conditions(latent_dims: Sequence[int], k_values: Sequence[int]) -> list[Condition]:
    """Every condition of one cell, the unmodified model first."""
    saes = [Condition(name, latent_dim, k) for name in OF_AN_SAE for latent_dim in latent_dims for k in k_values]
    return [*map(Condition, OF_A_CELL), *(Condition(name, None, k) for name in OF_A_RANK for k in k_values), *saes]


class Questions(NamedTuple):
    """What the controls need of a batch's questions at one cell."""

    noise: Tensor  # (batch, input_dim), standard normal
    others: Tensor  # (batch, input_dim): the same cell's vectors of other questions


class Substitutes:
    """The substitutes of one cell. Raises InputError if an SAE is missing, damaged or of other activations."""

    def __init__(self, cache: ActivationCache, results: Path, cell: Cell, seed: int, device: torch.device) -> None:
        self.cache, self.results, self.cell, self.seed, self.device = cache, results, cell, seed, device
        self._saes: dict[SaeKey, SparseAutoencoder] = {}
        self._untrained: dict[SaeKey, SparseAutoencoder] = {}

    @cached_property
    def _training(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (input_dim,), eigenvectors (input_dim, input_dim) and eigenvalues of the training rows, ascending."""
        rows = self._training_rows()
        mean = rows.double().mean(0)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance(rows, mean))
        eigenvalues = eigenvalues.clamp(min=0)
        return mean.float().to(self.device), eigenvectors.float().to(self.device), eigenvalues.float().to(self.device)

    def sae(self, condition: Condition) -> SparseAutoencoder:
        """The SAE that the condition is about: the trained one, or the same as it started."""
        key = SaeKey(self.cell, condition.latent_dim or 0, condition.k or 0)
        trained = self._trained(key)
        if condition.name != "untrained":
            return trained
        if key not in self._untrained:
            self._untrained[key] = self._as_started.of(trained, key).to(self.device)
        return self._untrained[key]

    @cached_property
    def _as_started(self) -> AsStarted:
        return AsStarted(self._training_rows, self.seed)

    def _training_rows(self) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.cache.cell(self.cell)[self.cache.split.train])).float()

    def _trained(self, key: SaeKey) -> SparseAutoencoder:
        if key in self._saes:
            return self._saes[key]
        sae = Results(self.results).sae(key, self.cache.input_dim)
        if sae.config.get("activations", self._fingerprint) != self._fingerprint:
            path = checkpoint_path(self.results, key)
            raise InputError(f"{path} was trained on other activations than those in {self.cache.folder}")
        self._saes[key] = sae.to(self.device).requires_grad_(False)
        return sae

    @cached_property
    def _fingerprint(self) -> str:
        return self.cache.fingerprint(self.cell)

    def questions(self, rows: Sequence[int], others: Sequence[int]) -> Questions:
        """Noise for the questions `rows` and the vectors of `others`, rows of the activations, beside them."""
        noise = [
            np.random.default_rng([self.seed, 2, row, *self.cell]).standard_normal(self.cache.input_dim, np.float32)
            for row in rows
        ]
        vectors = self.cache.cell(self.cell)[list(others)].astype(np.float32)
        return Questions(torch.from_numpy(np.stack(noise)).to(self.device), torch.from_numpy(vectors).to(self.device))

    def apply(self, condition: Condition, x: Tensor, questions: Questions) -> Tensor:
        """The substitutes of the states x (batch, input_dim)."""
        match condition.name:
            case "own" | "identity":
                return x
            case "mean":
                return self._training[0].expand_as(x)
            case "zero":
                return torch.zeros_like(x)
            case "other_question":
                return questions.others
            case "pca":
                mean, eigenvectors, _ = self._training
                components = eigenvectors[:, -condition.k :]  # type: ignore[operator]
                return mean + (x - mean) @ components @ components.T
            case "sae" | "untrained":
                return self.sae(condition)(x)
        noise = questions.noise
        if condition.name == "noise_cell":
            _, eigenvectors, eigenvalues = self._training
            noise = (noise * eigenvalues.sqrt()) @ eigenvectors.T
        lengths = (x - self.sae(condition)(x)).norm(dim=-1, keepdim=True)
        return x + noise / noise.norm(dim=-1, keepdim=True).clamp(min=1e-30) * lengths
