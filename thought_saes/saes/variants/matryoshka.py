"""Matryoshka: BatchTopK whose first features have to reconstruct alone, in nested groups (arXiv 2503.17547)."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from thought_saes.saes.variants.batchtopk import BatchTopK

GROUPS = (16, 16, 8, 4, 2)  # latent_dim is divided into its 1/16, 1/16, 1/8, 1/4 and 1/2


class Matryoshka(BatchTopK):
    """The loss is the mean over nested prefixes of what each leaves of the row."""

    name = "matryoshka"
    equation = "as batchtopk; the loss is the mean over the nested prefixes of |x - x_hat(prefix)|^2"

    def prefixes(self, latent_dim: int) -> tuple[int, ...]:
        ends, end = [], 0.0
        for part in GROUPS:
            end += latent_dim / part
            ends.append(min(latent_dim, max(1, round(end))))
        return tuple(sorted({*ends, latent_dim}))

    def bytes_of_a_row(self, input_dim: int, latent_dim: int) -> int:
        """Every prefix has a residual of its own."""
        further = len(self.prefixes(latent_dim)) - 1
        return super().bytes_of_a_row(input_dim, latent_dim) + 4 * further * input_dim

    def losses(self, batch: Tensor, latents: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        ends = self.prefixes(latents.shape[-1])
        reconstruction, start, terms = b_dec.expand_as(batch), 0, []
        for end in ends:
            reconstruction = torch.baddbmm(reconstruction, latents[..., start:end], W_dec[:, start:end])
            terms.append(mse_loss(reconstruction, batch, reduction="none").mean(dim=(1, 2)))
            start = end
        return torch.stack(terms).mean(dim=0)
