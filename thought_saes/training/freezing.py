"""Epochs of a stack of SAEs that leave out the features which cannot be selected: as `train_epoch`, for less.

Most features of an SAE die, and Adam's traffic and the dense products are spent on them all the same. Before an
epoch this chooses, for each SAE, the features to leave out of it:

- they are at rest: not selected for so long, or ever, that Adam's moments move their weights no more. Their
  pre-activations are constant then, and all that they miss is the decay of the moments, which is made up for;
- on every training row their |pre_act| is well below the k-th largest.

The largest |pre_act| of a frozen feature on a row is the bound that the k-th largest of the live ones has to exceed
when the row is shown. If that holds on all rows, plain training would have selected the same; if it does not on a
single one, that SAE's epoch is thrown away and trained with all features. The host waits for the device a few times
an epoch, never within.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.training.adam import BETA1, BETA2, DECAY, Rates
from thought_saes.training.stack import Epoch, Stack, train_epoch

REST = 1e-9  # how far a weight at rest may still move: the rounding of weights around 0.01
MARGIN = 0.7  # of the k-th largest |pre_act|: features above are often selected in the next epoch
LEVELS = 8  # live features are rounded up to eighths of latent_dim: SAEs with as many train as one stack
WORTH = 6  # eighths at most: with more of them live, choosing and copying would cost what is saved
BLOCK = 512  # features whose pre-activations on all rows are held at a time
ROUNDING = 2e-6  # of |x| |w|: generous for the rounding of a float32 dot product
ROUNDING_TF32 = 2e-3  # of one in TF32, whose factors have 11 significant bits
FEATURE_AXES = (-1, -1, -2, None)  # of an SAE's W_enc, b_enc, W_dec and b_dec in the stack


def steps_to_rest(lr: float) -> int:
    """Steps without gradient after which Adam moves a weight by less than REST in all that follow together.

    Whatever the gradients were, |m| <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) sqrt(v), by Cauchy and Schwarz. A
    step without gradient multiplies |m| / sqrt(v) by DECAY = b1 / sqrt(b2) and moves the weight by at most lr of that.
    """
    in_all = lr * DECAY / (1 - DECAY) * (1 - BETA1) / math.sqrt((1 - BETA2) * (1 - BETA1**2 / BETA2))
    return max(100, math.ceil(math.log(REST / in_all, DECAY)))  # from 100 steps on Adam's 1 - b1^t is 1


class Frozen(NamedTuple):
    """What an epoch leaves out of an SAE."""

    features: Tensor  # (latent_dim,) all features, the frozen ones last
    n_live: int
    bounds: Tensor  # (n,) the largest |pre_act| of a frozen feature on each row


class LiveEpochs:
    """`train_epoch` for one stack, from its first epoch to its last: but for rounding it does the same."""

    def __call__(self, stack: Stack, x: Tensor, order: Tensor, batch_size: int, lr: Rates, steps: int) -> Epoch:
        n_sae, _, latent_dim = stack.weights[0].shape
        n_steps = -(-order.shape[1] // batch_size)
        if steps == 0:
            self.cells = stack.cell.tolist()
            self.norms = x.norm(dim=2)  # (n_cells, n)
            self.idle_steps = torch.full((n_sae, latent_dim), math.inf, device=x.device)  # since it was selected
            frozen: list[Frozen | None] = [None] * n_sae
        else:
            frozen = self._choose(stack, x, lr)
        self.epoch = Epoch(
            finite=torch.zeros(n_sae, dtype=torch.bool, device=x.device),
            fired=torch.zeros(n_sae, latent_dim, dtype=torch.bool, device=x.device),
            kth=torch.zeros(order.shape, device=x.device),
        )

        def train_all_features(places: slice) -> None:
            epoch = train_epoch(stack.part(places), x, order[places], batch_size, lr, steps)
            for whole, part in zip(self.epoch, epoch, strict=True):
                whole[places] = part

        for width, places in groups(frozen, latent_dim):
            if width == latent_dim:
                train_all_features(slice(places[0], places[-1] + 1))
                continue
            chosen = [choice for place in places if (choice := frozen[place])]
            live = [choice.features[:width] for choice in chosen]
            small = take(stack, places, live)
            epoch = train_epoch(small, x, order[places], batch_size, lr, steps)
            holds = bounds_hold(epoch.kth, torch.stack([choice.bounds for choice in chosen]))
            for index, place in enumerate(places):
                if not holds[index]:
                    train_all_features(slice(place, place + 1))
                    continue
                put_back(small, index, live[index], stack, place, n_steps)
                self.epoch.finite[place], self.epoch.kth[place] = epoch.finite[index], epoch.kth[index]
                self.epoch.fired[place].index_copy_(0, live[index], epoch.fired[index])
        self.idle_steps = torch.where(self.epoch.fired, 0, self.idle_steps + n_steps)
        return self.epoch

    def _choose(self, stack: Stack, x: Tensor, lr: Rates) -> list[Frozen | None]:
        """For each SAE what the coming epoch leaves out; None if that would not pay."""
        latent_dim = self.idle_steps.shape[1]
        resting = self.idle_steps >= steps_to_rest(float(np.max(lr)))  # (n_sae, latent_dim)
        last_if_resting = resting.byte().argsort(dim=1, stable=True)
        chosen: dict[int, tuple[Tensor, Tensor]] = {}
        for place, n_resting in enumerate(resting.sum(dim=1).tolist()):
            if level(latent_dim - n_resting, latent_dim) <= WORTH:
                cell = self.cells[place]
                W_enc, b_enc, *_ = (weight[place] for weight in stack.weights)
                features = last_if_resting[place, latent_dim - n_resting :]
                chosen[place] = well_below(
                    x[cell], self.norms[cell], W_enc, b_enc, features, MARGIN * self.epoch.kth[place]
                )
        n_frozen = torch.stack([is_frozen.sum() for is_frozen, _ in chosen.values()]).tolist() if chosen else []
        frozen: list[Frozen | None] = [None] * len(resting)
        for n, (place, (is_frozen, bounds)) in zip(n_frozen, chosen.items(), strict=True):
            if level(latent_dim - n, latent_dim) <= WORTH:
                features = is_frozen.byte().argsort(stable=True)
                frozen[place] = Frozen(features, latent_dim - n, bounds)
        return frozen


def level(n_live: int, latent_dim: int) -> int:
    """`n_live` features in LEVELS-ths of latent_dim, rounded up."""
    return -(-n_live * LEVELS // latent_dim)


def groups(frozen: Sequence[Frozen | None], latent_dim: int) -> Iterator[tuple[int, list[int]]]:
    """Places in the stack that train together, with the number of features that take part.

    Neighbours only where all do, as those train in place. Otherwise so few at a time that the copies of their
    weights and moments, with the gradients, take no more memory than the gradients of the whole stack.
    """
    levels = [LEVELS if choice is None else level(choice.n_live, latent_dim) for choice in frozen]
    for whole, same in groupby(range(len(levels)), key=lambda place: levels[place] == LEVELS):
        if whole:
            yield latent_dim, list(same)
    for few in range(1, WORTH + 1):
        places = [place for place in range(len(levels)) if levels[place] == few]
        at_once = max(1, len(levels) * LEVELS // (4 * few))
        for start in range(0, len(places), at_once):
            yield -(-few * latent_dim // LEVELS), places[start : start + at_once]


def well_below(
    x: Tensor, norms: Tensor, W_enc: Tensor, b_enc: Tensor, features: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of `features` have |pre_act| < limit (n,) on every row of x (n, input_dim), and the largest on each row.

    The first as a mask (latent_dim,), the second (n,). norms (n,): of the rows.
    """
    rounding = ROUNDING if x.device.type == "cpu" else ROUNDING_TF32
    is_below = torch.zeros(W_enc.shape[1], dtype=torch.bool, device=x.device)
    largest = torch.zeros_like(limit)
    for block in features.split(BLOCK):
        weights = W_enc[:, block]  # (input_dim, block)
        reach = torch.addmm(b_enc[:, block], x, weights).abs_()  # (n, block)
        reach += rounding * norms[:, None] * weights.norm(dim=0)
        below = (reach < limit[:, None]).all(dim=0)
        is_below[block] = below
        largest = torch.maximum(largest, reach.where(below, 0).amax(dim=1))
    return is_below, largest


def bounds_hold(kth: Tensor, bounds: Tensor) -> list[bool]:
    """For each SAE whether kth (n_sae, n) exceeded the bounds (n_sae, n) on all rows."""
    return (kth > bounds).all(dim=1).tolist()


def take(stack: Stack, places: Sequence[int], live: Sequence[Tensor]) -> Stack:
    """A copy of the SAEs at `places`, each with its `live` features alone."""

    def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.stack(
                [
                    tensor[place] if axis is None else tensor[place].index_select(axis, features)
                    for place, features in zip(places, live, strict=True)
                ]
            )
            for tensor, axis in zip(tensors, FEATURE_AXES, strict=True)
        ]

    k_values = tuple(stack.k_values[place] for place in places)
    weights, first, second = map(copied, stack.tensors)
    return Stack(k_values, stack.cell[list(places)], weights, first, second, stack.variant, recipe=stack.recipe)


def put_back(small: Stack, index: int, live: Tensor, stack: Stack, place: int, n_steps: int) -> None:
    """Copy an SAE's live features to its place in the stack; the moments of others decay by as many steps."""
    for tensors, smalls, decay in zip(stack.tensors, small.tensors, (1, BETA1**n_steps, BETA2**n_steps), strict=True):
        for tensor, part, axis in zip(tensors, smalls, FEATURE_AXES, strict=True):
            if axis is None:
                tensor[place].copy_(part[index])
            else:
                if decay != 1:
                    tensor[place].mul_(decay)
                tensor[place].index_copy_(axis, live, part[index])
