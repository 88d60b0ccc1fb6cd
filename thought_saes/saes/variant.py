"""What an SAE variant is: which pre-activations become latents, what the loss adds, and what a fast path may rely on.

A variant is a file in `variants/` and a line in its registry. The reference trainer (`training/stack.py`) and the SAE
itself (`sae.py`) ask only what stands here; the compiled trainer has a kernel for those variants that want speed, and
tests hold the two together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from thought_saes.saes.entries import Entries

# What a feature's pre-activation is held against to be selected: the k-th largest of its row or of the batch, a
# threshold of its own, or nothing.
Threshold = Literal["row", "batch", "feature", "none"]
Extras = Mapping[str, Tensor]  # the parameters or buffers of a variant beyond W_enc, b_enc, W_dec, b_dec


class Encoded(NamedTuple):
    """What a step's encoder gives, for a stack of SAEs."""

    latents: Tensor  # (n_sae, batch, latent_dim), differentiable
    selected: Tensor  # (n_sae, batch, latent_dim) bool
    smallest: Tensor  # (n_sae, batch) the magnitude that a pre-activation had to reach on each row


class Variant(ABC):
    """One way to choose latents. Instances hold no weights: `extras` come from the SAE or from the stack."""

    name: str
    equation: str  # of z from the pre-activations p
    threshold: Threshold
    # Whether a feature that a row does not select gets a gradient from it: if not, it may rest in a fast path.
    unselected_gradient: bool = False

    def extras(self, latent_dim: int) -> dict[str, Tensor]:
        """Further tensors of one SAE, as they start; each is (latent_dim,) or a scalar."""
        return {}

    @abstractmethod
    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The training's selection: a mask like pre_acts (n_sae, batch, latent_dim), and `Encoded.smallest`.

        k_values (n_sae,) ascend.
        """

    def encode(self, pre_acts: Tensor, k_values: Sequence[int], extras: Extras) -> Encoded:
        """The training's latents."""
        selected, smallest = self.select(pre_acts.detach(), k_values)
        return Encoded(torch.where(selected, pre_acts, 0), selected, smallest)

    def losses(self, batch: Tensor, latents: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        """The loss of each SAE of a stack, (n_sae,): the mean squared error over all values of batch (n_sae, n, d)."""
        reconstruction = torch.baddbmm(b_dec, latents, W_dec)
        return mse_loss(reconstruction, batch, reduction="none").mean(dim=(1, 2))

    def prefixes(self, latent_dim: int) -> tuple[int, ...]:
        """How many features each nested reconstruction of the loss has, ascending; none if there is but one."""
        return ()

    def finish(self, pre_acts: Iterable[Tensor], k: int, n_rows: int) -> dict[str, Tensor]:
        """The extras of an SAE whose training ended, from its pre_acts (rows, latent_dim) on all n training rows."""
        return {}

    @abstractmethod
    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        """The inference's latents of one trained SAE: pre_acts (n, latent_dim)."""

    def latents(self, pre_acts: Tensor, k: int, extras: Extras) -> Tensor:
        """The same as a dense, differentiable tensor: (n, latent_dim)."""
        return self.entries(pre_acts, k, extras).dense()

    def check(self, input_dim: int, latent_dim: int, k: int) -> None:
        """Raises ValueError unless 1 <= k <= latent_dim and input_dim >= 1."""
        if not 1 <= k <= latent_dim or input_dim < 1:
            raise ValueError(f"no SAE has input_dim {input_dim}, latent_dim {latent_dim} and k {k}")


def extras_of(module: nn.Module) -> dict[str, Any]:
    """The buffers of an SAE: its variant's extras."""
    return dict(module.named_buffers(recurse=False))
