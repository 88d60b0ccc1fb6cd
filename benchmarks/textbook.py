"""The textbook loop: every rule as its paper has it, autograd and torch.optim.Adam."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, mse_loss

from thought_saes.training.fused.selection import Selection

Step = Callable[[Tensor, float], object]  # one optimiser step on a batch (rows, input_dim) at a learning rate


def textbook_latents(pre_acts: Tensor, selection: Selection) -> Tensor:
    """The latents of pre-activations (rows, latent_dim)."""
    if selection.rule == "abstopk":
        top = pre_acts.abs().topk(selection.k, dim=-1).indices
        return torch.zeros_like(pre_acts).scatter(-1, top, pre_acts.gather(-1, top))
    positive = pre_acts.relu()
    if selection.rule == "topk":
        kept = positive.topk(selection.k, dim=-1)
        return torch.zeros_like(pre_acts).scatter(-1, kept.indices, kept.values)
    kept = positive.flatten().topk(selection.k * len(pre_acts))
    return torch.zeros_like(positive.flatten()).scatter(0, kept.indices, kept.values).view_as(pre_acts)


def textbook_loss(batch: Tensor, weights: list[Tensor], selection: Selection) -> Tensor:
    """The mean squared error, or its mean over the nested prefixes; weights as nn.Linear has them."""
    W_enc, b_enc, W_dec, b_dec = weights
    latents = textbook_latents(linear(batch, W_enc, b_enc), selection)
    if not selection.prefixes:
        return mse_loss(linear(latents, W_dec, b_dec), batch)
    return torch.stack(
        [mse_loss(linear(latents[:, :n], W_dec[:, :n], b_dec), batch) for n in selection.prefixes]
    ).mean()


def textbook_step(weights: list[Tensor], selection: Selection, lr: float) -> Step:
    """What trains the weights, in place."""
    parameters = [weight.detach().requires_grad_() for weight in weights]
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def step(batch: Tensor, rate: float) -> None:
        optimizer.param_groups[0]["lr"] = rate
        loss = textbook_loss(batch, parameters, selection)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
