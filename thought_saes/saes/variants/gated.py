"""Gated: one affine map says which features fire, another, along the same directions, how much (arXiv 2404.16014).

The encoder's bias is the gate's: pre_acts are g = a + b_enc, where a = W x, and the magnitude is m = exp(r_mag) a +
b_mag. When the training ends, all gates are moved alike so that L0 is k on the training rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from thought_saes.saes.entries import Entries
from thought_saes.saes.variant import B_ENC, Encoded, Extras, Variant
from thought_saes.saes.variants.batchtopk import cut_after
from thought_saes.saes.variants.jumprelu import LEAST_THRESHOLD, quantiles


def magnitudes(gates: Tensor, extras: Extras) -> Tensor:
    """m of every feature, from g."""
    return extras["r_mag"].exp() * (gates - extras[B_ENC]) + extras["b_mag"]


class Gated(Variant):
    """The penalty on the gates does not shrink the magnitudes."""

    name = "gated"
    equation = "z = ReLU(exp(r_mag) a + b_mag) where a + b_enc > 0, a = W x"
    threshold = "feature"
    unselected_gradient = True
    penalty = 1.0
    trained = ("r_mag", "b_mag")

    def extras(self, latent_dim: int) -> dict[str, Tensor]:
        return {name: torch.zeros(latent_dim) for name in self.trained}

    def begin(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        """The gates open where JumpReLU's thresholds start: L0 is near k from the first step."""
        return {B_ENC: -(quantiles(pre_acts, k, n_rows) - extras[B_ENC]).clamp(min=LEAST_THRESHOLD)}

    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("Gated selects by its gates: see encode")

    def encode(self, pre_acts: Tensor, k_values: Sequence[int], extras: Extras) -> Encoded:
        magnitude = magnitudes(pre_acts, extras)
        selected = (pre_acts.detach() > 0) & (magnitude.detach() > 0)
        smallest = torch.zeros(pre_acts.shape[:2], device=pre_acts.device)
        return Encoded(torch.where(selected, magnitude, 0), selected, smallest, gates=pre_acts.relu())

    def gate_losses(self, batch: Tensor, gates: Tensor, W_dec: Tensor, b_dec: Tensor, penalty: Tensor) -> Tensor:
        """The penalty, and what the gates alone leave of the rows; the decoder learns from neither."""
        reconstruction = torch.baddbmm(b_dec.detach(), gates, W_dec.detach())
        error = mse_loss(reconstruction, batch, reduction="none").mean(dim=(1, 2))
        return error + penalty.clone() * gates.sum(dim=2).mean(dim=1) / batch.shape[2]

    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        magnitude = magnitudes(pre_acts, extras)
        return Entries.of_mask(magnitude, (pre_acts > 0) & (magnitude > 0))

    def finish(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        cut = cut_after((chunk[magnitudes(chunk, extras) > 0] for chunk in pre_acts), k * n_rows)
        return {} if cut is None else {B_ENC: extras[B_ENC].detach() - float(cut)}

    def bytes_of_a_row(self, input_dim: int, latent_dim: int) -> int:
        """Gates and magnitudes, with their gradients; the gates reconstruct as well."""
        return super().bytes_of_a_row(input_dim, latent_dim) + 16 * latent_dim + 4 * input_dim

    def fold(self, extras: Extras, scale: float, shift: Tensor) -> dict[str, Tensor]:
        rate, bias = extras["r_mag"].double(), extras["b_mag"].double()
        return {"b_mag": scale * bias - rate.exp() * shift}
