"""The edits of a state x at one cell: a feature taken out, a value's feature swapped for another's, and controls.

    ablate   x - z_f d_f
    swap     x - z d_v + zbar d_v'      zbar: the mean magnitude of the half of v' where it fires on training rows

The SAE's error stays in x. A value whose half is also that of the other value cannot be swapped: x stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thought_saes.downstream.known_features import KnownFeatures

SEVERAL = (5, 20)  # features that are swapped together, beside one and all of them


@dataclass(frozen=True)
class Swap:
    """Some questions whose value after a step is to become another, all of them as concepts: columns of the labels."""

    values: np.ndarray  # (n,) the concept that a question has
    others: np.ndarray  # (n,) the concept that it is given
    family: np.ndarray  # every concept of that step
    rows: list[int]  # the questions, by which everything random is drawn
    seed: list[int]  # that and this


def ablate(known: KnownFeatures, half: int, x: Tensor) -> Tensor:
    """x (n, input_dim) without a half."""
    return x - known.magnitudes(x)[:, half, None] * known.directions[half]


def swap_change(known: KnownFeatures, x: Tensor, swap: Swap) -> Tensor:
    """What a swap of single features adds to x: (n, input_dim)."""
    out, into = known.half[swap.values], known.half[swap.others]
    taken = known.magnitudes(x)[torch.arange(len(x)), torch.from_numpy(out)]
    change = known.mean[into, None] * known.directions[into] - taken[:, None] * known.directions[out]
    change[torch.from_numpy(out == into)] = 0
    return change


def several_change(known: KnownFeatures, swap: Swap, n_features: int) -> Tensor:
    """What a swap of several features adds: (n, input_dim).

    Each goes from its mean over the training rows of one value to that of the other; those that change most, by
    length, take part.
    """
    change = known.of_concept[swap.others] - known.of_concept[swap.values]  # (n, latent_dim)
    weight = known.sae.decoder.weight.detach()
    if n_features < change.shape[1]:
        largest = (change.abs() * weight.norm(dim=0)).topk(n_features, dim=1).indices
        change = torch.zeros_like(change).scatter(1, largest, change.gather(1, largest))
    return change @ weight.T


def features_change(known: KnownFeatures, x: Tensor, swap: Swap, n_features: int) -> Tensor:
    """The swap of so many features together; 0: of one for one."""
    return several_change(known, swap, n_features) if n_features else swap_change(known, x, swap)


def as_long(change: Tensor, other: Tensor) -> Tensor:
    """`change` (n, input_dim) in its own direction, row by row as long as `other`."""
    return torch.nn.functional.normalize(change, dim=1) * other.norm(dim=1, keepdim=True)


def along_axes(difference: Tensor, axes: Tensor, n_axes: int) -> Tensor:
    """The part of difference (n, input_dim) along those of the orthonormal axes, in columns, where it is largest."""
    parts = difference @ axes
    largest = parts.abs().topk(n_axes, dim=1).indices
    return torch.zeros_like(parts).scatter(1, largest, parts.gather(1, largest)) @ axes.T


def random_change(change: Tensor, rows: Sequence[int], seed: Sequence[int]) -> Tensor:
    """As long as `change` (n, input_dim), for each question in a direction of its own."""
    if not len(change):
        return change
    drawn = [np.random.default_rng([*seed, 8, row]).standard_normal(change.shape[1]) for row in rows]
    directions = torch.from_numpy(np.stack(drawn)).float()
    return change.norm(dim=1, keepdim=True) * directions / directions.norm(dim=1, keepdim=True)


def coactive_change(known: KnownFeatures, x: Tensor, swap: Swap) -> Tensor:
    """A swap of halves that tell no value of the step, as long on both sides: (n, input_dim).

    The one taken out fires on the question, and of those its part of x is nearest in length to the value's; the one
    put in is any that fires on training rows.
    """
    telling = known.half[swap.family]
    magnitudes, lengths = known.magnitudes(x), known.directions.norm(dim=1)
    out, into = known.half[swap.values], known.half[swap.others]
    parts = magnitudes * lengths  # (n, n_halves)
    wanted = parts[torch.arange(len(x)), torch.from_numpy(out)]
    distance = (parts - wanted[:, None]).abs()
    distance[parts == 0] = torch.inf
    distance[:, telling] = torch.inf
    found = distance.argmin(dim=1)
    free = np.setdiff1d(np.flatnonzero(known.fired), telling)
    if not len(free):
        return torch.zeros_like(x)
    drawn = [free[np.random.default_rng([*swap.seed, 9, row]).integers(len(free))] for row in swap.rows]
    units = known.directions / lengths.clamp(min=1e-30)[:, None]
    there = torch.isfinite(distance.min(dim=1).values)  # else no other half fires on the question
    change = (known.mean * lengths)[into, None] * units[drawn] - (wanted * there)[:, None] * units[found]
    change[torch.from_numpy(out == into)] = 0
    return change
