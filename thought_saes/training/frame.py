"""The coordinates that an SAE is trained in: rows centred, whitened and scaled, and the way back into raw units.

An SAE's weights are folded when it is written, so that its file reconstructs raw rows and every reader of the
experiment's files reads it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from thought_saes.results.recipe import Recipe
from thought_saes.saes.moments import CHUNK_ROWS, chunks
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variant import extras_of, set_extras

# Of the largest variance, by direction: a smaller one is whitened as if it were so large. A float32 row of large mean
# tells nothing of it, and what whitening stretches, folding has to undo in float32.
LEAST_VARIANCE = 1e-6


def bytes_of_rows(recipe: Recipe, n_rows: int, input_dim: int) -> int:
    """The memory of a cell's rows in float32, as they are and as the recipe frames them, with its maps in float64."""
    maps = 2 * bool(recipe.whiten) + (recipe.start == "components")
    return 4 * n_rows * input_dim * (2 if recipe.centre else 1) + 8 * maps * input_dim**2


class Whitening(NamedTuple):
    """A symmetric map of centred rows, and its inverse: (input_dim, input_dim) float64 each."""

    forth: Tensor
    back: Tensor

    @classmethod
    def of(cls, x: Tensor, mean: Tensor, power: float) -> "Whitening":
        """Along each principal component of the rows x (n, input_dim), variance^(-power / 2) in units of the largest.

        Rows that are all equal are left as they are.
        """
        total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        for chunk in chunks(x, CHUNK_ROWS):
            rows = chunk.double() - mean
            total += rows.T @ rows
        variances, directions = torch.linalg.eigh(total)
        if variances[-1] <= 0:
            variances = torch.ones_like(variances)
        factors = (variances / variances[-1]).clamp(min=LEAST_VARIANCE) ** (-power / 2)
        return cls((directions * factors) @ directions.T, (directions / factors) @ directions.T)


class Frame(NamedTuple):
    """x = mean + scale * (framed, coloured again where rows are whitened)."""

    mean: Tensor  # (input_dim,) float64
    scale: float
    whitening: Whitening | None = None

    @classmethod
    def of(cls, x: Tensor, whiten: float = 0.0) -> "Frame":
        """The mean of the rows x (n, input_dim), and the root of their mean squared deviation per dimension.

        The deviation is taken after whitening by a power, if there is one. Rows that are all equal have scale 1: there
        is nothing to scale.
        """
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for chunk in chunks(x, CHUNK_ROWS):
            total += chunk.double().sum(dim=0)
        mean = total / len(x)
        unscaled = cls(mean, 1.0, Whitening.of(x, mean, whiten) if whiten else None)
        squares = sum(float(unscaled._deviations(chunk).square().sum()) for chunk in chunks(x, CHUNK_ROWS))
        return unscaled._replace(scale=(squares / x.numel()) ** 0.5 or 1.0)

    def _deviations(self, rows: Tensor) -> Tensor:
        """What is scaled, in float64."""
        centred = rows.double() - self.mean
        return centred if self.whitening is None else centred @ self.whitening.forth

    def apply(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """The rows x (n, input_dim) in this frame, float32; written to `into` if that is given."""
        framed = torch.empty_like(x, dtype=torch.float32) if into is None else into
        for start in range(0, len(x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            framed[rows] = self._deviations(x[rows]) / self.scale
        return framed

    @torch.no_grad()
    def fold(self, sae: SparseAutoencoder) -> None:
        """Bring an SAE of framed rows into raw units, in place: its latents and thresholds are `scale` times as large.

        In float64, stored as float32: W, scale b_enc - W mean, D, scale b_dec + mean; the extras as
        the variant says. Where rows are whitened by a map, W is W map, and D and b_dec are its inverse's images.
        """
        W, D = sae.encoder.weight.double(), sae.decoder.weight.double()
        bias, mean = sae.decoder.bias.double(), self.mean.to(W.device)
        if self.whitening is not None:
            forth, back = (way.to(W.device) for way in self.whitening)
            W, D, bias = W @ forth, back @ D, back @ bias
            sae.encoder.weight.copy_(W)
            sae.decoder.weight.copy_(D)
        shift = W @ mean
        set_extras(sae, sae.variant.fold(extras_of(sae), self.scale, shift))
        sae.encoder.bias.copy_(self.scale * sae.encoder.bias.double() - shift)
        sae.decoder.bias.copy_(self.scale * bias + mean)
