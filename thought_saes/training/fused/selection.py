"""Which pre-activations of a batch become latents, as the compiled trainer is told."""

from __future__ import annotations

from typing import NamedTuple

from thought_saes.saes.variants import VARIANTS

RULES = ("abstopk", "topk", "batchtopk", "matryoshka")


class Selection(NamedTuple):
    """A rule of RULES, with the names of the variants in `saes/variants`."""

    rule: str
    k: int
    prefixes: tuple[int, ...] = ()  # matryoshka: how many features each nested reconstruction has, ascending

    @property
    def signed(self) -> bool:
        """Whether magnitudes compete, and latents keep their signs; otherwise latents are ReLU(p)."""
        return VARIANTS[self.rule].signed

    @property
    def of_batch(self) -> bool:
        """Whether all rows of a batch compete: a row may hold any number of latents, k on average."""
        return VARIANTS[self.rule].threshold == "batch"

    def check(self, latent_dim: int) -> None:
        """Raises ValueError unless an SAE of `latent_dim` features can be trained so."""
        if self.rule not in RULES or not 1 <= self.k <= latent_dim:
            raise ValueError(f"no rule {self.rule} with k = {self.k} of {latent_dim} features; rules: {RULES}")
        if (self.rule == "matryoshka") != bool(self.prefixes):
            raise ValueError(f"{self.rule} with prefixes {self.prefixes}")
        if self.prefixes and (sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1):
            raise ValueError(f"the prefixes {self.prefixes} do not ascend from 1")
        if self.prefixes and self.prefixes[-1] != latent_dim:
            raise ValueError(f"the last of the prefixes {self.prefixes} is not all {latent_dim} features")
