"""Train a stack of TopK SAEs in plain PyTorch, on any device: the readable reference for every other trainer."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    x: Tensor,
    orders: Iterator[np.ndarray],
    batch_size: int,
    lr: float,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> list[Trained]:
    """Train SAEs of one shape together on x (n, input_dim), in place; k may differ.

    One batched product for the stack and one optimizer, which works element by element: an SAE comes out as if
    trained alone. `on_epochs(n)` is called after each epoch with the number of SAEs.
    """
    started = time.perf_counter()
    device = x.device
    # (n_sae, latent_dim, input_dim), (n_sae, 1, latent_dim), (n_sae, input_dim, latent_dim), (n_sae, 1, input_dim)
    weights = [
        torch.stack([parameter.detach() for parameter in parameters]).to(device)
        for parameters in zip(*(sae.parameters() for sae in saes), strict=True)
    ]
    W_enc, b_enc, W_dec, b_dec = weights = [
        (weight if weight.ndim == 3 else weight[:, None]).requires_grad_() for weight in weights
    ]
    optimizer = torch.optim.Adam(weights, lr=lr, fused=True)
    finite = torch.ones(len(saes), dtype=torch.bool, device=device)
    for order in orders:
        order_on_device = torch.from_numpy(order).to(device)
        loss_sum = torch.zeros(len(saes), device=device)
        for rows in order_on_device.split(batch_size):
            batch = x[rows].expand(len(saes), -1, -1)
            pre_acts = torch.baddbmm(b_enc, batch, W_enc.mT)  # (n_sae, batch, latent_dim)
            latents = torch.stack([keep_top(pre, sae.k) for pre, sae in zip(pre_acts, saes, strict=True)])
            reconstruction = torch.baddbmm(b_dec, latents, W_dec.mT)
            losses = (reconstruction - batch).square().mean(dim=(1, 2))  # (n_sae,)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            loss_sum += losses.detach()
        finite &= loss_sum.isfinite()
        on_epochs(len(saes))
    with torch.no_grad():
        for index, sae in enumerate(saes):
            for parameter, weight in zip(sae.parameters(), weights, strict=True):
                parameter.copy_(weight[index].reshape(parameter.shape))
            sae.to(device)
    seconds = (time.perf_counter() - started) / len(saes)
    return [Trained(is_finite, seconds) for is_finite in finite.tolist()]


def keep_top(pre_acts: Tensor, k: int) -> Tensor:
    """pre_acts (batch, latent_dim) with all but the k of largest magnitude in each row at zero."""
    top_indices = pre_acts.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre_acts).scatter(-1, top_indices, pre_acts.gather(-1, top_indices))
