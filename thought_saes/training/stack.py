"""Train a stack of SAEs in plain PyTorch, on any device: the readable reference for every other trainer.

On a GPU a step of a single SAE is too short to be worth its launches, so a stack may span every k and many
(layer, position). Nothing within an epoch waits for the device or copies to it: the rows are there, and the
epoch's orders come over once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.common.machine import float32_products
from thought_saes.results.recipe import PUBLISHED, Recipe
from thought_saes.saes.sae import SparseAutoencoder, n_weights
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.adam import Rates
from thought_saes.training.frame import bytes_of_rows
from thought_saes.training.revival import Revival
from thought_saes.training.steps import bytes_of_a_row, step_of


class Trained(NamedTuple):
    """How the training of one SAE went."""

    finite: bool  # whether its loss stayed finite
    seconds: float  # in a stack: its share
    backend: str  # 'torch' or 'fused'


class Stack(NamedTuple):
    """SAEs of one input_dim and latent_dim side by side, by ascending k, with the state of Adam.

    weights, and the first and second moments of each: W_enc (n_sae, input_dim, latent_dim), b_enc (n_sae, 1,
    latent_dim), W_dec (n_sae, latent_dim, input_dim), b_dec (n_sae, 1, input_dim), then the extras that the variant
    trains, each (n_sae, 1, latent_dim). Transposed against nn.Linear: so
    the products that give gradients write them as Adam reads them.
    """

    k_values: tuple[int, ...]  # (n_sae,)
    cell: Tensor  # (n_sae,): an SAE reconstructs the rows x[cell]
    weights: list[Tensor]
    first_moments: list[Tensor]
    second_moments: list[Tensor]
    variant: str
    penalty: Tensor | None = None  # (n_sae,) the weight of the penalty on gates, where the variant has them
    recipe: Recipe = PUBLISHED  # of which a step takes the decay of the weights and the decoder's unit norm
    revival: Revival | None = None  # of dead features, where the recipe revives them

    def part(self, places: slice) -> "Stack":
        """Some of the SAEs, in the same memory."""
        weights, first, second = ([tensor[places] for tensor in tensors] for tensors in self.tensors)
        return self._replace(
            k_values=self.k_values[places],
            cell=self.cell[places],
            weights=weights,
            first_moments=first,
            second_moments=second,
            penalty=None if self.penalty is None else self.penalty[places],
            revival=None if self.revival is None else self.revival.part(places),
        )

    @property
    def tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The weights and their first and second moments."""
        return self.weights, self.first_moments, self.second_moments

    def parameters(self, place: int) -> tuple[Tensor, ...]:
        """The weights of one SAE, in the same memory, in the order and layout of `trained_tensors`."""
        W_enc, b_enc, W_dec, b_dec, *extras = (weight[place] for weight in self.weights)
        return W_enc.T, b_enc[0], W_dec.T, b_dec[0], *(extra[0] for extra in extras)


class Epoch(NamedTuple):
    """What the SAEs of a stack did in an epoch."""

    finite: Tensor  # (n_sae,) whether the loss stayed so
    fired: Tensor  # (n_sae, latent_dim) whether a feature was selected on any row
    kth: Tensor  # (n_sae, n) the k-th largest |pre_act| of each row when it was shown


def train_epoch(stack: Stack, x: Tensor, order: Tensor, batch_size: int, lr: Rates, steps: int) -> Epoch:
    """Train a stack, in place, for an epoch on x (n_cells, n, input_dim) in the SAEs' order (n_sae, n).

    `steps` were taken before. Nothing here waits for the device or copies to it.
    """
    n_sae, device = len(stack.k_values), x.device
    take_step = step_of(stack, min(batch_size, order.shape[1]), steps)
    loss_sum = torch.zeros(n_sae, device=device)
    kth = torch.zeros(order.shape, device=device)
    all_rows = x.flatten(end_dim=1)  # one index tensor, not two: so the gather reads whole rows at a time
    places = order + stack.cell[:, None] * x.shape[1]
    batches = zip(order.split(batch_size, dim=1), places.split(batch_size, dim=1), strict=True)
    for step_number, (rows, places_of_rows) in enumerate(batches, start=steps):
        batch = all_rows[places_of_rows]  # (n_sae, batch, input_dim)
        losses, smallest = take_step(batch, rate_of(lr, step_number))
        loss_sum += losses
        kth.scatter_(1, rows, smallest)
    return Epoch(loss_sum.isfinite(), take_step.fired, kth)


def rate_of(lr: Rates, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    return lr if isinstance(lr, float) else float(lr[step])


EpochRunner = Callable[[Stack, Tensor, Tensor, int, Rates, int], Epoch]  # as `train_epoch`


@float32_products("tf32")  # metrics and baselines are measured in IEEE float32
def train_stack(
    saes: Sequence[SparseAutoencoder],
    cells: Sequence[int],
    x: Tensor,
    orders: Iterator[np.ndarray],
    batch_size: int,
    lr: Rates,
    on_epochs: Callable[[int], object] = lambda n: None,
    run_epoch: EpochRunner = train_epoch,
    recipe: Recipe = PUBLISHED,
) -> list[Trained]:
    """Train SAEs of one input_dim and latent_dim together, in place: saes[i] on the rows x[cells[i]].

    x: (n_cells, n, input_dim). orders: for each epoch the order of every cell's rows, (n_cells, n). The products
    are batched over the stack, and Adam works element by element: an SAE comes out as if trained alone.
    `on_epochs(n)` is called after each epoch with the number of SAEs. `run_epoch` stands in for `train_epoch`.
    Of the recipe it takes what a step adds: decay of the weights, the decoder's unit norm, revival.
    """
    started = time.perf_counter()
    by_k = sorted(range(len(saes)), key=lambda index: saes[index].k)
    stack = make_stack([saes[index] for index in by_k], [cells[index] for index in by_k], x.device, recipe)
    if recipe.aux_alpha:
        dead_steps = recipe.dead_epochs * -(-x.shape[1] // batch_size)
        stack = stack._replace(revival=Revival.of(recipe, stack.k_values, saes[0].latent_dim, dead_steps, x.device))
    finite = torch.ones(len(saes), dtype=torch.bool, device=x.device)
    steps = 0
    for order in orders:
        order_of_each = torch.from_numpy(order).to(x.device)[stack.cell]  # (n_sae, n)
        epoch = run_epoch(stack, x, order_of_each, batch_size, lr, steps)
        finite &= epoch.finite
        steps += -(-order.shape[1] // batch_size)
        on_epochs(len(saes))
    stack.first_moments.clear()  # they make room for the SAEs
    stack.second_moments.clear()
    with torch.no_grad():
        for place, index in enumerate(by_k):
            for tensor, weight in zip(trained_tensors(saes[index].to(x.device)), stack.parameters(place), strict=True):
                tensor.copy_(weight)
    seconds = (time.perf_counter() - started) / len(saes)
    is_finite = dict(zip(by_k, finite.tolist(), strict=True))
    return [Trained(is_finite[index], seconds, "torch") for index in range(len(saes))]


@torch.no_grad()
def make_stack(
    saes: Sequence[SparseAutoencoder], cells: Sequence[int], device: torch.device, recipe: Recipe = PUBLISHED
) -> Stack:
    """The stack of `saes`, which are in the order of their k, before any step."""
    input_dim, latent_dim = saes[0].input_dim, saes[0].latent_dim
    shapes: tuple[tuple[int, int], ...] = (
        (input_dim, latent_dim),
        (1, latent_dim),
        (latent_dim, input_dim),
        (1, input_dim),
    )
    shapes += ((1, latent_dim),) * len(saes[0].variant.trained)
    weights, first, second = ([torch.zeros(len(saes), *shape, device=device) for shape in shapes] for _ in range(3))
    cell = torch.tensor(cells, device=device)
    first_penalty = saes[0].variant.penalty
    penalty = None if first_penalty is None else torch.full((len(saes),), first_penalty, device=device)
    stack = Stack(tuple(sae.k for sae in saes), cell, weights, first, second, saes[0].variant.name, penalty, recipe)
    for place, sae in enumerate(saes):
        for weight, tensor in zip(stack.parameters(place), trained_tensors(sae), strict=True):
            weight.copy_(tensor)
    return stack


def trained_tensors(sae: SparseAutoencoder) -> list[Tensor]:
    """What training moves of an SAE: its parameters, and those of its buffers that its variant trains."""
    return [*sae.parameters(), *(sae.get_buffer(name) for name in sae.variant.trained)]


def bytes_of_a_cell(
    n_saes: int, n_rows: int, input_dim: int, latent_dim: int, batch_size: int, recipe: Recipe = PUBLISHED
) -> int:
    """The memory that one more (layer, position) takes in a stack, at most, with its SAEs and all its rows.

    float32: weights, two moments and gradients (or copies of all four, of what is not frozen), those of what the
    variant trains beside the weights included; what a step holds of each row of a batch; an SAE's order of the rows, in
    its cell and among those of all cells, and the k-th largest of each; the rows themselves, as they are and as the
    recipe frames them.
    """
    variant = VARIANTS[recipe.variant]
    of_a_row = bytes_of_a_row(recipe, input_dim, latent_dim)
    of_an_sae = 16 * (n_weights(input_dim, latent_dim) + len(variant.trained) * latent_dim) + batch_size * of_a_row
    of_an_sae += 20 * n_rows
    if recipe.unit_decoder:  # a product as large as the decoder, and its gradient's radial part
        of_an_sae += 8 * input_dim * latent_dim
    return n_saes * of_an_sae + bytes_of_rows(recipe, n_rows, input_dim)
