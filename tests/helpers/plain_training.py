"""Small data for training, and the textbook loop of every selection rule: what fast trainers are held against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.textbook import textbook_latents
from thought_saes.training.fused.optimizer import SAEArrays
from thought_saes.training.fused.selection import Selection

BATCH, LR = 32, 1e-3


def random_sae(input_dim: int, latent_dim: int, seed: int = 0) -> SAEArrays:
    rng = np.random.default_rng(seed)
    W_enc, W_dec = rng.standard_normal((2, latent_dim, input_dim)).astype(np.float32) / input_dim**0.5
    b_enc, b_dec = (0.1 * rng.standard_normal(n).astype(np.float32) for n in (latent_dim, input_dim))
    return SAEArrays(W_enc, b_enc, W_dec, b_dec)


def random_rows(n_rows: int, input_dim: int, seed: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n_rows, input_dim)) + rng.standard_normal(input_dim)).astype(np.float32)


def shuffles(n_rows: int, epochs: int) -> list[NDArray[np.int64]]:
    return [np.random.default_rng(epoch).permutation(n_rows) for epoch in range(epochs)]


def two_clusters(n_rows: int = 400, input_dim: int = 24) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Rows along two different directions, and orders with long stretches of one of them: features of the
    other one stop firing meanwhile, and fire again."""
    rng = np.random.default_rng(5)
    x = 0.3 * rng.standard_normal((n_rows, input_dim)).astype(np.float32)
    half = n_rows // 2
    x[:half, : input_dim // 2] += 2 * rng.standard_normal(input_dim // 2).astype(np.float32)
    x[half:, input_dim // 2 :] += 2 * rng.standard_normal(input_dim // 2).astype(np.float32)
    orders = [np.append(rng.permutation(half), half + rng.permutation(half)) for _ in range(30)]
    return x, orders


def train_plain(
    x: NDArray[np.float32],
    initial: SAEArrays,
    selection: Selection | int,
    orders: list[NDArray[np.int64]],
    rates: NDArray[np.float64] | None = None,
) -> tuple[SAEArrays, list[float]]:
    """The textbook loop; returns the weights and the loss over each epoch. rates: of each step, LR by default."""
    rule = Selection("abstopk", selection) if isinstance(selection, int) else selection
    W_enc, b_enc, W_dec, b_dec = (torch.tensor(a).requires_grad_() for a in initial)
    optimizer = torch.optim.Adam((W_enc, b_enc, W_dec, b_dec), lr=LR)
    losses = []
    steps = 0
    for order in orders:
        squares = 0.0
        for rows in torch.from_numpy(order).split(BATCH):
            batch = torch.from_numpy(x)[rows]
            latents = textbook_latents(batch @ W_enc.T + b_enc, rule)
            errors = [
                torch.nn.functional.mse_loss(latents[:, :prefix] @ W_dec[:prefix] + b_dec, batch)
                for prefix in rule.prefixes or (len(W_enc),)
            ]
            loss = torch.stack(errors).mean()
            optimizer.zero_grad()
            loss.backward()
            if rates is not None:
                optimizer.param_groups[0]["lr"] = rates[steps]
            optimizer.step()
            steps += 1
            squares += loss.item() * batch.numel()
        losses.append(squares / x.size)
    return SAEArrays(*(p.detach().numpy() for p in (W_enc, b_enc, W_dec, b_dec))), losses


def difference(a: SAEArrays, b: SAEArrays) -> float:
    return max(float(np.abs(p - q).max()) for p, q in zip(a, b, strict=True))
