"""The sparse autoencoder: its equations and its weights.

    z     = select(W_enc x + b_enc)
    x_hat = W_dec z + b_dec

`select` is the variant's (`variants/`). The experiment's is AbsTopK. Deliberately missing: training (`training/`),
and centring or scaling of the input, which a recipe folds into the weights when they are written.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from thought_saes.saes.entries import Entries
from thought_saes.saes.names import PUBLISHED
from thought_saes.saes.variant import Variant, extras_of
from thought_saes.saes.variants import VARIANTS


def n_weights(input_dim: int, latent_dim: int) -> int:
    """Number of weights of an SAE, biases included."""
    return 2 * input_dim * latent_dim + input_dim + latent_dim


def linear(n_in: int, n_out: int) -> nn.Linear:
    """An `nn.Linear` whose weights are not drawn yet."""
    layer = nn.Linear.__new__(nn.Linear)  # its __init__ would draw
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = n_in, n_out
    layer.weight, layer.bias = nn.Parameter(torch.empty(n_out, n_in)), nn.Parameter(torch.empty(n_out))
    return layer


class SparseAutoencoder(nn.Module):
    """An SAE of any variant.

    Both layers start as `nn.Linear` does, and the decoder's columns at unit norm; the published training does not keep
    them there. `config` and `metrics` hold what a loaded checkpoint says of itself.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        k: int,
        variant: str = PUBLISHED,
        generator: torch.Generator | None = None,
        drawn: bool = True,
    ) -> None:
        """Raises ValueError if no SAE of this variant has these sizes. `generator` draws the weights.

        Unless `drawn`, they are whatever the memory held, and the random state stays as it is.
        """
        super().__init__()
        self.variant: Variant = VARIANTS[variant]
        self.variant.check(input_dim, latent_dim, k)
        self.input_dim, self.latent_dim, self.k = input_dim, latent_dim, k
        self.encoder, self.decoder = linear(input_dim, latent_dim), linear(latent_dim, input_dim)
        if drawn:
            self.reset_parameters(generator)
        for name, start in self.variant.extras(latent_dim).items():
            self.register_buffer(name, start)
        self.config: dict[str, Any] = {"input_dim": input_dim, "latent_dim": latent_dim, "k": k}
        self.metrics: dict[str, Any] = {}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights from `generator`: threads that start SAEs disturb each other's not."""
        for layer in (self.encoder, self.decoder):
            bound = layer.in_features**-0.5
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        self.decoder.weight /= self.decoder.weight.norm(dim=0)

    def entries(self, x: Tensor) -> Entries:
        """What the SAE selects on x (n, input_dim), in compressed rows."""
        return self.variant.entries(self.encoder(x), self.k, extras_of(self))

    def encode(self, x: Tensor) -> Tensor:
        """The latents z of x: (..., input_dim) -> (..., latent_dim)."""
        rows = x.reshape(-1, self.input_dim)
        return self.variant.latents(self.encoder(rows), self.k, extras_of(self)).view(*x.shape[:-1], self.latent_dim)

    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction of latents: (..., latent_dim) -> (..., input_dim)."""
        return self.decoder(latents)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def save(self, path: Path | str) -> None:
        """Write weights, `config` and `metrics` in the experiment's format; never half a file."""
        from thought_saes.saes.checkpoint import save_sae

        save_sae(self, Path(path))


class TopKSAE(SparseAutoencoder):
    """The experiment's SAE: it keeps the k latents of largest magnitude, with their signs.

        z     = AbsTopK_k(W_enc x + b_enc)
        x_hat = W_dec z + b_dec

    The field calls this rule AbsTopK (arXiv 2510.00404); plain TopK (arXiv 2406.04093) has a ReLU.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        k: int,
        *,
        generator: torch.Generator | None = None,
        drawn: bool = True,
    ) -> None:
        """Raises ValueError unless 1 <= k <= latent_dim and input_dim >= 1. The rest as for every variant."""
        super().__init__(input_dim, latent_dim, k, PUBLISHED, generator, drawn)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Self:
        """The SAE of a checkpoint, ours or the original experiment's; its weights need no gradients.

        Raises FileNotFoundError, or ValueError if the file is damaged, holds no SAE, or one of another variant.
        """
        from thought_saes.saes.checkpoint import load_sae

        sae = load_sae(path, device)
        if not isinstance(sae, cls):
            raise ValueError(f"{path} holds a {sae.variant.name} SAE, not an AbsTopK one: read it with load_sae")
        return sae
