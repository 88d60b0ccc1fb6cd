"""What an SAE computes, apart from any library: its weights in float64, in the units of the raw activations.

Two changes leave every reconstruction as it is. Both are made in float64, and stored as float32 only by a library's
file:

- `mirrored`: AbsTopK as TopK with a ReLU. Of a pre-activation and its negative at most one is positive, so the k
  largest positive ones of [p, -p] are the k largest |p|.
- `after_subtracting_b_dec`: for libraries whose encoder sees x - b_dec.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thought_saes.common.errors import InputError
from thought_saes.saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class Weights:
    """An SAE's weights; L is latent_dim, d input_dim.

        p     = W_enc x + b_enc
        z     = the variant's selection of p
        x_hat = z W_dec + b_dec

    Gated: the gate opens where p > 0, and z = ReLU(exp(r_mag) W_enc x + b_mag) there.
    """

    variant: str
    k: int
    W_enc: Tensor  # (L, d)
    b_enc: Tensor  # (L,)
    W_dec: Tensor  # (L, d)
    b_dec: Tensor  # (d,)
    threshold: Tensor | None = None  # (L,): what p must exceed, where a row's k largest do not decide
    r_mag: Tensor | None = None  # (L,), of a gated SAE
    b_mag: Tensor | None = None  # (L,), of a gated SAE
    group_sizes: tuple[int, ...] = ()  # of a Matryoshka SAE, summing to L

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> "Weights":
        """Raises InputError if the SAE holds a threshold below 0: behind it lies what no library's ReLU lets out."""
        state = {name: value.detach().cpu().double() for name, value in sae.state_dict().items()}
        latent_dim = sae.latent_dim
        return cls(
            variant=sae.variant.name,
            k=sae.k,
            W_enc=state["encoder.weight"],
            b_enc=state["encoder.bias"],
            W_dec=state["decoder.weight"].T,
            b_dec=state["decoder.bias"],
            threshold=checked_threshold(state.get("threshold"), latent_dim),
            r_mag=state.get("r_mag"),
            b_mag=state.get("b_mag"),
            group_sizes=group_sizes(sae),
        )

    @property
    def latent_dim(self) -> int:
        return len(self.W_enc)

    @property
    def input_dim(self) -> int:
        return len(self.b_dec)

    def mirrored(self) -> "Weights":
        """An AbsTopK SAE as a TopK SAE of 2L latents: feature f where it is positive, L + f where it is negative."""
        assert self.variant == "abstopk"
        return replace(
            self,
            variant="topk",
            W_enc=torch.cat([self.W_enc, -self.W_enc]),
            b_enc=torch.cat([self.b_enc, -self.b_enc]),
            W_dec=torch.cat([self.W_dec, -self.W_dec]),
        )

    def after_subtracting_b_dec(self) -> "Weights":
        """The same SAE for an encoder that is given x - b_dec."""
        shift = self.W_enc @ self.b_dec
        b_mag = None if self.b_mag is None or self.r_mag is None else self.b_mag + self.r_mag.exp() * shift
        return replace(self, b_enc=self.b_enc + shift, b_mag=b_mag)


def group_sizes(sae: SparseAutoencoder) -> tuple[int, ...]:
    """How many features each nested prefix of a Matryoshka SAE adds; empty for other variants."""
    if sae.variant.name != "matryoshka":
        return ()
    variant: Any = sae.variant
    ends = variant.prefixes(sae.latent_dim)
    return tuple(end - start for start, end in zip((0, *ends[:-1]), ends, strict=True))


def checked_threshold(threshold: Tensor | None, latent_dim: int) -> Tensor | None:
    """One threshold for each feature. Raises InputError if one is negative."""
    if threshold is None:
        return None
    if (threshold < 0).any():
        raise InputError(
            f"a threshold of the SAE is {float(threshold.min()):.3g}: below 0 it lets negative latents through, which "
            "the ReLU of the other libraries does not"
        )
    return threshold.expand(latent_dim)


def as_float32(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are there as they are stored: float32 and contiguous."""
    return {name: value.float().contiguous() for name, value in tensors.items() if value is not None}
