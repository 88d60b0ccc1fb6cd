"""Train a stack of TopK SAEs in plain PyTorch, on any device: the readable reference for every other trainer.

On a GPU a step of a single SAE is too short to be worth its launches, so a stack may span every k and many
(layer, position). Nothing within an epoch waits for the device or copies to it: the rows are there, and the
epoch's orders come over once.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from topk_sae import TopKSAE


class Trained(NamedTuple):
    """How the training of one SAE went."""

    finite: bool  # whether its loss stayed finite
    seconds: float  # in a stack: its share


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """TF32 products on CUDA, for the training alone: metrics are measured in full float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@tf32_allowed()
def train_stack(
    saes: Sequence[TopKSAE],
    cells: Sequence[int],
    x: Tensor,
    orders: Iterator[np.ndarray],
    batch_size: int,
    lr: float,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> list[Trained]:
    """Train SAEs of one input_dim and latent_dim together, in place: saes[i] on the rows x[cells[i]].

    x: (n_cells, n, input_dim). orders: for each epoch the order of every cell's rows, (n_cells, n). The products
    are batched over the stack, and the optimizer works element by element: an SAE comes out as if trained alone.
    `on_epochs(n)` is called after each epoch with the number of SAEs.
    """
    started = time.perf_counter()
    by_k = sorted(range(len(saes)), key=lambda index: saes[index].k)  # so that equal k lie side by side
    n_of_k = Counter(saes[index].k for index in by_k)
    cell = torch.tensor([cells[index] for index in by_k], device=x.device)  # (n_sae,)
    weights = stack_weights([saes[index] for index in by_k], x.device)
    W_enc, b_enc, W_dec, b_dec = weights
    optimizer = torch.optim.Adam(weights, lr=lr, fused=True)
    finite = torch.ones(len(saes), dtype=torch.bool, device=x.device)
    for order in orders:
        shuffled = torch.from_numpy(order).to(x.device)[cell]  # (n_sae, n)
        loss_sum = torch.zeros(len(saes), device=x.device)
        for rows in shuffled.split(batch_size, dim=1):
            batch = x[cell[:, None], rows]  # (n_sae, batch, input_dim)
            pre_acts = torch.baddbmm(b_enc, batch, W_enc)  # (n_sae, batch, latent_dim)
            latents = torch.where(largest(pre_acts, n_of_k), pre_acts, 0)
            reconstruction = torch.baddbmm(b_dec, latents, W_dec)
            losses = mse_loss(reconstruction, batch, reduction="none").mean(dim=(1, 2))  # (n_sae,)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            loss_sum += losses.detach()
        finite &= loss_sum.isfinite()
        on_epochs(len(saes))
    optimizer.zero_grad()
    del optimizer  # gradients and moments make room for the SAEs
    with torch.no_grad():
        for place, index in enumerate(by_k):
            parameters = saes[index].to(x.device).parameters()
            for parameter, weight in zip(parameters, weights_of(weights, place), strict=True):
                parameter.copy_(weight)
    seconds = (time.perf_counter() - started) / len(saes)
    is_finite = dict(zip(by_k, finite.tolist(), strict=True))
    return [Trained(is_finite[index], seconds) for index in range(len(saes))]


@torch.no_grad()
def stack_weights(saes: Sequence[TopKSAE], device: torch.device) -> list[Tensor]:
    """W_enc (n_sae, input_dim, latent_dim), b_enc (n_sae, 1, latent_dim), W_dec (n_sae, latent_dim, input_dim)
    and b_dec (n_sae, 1, input_dim), which require gradients.

    Transposed against nn.Linear: so the products that give gradients write them as the optimizer reads them.
    """
    input_dim, latent_dim = saes[0].input_dim, saes[0].latent_dim
    shapes = (input_dim, latent_dim), (1, latent_dim), (latent_dim, input_dim), (1, input_dim)
    weights = [torch.empty(len(saes), *shape, device=device) for shape in shapes]
    for place, sae in enumerate(saes):
        for weight, parameter in zip(weights_of(weights, place), sae.parameters(), strict=True):
            weight.copy_(parameter)
    return [weight.requires_grad_() for weight in weights]


def weights_of(weights: Sequence[Tensor], place: int) -> tuple[Tensor, ...]:
    """Views of one SAE's weights in the stack, shaped as its parameters."""
    W_enc, b_enc, W_dec, b_dec = weights
    return W_enc[place].T, b_enc[place, 0], W_dec[place].T, b_dec[place, 0]


@torch.no_grad()
def largest(pre_acts: Tensor, n_of_k: Mapping[int, int]) -> Tensor:
    """Whether an entry of pre_acts (n_sae, batch, latent_dim) is among the k of largest magnitude of its row.

    n_of_k: the k along the stack, and how many SAEs each has.
    """
    selected = torch.zeros_like(pre_acts, dtype=torch.bool)
    first = 0
    for k, n in n_of_k.items():
        same_k = slice(first, first + n)
        selected[same_k].scatter_(-1, pre_acts[same_k].abs().topk(k, dim=-1, sorted=False).indices, True)
        first += n
    return selected


def bytes_of_a_cell(n_saes: int, n_rows: int, input_dim: int, latent_dim: int, batch_size: int) -> int:
    """The memory that one more (layer, position) takes in a stack, at most, with its SAEs and all its rows.

    float32: weights, gradients and two moments; per row of a batch pre-activations, latents and their gradients
    (and a byte for the selection), batch, reconstruction, loss and the gradients of both; the rows themselves.
    """
    n_weights = 2 * input_dim * latent_dim + input_dim + latent_dim
    of_an_sae = 16 * n_weights + batch_size * (17 * latent_dim + 20 * input_dim)
    return n_saes * of_an_sae + 4 * n_rows * input_dim
