"""AbsTopK's and TopK's selection of a step in one kernel, for a GPU: a program a row, which stays in registers.

`torch.topk` sorts, and its parts (values, mask, the k-th, which features fired) are launches of their own, for every k.
Here the k-th largest is found bit by bit, as floats of one sign are ordered like the integers of their bits: 31
counts of how many values reach a candidate. Of equal values at the edge those of the first features are chosen.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from thought_saes.saes.variants import VARIANTS

LONGEST_ROW = 16_384  # features: what a program can hold
LOWEST = tl.constexpr(-(2**31))
WITHOUT_SIGN = tl.constexpr(2**31 - 1)


@triton.jit
def select_of_a_row(
    pre_acts,
    k_values,
    latents,
    selected,
    smallest,
    fired,
    n_rows,
    latent_dim,
    MAGNITUDES: tl.constexpr,
    N: tl.constexpr,
):
    """One row of one SAE."""
    row = tl.program_id(0).to(tl.int64)
    sae = row // n_rows
    k = tl.load(k_values + sae)
    features = tl.arange(0, N)
    inside = features < latent_dim
    values = tl.load(pre_acts + row * latent_dim + features, mask=inside, other=0.0)
    bits = values.to(tl.int32, bitcast=True)
    keys = bits & WITHOUT_SIGN if MAGNITUDES else tl.where(bits < 0, bits ^ WITHOUT_SIGN, bits)
    keys = tl.where(inside, keys, LOWEST)
    kth = tl.where(tl.sum((keys >= 0).to(tl.int32), axis=0) >= k, 0, LOWEST)
    for place in range(31):
        candidate = kth | (1 << (30 - place))
        enough = tl.sum((keys >= candidate).to(tl.int32), axis=0) >= k
        kth = tl.where(enough, candidate, kth)
    above = keys > kth
    at_the_edge = (keys == kth) & inside
    room = k - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (at_the_edge & (tl.cumsum(at_the_edge.to(tl.int32), axis=0) <= room))
    edge = kth if MAGNITUDES else tl.where(kth < 0, kth ^ WITHOUT_SIGN, kth)
    if not MAGNITUDES:
        chosen = chosen & (values > 0)
    tl.store(latents + row * latent_dim + features, tl.where(chosen, values, 0.0), mask=inside)
    tl.store(selected + row * latent_dim + features, chosen.to(tl.uint8), mask=inside)
    tl.store(smallest + row, edge.to(tl.float32, bitcast=True))
    tl.store(fired + sae * latent_dim + features, tl.full((N,), 1, tl.uint8), mask=inside & chosen)


class OneKernel:
    """A selector of `selectors.py`."""

    rules = ("abstopk", "topk")

    def __init__(self, rule: str, k_values: Sequence[int], device: torch.device) -> None:
        self.magnitudes = VARIANTS[rule].signed
        self.k_values = torch.tensor(k_values, dtype=torch.int32, device=device)

    def __call__(self, pre_acts: Tensor, latents: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
        n_sae, n_rows, latent_dim = pre_acts.shape
        selected = torch.empty_like(pre_acts, dtype=torch.bool)
        smallest = torch.empty(n_sae, n_rows, device=pre_acts.device)
        select_of_a_row[(n_sae * n_rows,)](
            pre_acts,
            self.k_values,
            latents,
            selected.view(torch.uint8),
            smallest,
            fired.view(torch.uint8),
            n_rows,
            latent_dim,
            MAGNITUDES=self.magnitudes,
            N=triton.next_power_of_2(latent_dim),
            num_warps=4 if latent_dim <= 2048 else 8,
        )
        return selected, smallest
