"""What an SAE variant is: which pre-activations become latents, what the loss adds, and what a fast path may rely on.

A variant is a file in `variants/` and a line in its registry. The reference trainer (`training/stack.py`) and the SAE
itself (`sae.py`) ask only what stands here; the compiled trainer has a kernel for those variants that want speed, and
tests hold the two together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from thought_saes.saes.entries import Entries

if TYPE_CHECKING:
    from thought_saes.saes.sae import SparseAutoencoder

# What a feature's pre-activation is held against to be selected: the k-th largest of its row or of the batch, a
# threshold of its own, or nothing.
Threshold = Literal["row", "batch", "feature", "none"]
# The tensors of a variant beyond W_enc, b_enc, W_dec, b_dec, by name; and b_enc, which some need as well.
Extras = Mapping[str, Tensor]
B_ENC = "b_enc"
K = "k"  # among the extras of a training step: (n_sae,) on the device


class Encoded(NamedTuple):
    """What a step's encoder gives, for a stack of SAEs."""

    latents: Tensor  # (n_sae, batch, latent_dim), differentiable
    selected: Tensor  # (n_sae, batch, latent_dim) bool
    smallest: Tensor  # (n_sae, batch) the magnitude that a pre-activation had to reach on each row
    # (n_sae,) what the variant adds to the loss, in mean squares of the centred batch
    extra_losses: Tensor | None = None
    gates: Tensor | None = (
        None  # (n_sae, batch, latent_dim) what the penalty is on, and what has to reconstruct as well
    )


class Variant(ABC):
    """One way to choose latents. Instances hold no weights: `extras` come from the SAE or from the stack."""

    name: str
    equation: str  # of z from the pre-activations p
    threshold: Threshold
    signed: bool = False  # whether a latent may be negative: if not, a direction and its opposite take two features
    # Whether a feature that a row does not select gets a gradient from it: if not, it may rest in a fast path.
    unselected_gradient: bool = False
    revival: bool = False  # whether `training/revival.py` is for it: dead features are those that no row selects
    # The first weight of a penalty on the gates, which training adapts so that L0 stays at k; none if it has none.
    penalty: float | None = None
    trained: tuple[str, ...] = ()  # the extras that training moves
    extras_rate: float = 1.0  # their learning rate, in units of that of the weights

    def extras(self, latent_dim: int) -> dict[str, Tensor]:
        """Further tensors of one SAE, as they start; each is (latent_dim,) or a scalar."""
        return {}

    @abstractmethod
    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The training's selection: a mask like pre_acts (n_sae, batch, latent_dim), and `Encoded.smallest`.

        k_values (n_sae,) ascend.
        """

    def begin(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        """The extras before the first step, from the pre_acts (rows, latent_dim) on all n training rows."""
        return {}

    def encode(self, pre_acts: Tensor, k_values: Sequence[int], extras: Extras) -> Encoded:
        """The training's latents; extras (n_sae, 1, latent_dim), those that are trained and b_enc; and K."""
        selected, smallest = self.select(pre_acts.detach(), k_values)
        return Encoded(torch.where(selected, pre_acts, 0), selected, smallest)

    def losses(self, batch: Tensor, latents: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        """The loss of each SAE of a stack, (n_sae,): the mean squared error over all values of batch (n_sae, n, d)."""
        reconstruction = torch.baddbmm(b_dec, latents, W_dec)
        return mse_loss(reconstruction, batch, reduction="none").mean(dim=(1, 2))

    def gate_losses(self, batch: Tensor, gates: Tensor, W_dec: Tensor, b_dec: Tensor, penalty: Tensor) -> Tensor:
        """What is added to the loss of each SAE for `Encoded.gates`, (n_sae,), in the units of `losses`."""
        raise NotImplementedError(f"{self.name} has no gates")

    def prefixes(self, latent_dim: int) -> tuple[int, ...]:
        """How many features each nested reconstruction of the loss has, ascending; none if there is but one."""
        return ()

    def finish(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        """The extras of an SAE whose training ended, from its pre_acts (rows, latent_dim) on all n training rows."""
        return {}

    def fold(self, extras: Extras, scale: float, shift: Tensor) -> dict[str, Tensor]:
        """The extras once W x is scale * (what it was) + shift (latent_dim,) float64: thresholds of p scale with it."""
        return {name: scale * value.double() for name, value in extras.items() if name != B_ENC}

    @abstractmethod
    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        """The inference's latents of one trained SAE: pre_acts (n, latent_dim)."""

    def latents(self, pre_acts: Tensor, k: int, extras: Extras) -> Tensor:
        """The same as a dense, differentiable tensor: (n, latent_dim)."""
        return self.entries(pre_acts, k, extras).dense()

    def bytes_of_a_row(self, input_dim: int, latent_dim: int) -> int:
        """The memory of a training step for each row of its batch, at most.

        float32: pre-activations, latents and their gradients, and a byte for the selection; the batch, its
        reconstruction, the loss and the gradients of both. `tests/training/test_memory.py` measures it.
        """
        return 17 * latent_dim + 20 * input_dim

    def check(self, input_dim: int, latent_dim: int, k: int) -> None:
        """Raises ValueError unless 1 <= k <= latent_dim and input_dim >= 1."""
        if not 1 <= k <= latent_dim or input_dim < 1:
            raise ValueError(f"no SAE has input_dim {input_dim}, latent_dim {latent_dim} and k {k}")


def extras_of(sae: "SparseAutoencoder") -> dict[str, Tensor]:
    """The buffers of an SAE, its variant's extras, and b_enc."""
    return {**dict(sae.named_buffers(recurse=False)), B_ENC: sae.encoder.bias}


@torch.no_grad()
def set_extras(sae: "SparseAutoencoder", values: Extras) -> None:
    """Copy values into the extras of these names."""
    places = extras_of(sae)
    for name, value in values.items():
        places[name].copy_(value)
