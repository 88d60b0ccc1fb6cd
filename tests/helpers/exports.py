"""SAEs of every variant with random non-zero weights, and what each computes, written from its definition."""

import torch
from torch import Tensor

from tests.helpers.results import correlated_rows
from thought_saes.activations.cell import Cell
from thought_saes.exports.library import Exported, Origin
from thought_saes.exports.weights import Weights
from thought_saes.results.names import SaeKey

INPUT_DIM, LATENT_DIM, K = 24, 96, 6
GROUPS = (6, 6, 12, 24, 48)


def rows(n_rows: int = 400) -> Tensor:
    """Rows (n_rows, INPUT_DIM) of low rank, far from the origin as activations are."""
    return torch.from_numpy(correlated_rows(n_rows, INPUT_DIM, seed=5)) + 20


def random_weights(variant: str, seed: int = 0) -> Weights:
    """Weights of a variant in float64, stored in float32 without loss; its bias puts the pre-activations around 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    encoder = 0.3 * draw(LATENT_DIM, INPUT_DIM)
    bias = (draw(LATENT_DIM) - encoder @ rows().mean(dim=0).double()).float().double()
    threshold = 0.5 + draw(LATENT_DIM).abs()
    if variant in ("batchtopk", "matryoshka"):
        threshold = threshold[:1].expand(LATENT_DIM)
    gated = variant == "gated"
    return Weights(
        variant=variant,
        k=K,
        W_enc=encoder,
        b_enc=bias,
        W_dec=draw(LATENT_DIM, INPUT_DIM),
        b_dec=10 + draw(INPUT_DIM),
        threshold=threshold if variant in ("batchtopk", "matryoshka", "jumprelu") else None,
        r_mag=0.2 * draw(LATENT_DIM) if gated else None,
        b_mag=bias + 0.3 * draw(LATENT_DIM) if gated else None,
        group_sizes=GROUPS if variant == "matryoshka" else (),
    )


def exported(weights: Weights) -> Exported:
    key = SaeKey(Cell(layer=3, position=2), weights.latent_dim, weights.k)
    return Exported(key, weights, {"epochs": 25, "seed": 0}, {"fvu": 0.1}, Origin("org/model", "set", "bot token"))


def latents(weights: Weights, x: Tensor) -> Tensor:
    """z (n, latent_dim) in float64."""
    x = x.double()
    pre_acts = x @ weights.W_enc.T + weights.b_enc
    if weights.variant in ("abstopk", "topk"):
        order = pre_acts.abs() if weights.variant == "abstopk" else pre_acts
        kept = torch.zeros_like(pre_acts).scatter(-1, order.topk(weights.k).indices, 1)
        return kept * (pre_acts if weights.variant == "abstopk" else pre_acts.relu())
    if weights.variant == "gated":
        assert weights.r_mag is not None
        assert weights.b_mag is not None
        magnitudes = (x @ weights.W_enc.T) * weights.r_mag.exp() + weights.b_mag
        return (pre_acts > 0) * magnitudes.relu()
    assert weights.threshold is not None
    return pre_acts * (pre_acts > weights.threshold)


def reconstruction(weights: Weights, z: Tensor) -> Tensor:
    return z @ weights.W_dec + weights.b_dec
