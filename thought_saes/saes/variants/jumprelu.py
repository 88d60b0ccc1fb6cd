"""JumpReLU: a threshold of its own for every feature, learned through a window around it (arXiv 2407.14435).

The penalty holds the number of latents of a batch at k. When the training ends, one factor for all thresholds makes it
k on the training rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from thought_saes.saes.entries import Entries
from thought_saes.saes.variant import Encoded, Extras, K, Variant
from thought_saes.saes.variants.batchtopk import cut_after

WINDOW = 0.1  # the window's width, in standard deviations of a feature's pre-activation over the batch
PENALTY = 1.0  # of (L0 / k - 1)^2, against the fraction of variance unexplained
LEAST_THRESHOLD = 1e-6  # a latent is never negative
TINY = torch.finfo(torch.float32).tiny


class JumpReLU(Variant):
    """Learned thresholds: a row may hold more latents than another."""

    name = "jumprelu"
    equation = "z = p where p > threshold of the feature"
    threshold = "feature"
    unselected_gradient = True
    trained = ("threshold",)
    extras_rate = 5.0  # at the weights' rate a threshold moves too little in some hundred steps

    def extras(self, latent_dim: int) -> dict[str, Tensor]:
        return {"threshold": torch.full((latent_dim,), LEAST_THRESHOLD)}

    def begin(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        """The (1 - k / latent_dim)-quantile of each feature: L0 is near k from the first step."""
        return {"threshold": quantiles(pre_acts, k, n_rows).clamp(min=LEAST_THRESHOLD)}

    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("JumpReLU selects by its thresholds: see encode")

    def encode(self, pre_acts: Tensor, k_values: Sequence[int], extras: Extras) -> Encoded:
        thresholds = extras["threshold"]
        latents, steps = Jump.apply(pre_acts, thresholds, WINDOW * pre_acts.detach().std(dim=1, correction=0))
        l0 = steps.sum(dim=(1, 2)) / steps.shape[1]
        smallest = thresholds.detach().amin(dim=2).expand(-1, pre_acts.shape[1])
        return Encoded(latents, steps.detach() != 0, smallest, PENALTY * (l0 / extras[K] - 1) ** 2)

    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        return Entries.of_mask(pre_acts, pre_acts > extras["threshold"].clamp(min=LEAST_THRESHOLD))

    def finish(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        thresholds = extras["threshold"].clamp(min=LEAST_THRESHOLD)
        factor = cut_after(((chunk / thresholds)[chunk > 0] for chunk in pre_acts), k * n_rows)
        return {"threshold": (0 if factor is None else float(factor)) * thresholds}

    def bytes_of_a_row(self, input_dim: int, latent_dim: int) -> int:
        """The steps are kept beside the latents, and their gradients."""
        return super().bytes_of_a_row(input_dim, latent_dim) + 8 * latent_dim


def quantiles(pre_acts: Iterable[Tensor], k: int, n_rows: int) -> Tensor:
    """The (1 - k / latent_dim)-quantile of each feature over all n rows: (latent_dim,)."""
    largest: Tensor | None = None
    for chunk in pre_acts:
        rows = chunk if largest is None else torch.cat([largest, chunk])
        n_kept = max(1, round(k * n_rows / chunk.shape[1])) + 1
        largest = rows.topk(min(n_kept, len(rows)), dim=0).values
    assert largest is not None
    return largest[-1]


class Jump(torch.autograd.Function):
    """latents = p and steps = 1 where p > threshold, 0 elsewhere.

    Through a step there is no gradient; that of its expectation is estimated from the pre-activations in a window
    around the threshold, on both sides of it: dz/dt = -t K / width and dstep/dt = -K / width, K = |p - t| < width / 2.
    """

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, thresholds: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """pre_acts (n_sae, batch, latent_dim), thresholds (n_sae, 1, latent_dim), width (n_sae, latent_dim)."""
        reached = thresholds.clamp(min=LEAST_THRESHOLD)
        ctx.save_for_backward(pre_acts, reached, width)
        selected = pre_acts > reached
        return torch.where(selected, pre_acts, 0), torch.where(selected, 1.0, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_latents, of_steps = gradients
        pre_acts, reached, width = ctx.saved_tensors
        width = width[:, None].clamp(min=TINY)
        in_window = (pre_acts - reached).abs() < width / 2
        of_threshold = torch.where(in_window, reached * of_latents + of_steps, 0).sum(dim=1, keepdim=True)
        return torch.where(pre_acts > reached, of_latents, 0), -of_threshold / width, None
