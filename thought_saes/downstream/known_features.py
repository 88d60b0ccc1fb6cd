"""An SAE's halves (features with a sign) at a cell: what they tell, how strongly they fire, where they point.

Which half tells a concept is chosen on the training rows of the activations, and so is every mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.features.collect import collect_entries
from thought_saes.features.concepts import Concepts
from thought_saes.features.scores import Split, judge
from thought_saes.saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class KnownFeatures:
    """Half 2f is feature f where it is positive, 2f + 1 where it is negative."""

    sae: SparseAutoencoder
    half: np.ndarray  # (n_concepts,) the half that tells a concept best
    f1: np.ndarray  # (n_concepts,) its F1 on the validation rows
    fired: np.ndarray  # (n_halves,) training rows on which a half fires
    mean: Tensor  # (n_halves,) its mean magnitude on these rows; 0 where there are none
    directions: Tensor  # (n_halves, input_dim): a half that fires with magnitude z adds z times its own
    of_concept: Tensor  # (n_concepts, latent_dim) mean latents of the training rows with a concept

    @classmethod
    def of(cls, sae: SparseAutoencoder, x: Tensor, cache: ActivationCache, concepts: Concepts) -> "KnownFeatures":
        """Those of an SAE of the cell with the rows x (n_rows, input_dim), all on the CPU."""
        entries = collect_entries(sae, x)
        train, validation = cache.split
        labels = concepts.labels
        found, _ = judge(Split(entries[train], labels.take(train)), Split(entries[validation], labels.take(validation)))
        ours = entries[train].tocoo()
        halves = 2 * ours.coords[1].astype(np.int64) + (ours.data < 0)
        n_halves = 2 * sae.latent_dim
        fired = np.bincount(halves, minlength=n_halves)
        total = np.bincount(halves, np.abs(ours.data), minlength=n_halves)
        having = labels.take(train).concepts
        sums = (having.T @ entries[train]).toarray()
        directions = sae.decoder.weight.detach().T
        return cls(
            sae,
            found.half,
            found.f1,
            fired,
            torch.from_numpy(total / np.maximum(1, fired)).float(),
            torch.stack([directions, -directions], dim=1).reshape(n_halves, -1),
            torch.from_numpy(sums / having.sum(axis=0)[:, None]).float(),
        )

    def magnitudes(self, x: Tensor) -> Tensor:
        """How strongly every half fires on x (n, input_dim): (n, n_halves), 0 where it does not."""
        latents = self.sae.encode(x)
        return torch.stack([latents, -latents], dim=2).clamp(min=0).flatten(1)

    def told(self, most: int) -> list[int]:
        """The concepts, at most so many, that halves of their own tell best, the best first."""
        found: dict[int, int] = {}
        for concept in np.argsort(-np.nan_to_num(self.f1, nan=-1.0), kind="stable"):
            if self.fired[self.half[concept]]:
                found.setdefault(int(self.half[concept]), int(concept))
        return list(found.values())[:most]

    def busiest(self, most: int) -> list[int]:
        """The halves, at most so many, that fire on most training rows."""
        order = np.argsort(-self.fired, kind="stable")[:most]
        return [int(half) for half in order if self.fired[half]]
