"""TopK: the k largest pre-activations of a row, those that are positive (arXiv 2406.04093)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thought_saes.saes.entries import Entries
from thought_saes.saes.variant import Extras, Variant
from thought_saes.saes.variants.abstopk import places_by_k


class TopK(Variant):
    """Largest values, not magnitudes: a latent is never negative, and a winner that is not positive stays zero."""

    name = "topk"
    equation = "z = ReLU(p) on the k largest p of a row"
    threshold = "row"
    revival = True

    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        selected = torch.zeros_like(pre_acts, dtype=torch.bool)
        smallest = []
        for k, places in places_by_k(k_values):
            top = pre_acts[places].topk(k, dim=-1, sorted=False)
            selected[places].scatter_(-1, top.indices, top.values > 0)
            smallest.append(top.values.amin(dim=-1))
        return selected, torch.cat(smallest)

    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        top = pre_acts.topk(k, dim=-1, sorted=False)
        selected = torch.zeros_like(pre_acts, dtype=torch.bool).scatter_(-1, top.indices, top.values > 0)
        return Entries.of_mask(pre_acts, selected)
