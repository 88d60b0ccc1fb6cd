"""Revival of dead features by an auxiliary loss: AuxK, arXiv 2406.04093, Appendix A.2.

The dead features of largest |pre-activation| reconstruct, by themselves, what the SAE leaves of a row. The magnitude
and the pre-activation itself count, before any ReLU: a feature whose pre-activations are negative gets a gradient too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from thought_saes.results.recipe import Recipe
from thought_saes.saes.variants.abstopk import places_by_k

LEAST_K = 32  # dead features that reconstruct, at least: a few cannot say which of many are of use


def bytes_of_a_row(input_dim: int, latent_dim: int) -> int:
    """The memory that it adds to a step for each row of the batch, at most."""
    return 8 * latent_dim + 4 * input_dim


class Revival(NamedTuple):
    """The auxiliary loss of a stack of SAEs, and which of their features are dead."""

    alpha: float
    k_values: tuple[int, ...]  # (n_sae,) dead features that reconstruct, ascending
    widths: Tensor  # (n_sae,) the same on the device
    dead_steps: int  # a feature that so many steps have not selected is dead
    idle: Tensor  # (n_sae, latent_dim) steps since each was selected

    @classmethod
    def of(
        cls, recipe: Recipe, k_values: Sequence[int], latent_dim: int, dead_steps: int, device: torch.device
    ) -> "Revival":
        """Of SAEs of k_values (n_sae,), ascending, before any step."""
        widths = tuple(min(recipe.aux_k or max(k, LEAST_K), latent_dim) for k in k_values)
        idle = torch.zeros(len(k_values), latent_dim, dtype=torch.int32, device=device)
        return cls(recipe.aux_alpha, widths, torch.tensor(widths, device=device), dead_steps, idle)

    def part(self, places: slice) -> "Revival":
        """Of some of the SAEs, in the same memory."""
        return self._replace(k_values=self.k_values[places], widths=self.widths[places], idle=self.idle[places])

    def losses(self, pre_acts: Tensor, batch: Tensor, latents: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        """What is added to the loss of each SAE, (n_sae,), in its units: mean squares over all values of the batch.

        alpha |e - e_hat|^2 min(dead / width, 1): e is what the SAE leaves, held fixed, and e_hat what the dead features
        make of it. Where none is dead it is 0.
        """
        dead = self.idle >= self.dead_steps  # (n_sae, latent_dim)
        reach = pre_acts.detach().abs().masked_fill_(~dead[:, None], -1)
        chosen = torch.zeros_like(reach, dtype=torch.bool)
        for width, places in places_by_k(self.k_values):
            top = reach[places].topk(width, dim=-1, sorted=False)
            chosen[places].scatter_(-1, top.indices, top.values >= 0)
        with torch.no_grad():
            left = batch - torch.baddbmm(b_dec, latents, W_dec)
        revived = torch.bmm(torch.where(chosen, pre_acts, 0), W_dec)
        errors = mse_loss(revived, left, reduction="none").mean(dim=(1, 2))
        return self.alpha * (dead.sum(dim=1) / self.widths).clamp(max=1) * errors

    def took_a_step(self, selected: Tensor) -> None:
        """A step has been taken: selected (n_sae, batch, latent_dim)."""
        self.idle.add_(1).masked_fill_(selected.any(dim=1), 0)
