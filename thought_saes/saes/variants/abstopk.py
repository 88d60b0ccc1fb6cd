"""AbsTopK: the k pre-activations of largest magnitude of a row, with their signs (arXiv 2510.00404)."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from thought_saes.saes.entries import Entries
from thought_saes.saes.names import PUBLISHED
from thought_saes.saes.variant import Extras, Variant


class AbsTopK(Variant):
    """The experiment's rule."""

    name = PUBLISHED
    equation = "z = p on the k largest |p| of a row, signed"
    threshold = "row"
    signed = True
    revival = True

    def select(self, pre_acts: Tensor, k_values: Sequence[int]) -> tuple[Tensor, Tensor]:
        selected = torch.zeros_like(pre_acts, dtype=torch.bool)
        smallest = []
        for k, places in places_by_k(k_values):
            top = pre_acts[places].abs().topk(k, dim=-1, sorted=False)
            selected[places].scatter_(-1, top.indices, True)
            smallest.append(top.values.amin(dim=-1))
        return selected, torch.cat(smallest)

    def entries(self, pre_acts: Tensor, k: int, extras: Extras) -> Entries:
        features = pre_acts.abs().topk(k, dim=-1, sorted=False).indices
        return Entries.of_table(pre_acts.gather(-1, features), features, pre_acts.shape[-1])


def places_by_k(k_values: Sequence[int]) -> list[tuple[int, slice]]:
    """Each k of ascending k_values (n_sae,) and the places in the stack that have it."""
    found = []
    for k, same in groupby(range(len(k_values)), key=k_values.__getitem__):
        first, *rest = same
        found.append((k, slice(first, first + 1 + len(rest))))
    return found
