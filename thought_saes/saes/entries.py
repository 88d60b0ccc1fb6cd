"""The latents of some rows that are not left at zero, in compressed rows: a row may hold any number of them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Entries(NamedTuple):
    """What an SAE selected on n rows, row after row; a selected latent may still be zero."""

    acts: Tensor  # (n_entries,) latents, with their signs
    features: Tensor  # (n_entries,) which feature each is of
    offsets: Tensor  # (n,) where each row begins
    latent_dim: int
    width: int | None  # how many entries every row has, if all have as many

    @classmethod
    def of_table(cls, acts: Tensor, features: Tensor, latent_dim: int) -> "Entries":
        """Rows of equal length: acts and features are (n, k)."""
        n, k = acts.shape
        offsets = torch.arange(0, n * k, k, device=acts.device) if k else features.new_zeros(n)
        return cls(acts.flatten(), features.flatten(), offsets, latent_dim, k)

    @classmethod
    def of_mask(cls, latents: Tensor, selected: Tensor) -> "Entries":
        """What `selected` names of latents, both (n, latent_dim)."""
        rows, features = selected.nonzero(as_tuple=True)
        counts = selected.sum(dim=1)
        return cls(latents[rows, features], features, counts.cumsum(0) - counts, latents.shape[1], None)

    @property
    def n_rows(self) -> int:
        return len(self.offsets)

    def row_numbers(self) -> Tensor:
        """The row of each entry, (n_entries,)."""
        n_entries = len(self.acts)  # known here: a GPU need not be asked for it
        lengths = torch.diff(self.offsets, append=self.offsets.new_full((1,), n_entries))
        rows = torch.arange(self.n_rows, device=self.acts.device)
        return torch.repeat_interleave(rows, lengths, output_size=n_entries)

    def row_sums(self, values: Tensor) -> Tensor:
        """The sum over each row's entries of values (n_entries,): (n,) in their dtype, int64 for booleans."""
        if self.width is not None:
            return values.view(self.n_rows, self.width).sum(dim=1)
        whole = values.long() if values.dtype == torch.bool else values
        return torch.zeros(self.n_rows, dtype=whole.dtype, device=whole.device).index_add(0, self.row_numbers(), whole)

    def dense(self) -> Tensor:
        """The latents as (n, latent_dim)."""
        latents = self.acts.new_zeros(self.n_rows, self.latent_dim)
        if self.width is not None:
            shape = (self.n_rows, self.width)
            return latents.scatter(1, self.features.view(shape), self.acts.view(shape))
        return latents.index_put((self.row_numbers(), self.features), self.acts)

    def reconstruct(self, directions: Tensor, bias: Tensor) -> Tensor:
        """bias + the sum of each row's latents times their features' rows of directions (latent_dim, input_dim)."""
        if self.width is not None:
            shape = (self.n_rows, self.width)
            features, acts = self.features.view(shape), self.acts.view(shape)
            return bias + embedding_bag(features, directions, mode="sum", per_sample_weights=acts)
        return bias + embedding_bag(self.features, directions, self.offsets, mode="sum", per_sample_weights=self.acts)
