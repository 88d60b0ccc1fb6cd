"""The coordinates that an SAE is trained in: rows centred and scaled, and the way back into raw units.

An SAE's weights are folded when it is written, so that its file reconstructs raw rows and every reader of the
experiment's files reads it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from thought_saes.saes.moments import CHUNK_ROWS, chunks
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variant import extras_of, set_extras


class Frame(NamedTuple):
    """x = mean + scale * framed."""

    mean: Tensor  # (input_dim,) float64
    scale: float

    @classmethod
    def of(cls, x: Tensor) -> "Frame":
        """The mean of the rows x (n, input_dim), and the root of their mean squared deviation per dimension.

        Rows that are all equal have scale 1: there is nothing to scale.
        """
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for chunk in chunks(x, CHUNK_ROWS):
            total += chunk.double().sum(dim=0)
        mean = total / len(x)
        squares = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks(x, CHUNK_ROWS))
        return cls(mean, (squares / x.numel()) ** 0.5 or 1.0)

    def apply(self, x: Tensor) -> Tensor:
        """The rows x (n, input_dim) in this frame, float32."""
        framed = torch.empty_like(x, dtype=torch.float32)
        for start in range(0, len(x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            framed[rows] = (x[rows].double() - self.mean) / self.scale
        return framed

    @torch.no_grad()
    def fold(self, sae: SparseAutoencoder) -> None:
        """Bring an SAE of framed rows into raw units, in place: its latents and thresholds are `scale` times as large.

        In float64, stored as float32: W, scale b_enc - W mean, D, scale b_dec + mean; the extras as
        the variant says.
        """
        W = sae.encoder.weight.double()
        mean = self.mean.to(W.device)
        shift = W @ mean
        set_extras(sae, sae.variant.fold(extras_of(sae), self.scale, shift))
        sae.encoder.bias.copy_(self.scale * sae.encoder.bias.double() - shift)
        sae.decoder.bias.copy_(self.scale * sae.decoder.bias.double() + mean)
