"""BatchTopK: the k * batch largest positive pre-activations of a whole batch (arXiv 2412.06410).

At inference a latent is kept above one threshold of the SAE, so that a row does not depend on its neighbours: the
(k * n)-th largest pre-activation over all training rows, found once when the training ends.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from thought_saes.saes.entries import Entries
from thought_saes.saes.variant import Extras, Variant
from thought_saes.saes.variants.abstopk import places_by_k


class BatchTopK(Variant):
    """Rows share what a batch may select; L0 is k on average."""

    name = "batchtopk"
    equation = "z = ReLU(p) on the k * batch largest p of the batch; at inference z = p where p > threshold"
    threshold = "batch"
    revival = True

    def extras(self, latent_dim: int) -> dict[str, Tensor]:
        return {"threshold": torch.zeros(())}

    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        selected = torch.zeros_like(pre_acts, dtype=torch.bool)
        smallest = []
        for k, places in places_by_k(k_values):
            flat = pre_acts[places].flatten(start_dim=1)  # (n_sae, batch * latent_dim)
            top = flat.topk(k * pre_acts.shape[1], dim=-1, sorted=False)
            chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, top.indices, top.values > 0)
            selected[places] = chosen.view_as(selected[places])
            smallest.append(top.values.amin(dim=-1, keepdim=True).expand(-1, pre_acts.shape[1]))
        return selected, torch.cat(smallest)

    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        return Entries.of_mask(pre_acts, pre_acts > extras["threshold"])

    def finish(self, pre_acts: Iterable[Tensor], k: int, n_rows: int, extras: Extras) -> dict[str, Tensor]:
        threshold = cut_after((chunk[chunk > 0] for chunk in pre_acts), k * n_rows)
        return {"threshold": torch.zeros(()) if threshold is None else threshold.float()}


def cut_after(values: Iterable[Tensor], count: int) -> Tensor | None:
    """The value above which `count` of all values (one-dimensional chunks) lie, float64; None if there are no more.

    It stands between the last that is kept and the next: rounding moves neither across.
    """
    largest = torch.empty(0)
    for chunk in values:
        largest = torch.cat([largest, chunk.detach().cpu()])
        largest = largest.topk(min(count + 1, len(largest)), sorted=False).values
    if len(largest) <= count:
        return None
    next_one, last_kept = largest.topk(2, largest=False, sorted=True).values.double()
    return (next_one + last_kept) / 2
