"""What a step of a stack does between its batch and its new weights: gradients by autograd, or by hand.

Autograd is for every variant and recipe. By hand is for those whose loss is one reconstruction's error: the products
go into buffers that are kept, Adam is called in its functional form, and the weights come out the same to the last bit.
On a GPU a step is short, so that launches, allocations and the optimizer's bookkeeping count.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from thought_saes.results.recipe import Recipe
from thought_saes.saes.variant import B_ENC, K, Variant
from thought_saes.saes.variants import VARIANTS
from thought_saes.training import revival
from thought_saes.training.adam import BETA1, BETA2, EPS
from thought_saes.training.selectors import selector_of

if TYPE_CHECKING:
    from thought_saes.training.stack import Stack

PENALTY_RATE = 0.1  # a step multiplies the penalty by exp(this * (L0 / k - 1))


class Taken(NamedTuple):
    """What a step says of itself."""

    losses: Tensor  # (n_sae,): finite exactly where the loss is
    smallest: Tensor  # (n_sae, batch) the magnitude that a pre-activation had to reach on each row


class Step(Protocol):
    """A way to take steps of one stack, after some that were taken before."""

    fired: Tensor  # (n_sae, latent_dim) whether a feature was selected on any row of any step

    def __call__(self, batch: Tensor, lr: float) -> Taken:
        """Move the stack's weights and moments by a step on batch (n_sae, n, input_dim)."""


def step_of(stack: "Stack", batch_size: int, steps: int) -> Step:
    """The faster way for a stack whose `steps` have been taken."""
    by_hand = one_reconstruction(VARIANTS[stack.variant], stack.recipe)
    return StepByHand(stack, batch_size, steps) if by_hand else StepByAutograd(stack, steps)


def one_reconstruction(variant: Variant, recipe: Recipe) -> bool:
    """Whether the loss is the error of one reconstruction, by selected pre-activations, and nothing is done beside."""
    as_is = type(variant).encode is Variant.encode and type(variant).losses is Variant.losses
    return as_is and not recipe.aux_alpha and not recipe.unit_decoder


def bytes_of_a_row(recipe: Recipe, input_dim: int, latent_dim: int) -> int:
    """The memory of a step for each row of its batch, at most; float32, and a byte for the selection."""
    variant = VARIANTS[recipe.variant]
    if one_reconstruction(variant, recipe):  # pre-activations, latents, what is selected and from what; batch, residual
        return 17 * latent_dim + 8 * input_dim
    return variant.bytes_of_a_row(input_dim, latent_dim) + (
        revival.bytes_of_a_row(input_dim, latent_dim) if recipe.aux_alpha else 0
    )


class StepByAutograd:
    """The reference: the loss is written down, and differentiated."""

    def __init__(self, stack: "Stack", steps: int) -> None:
        device, self.stack, self.variant = stack.cell.device, stack, VARIANTS[stack.variant]
        self.fired = nothing_fired(stack)
        weights = [weight.detach().requires_grad_() for weight in stack.weights]
        self.W_enc, self.b_enc, self.W_dec, self.b_dec, *trained = weights
        self.k = torch.tensor(stack.k_values, device=device)
        self.extras = {B_ENC: self.b_enc, K: self.k} | dict(zip(self.variant.trained, trained, strict=True))
        self.optimizer = torch.optim.Adam(weights[:4], betas=(BETA1, BETA2), eps=EPS, fused=True)
        if trained:
            self.optimizer.add_param_group({"params": trained})
        for weight, first, second in zip(weights, stack.first_moments, stack.second_moments, strict=True):
            step = torch.full((), float(steps), device=device)
            self.optimizer.state[weight] = {"step": step, "exp_avg": first, "exp_avg_sq": second}

    def __call__(self, batch: Tensor, lr: float) -> Taken:
        stack, W_enc, W_dec = self.stack, self.W_enc, self.W_dec
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.variant.extras_rate), strict=False):
            group["lr"] = factor * lr
        pre_acts = torch.baddbmm(self.b_enc, batch, W_enc)  # (n_sae, n, latent_dim)
        latents, selected, smallest, extra_losses, gates = self.variant.encode(pre_acts, stack.k_values, self.extras)
        losses = self.variant.losses(batch, latents, W_dec, self.b_dec)  # (n_sae,)
        if extra_losses is not None:
            losses = losses + batch.var(dim=1, correction=0).mean(dim=1) * extra_losses
        if gates is not None and stack.penalty is not None:
            losses = losses + self.variant.gate_losses(batch, gates, W_dec, self.b_dec, stack.penalty)
            l0 = selected.sum(dim=(1, 2)) / selected.shape[1]
            stack.penalty.mul_((PENALTY_RATE * (l0 / self.k - 1)).exp())
        if stack.revival is not None:
            losses = losses + stack.revival.losses(pre_acts, batch, latents, W_dec, self.b_dec)
            stack.revival.took_a_step(selected)
        self.fired |= selected.any(dim=1)
        self.optimizer.zero_grad()
        losses.sum().backward()
        if stack.recipe.unit_decoder:
            take_out_the_radial_part(W_dec)
        decay((W_enc, W_dec), lr * stack.recipe.weight_decay)
        self.optimizer.step()
        if stack.recipe.unit_decoder:
            W_dec.detach().div_(W_dec.detach().norm(dim=2, keepdim=True))
        return Taken(losses.detach(), smallest)


class StepByHand:
    """The same where `one_reconstruction` holds, to the last bit: its operations are those that autograd makes."""

    def __init__(self, stack: "Stack", batch_size: int, steps: int) -> None:
        self.stack, self.fired, device = stack, nothing_fired(stack), stack.cell.device
        n_sae, input_dim, latent_dim = stack.weights[0].shape
        self.gradients = [torch.empty_like(weight) for weight in stack.weights]
        self.steps = [torch.full((), float(steps), device=device) for _ in stack.weights]
        self.nothing = torch.zeros((), device=device)
        self.select = selector_of(VARIANTS[stack.variant], stack.k_values, latent_dim, self.nothing)
        self._of_latents = torch.empty(n_sae * batch_size * latent_dim, device=device)
        self._latents = torch.empty_like(self._of_latents)
        self._of_rows = torch.empty(n_sae * batch_size * input_dim, device=device)

    @torch.no_grad()
    def __call__(self, batch: Tensor, lr: float) -> Taken:
        W_enc, b_enc, W_dec, b_dec = self.stack.weights
        of_W_enc, of_b_enc, of_W_dec, of_b_dec = self.gradients
        n_sae, n_rows, input_dim = batch.shape
        shape = (n_sae, n_rows, W_enc.shape[2])  # of a short last batch, too
        pre_acts, latents = (
            flat[: n_sae * n_rows * shape[2]].view(shape) for flat in (self._of_latents, self._latents)
        )
        residual = self._of_rows[: batch.numel()].view_as(batch)
        torch.baddbmm(b_enc, batch, W_enc, out=pre_acts)
        selected, smallest = self.select(pre_acts, latents, self.fired)
        torch.baddbmm(b_dec, latents, W_dec, out=residual).sub_(batch)
        losses = torch.linalg.vector_norm(residual, dim=(1, 2))
        residual.mul_(2 / (n_rows * input_dim))  # from here on the loss's gradient
        torch.bmm(latents.transpose(1, 2), residual, out=of_W_dec)
        torch.sum(residual, dim=1, keepdim=True, out=of_b_dec)
        torch.bmm(residual, W_dec.transpose(1, 2), out=pre_acts)
        torch.where(selected, pre_acts, self.nothing, out=pre_acts)
        torch.bmm(batch.transpose(1, 2), pre_acts, out=of_W_enc)
        torch.sum(pre_acts, dim=1, keepdim=True, out=of_b_enc)
        decay((W_enc, W_dec), lr * self.stack.recipe.weight_decay)
        self._adam(lr)
        return Taken(losses, smallest)

    def _adam(self, lr: float) -> None:
        """What torch.optim.Adam(fused=True).step does, without its bookkeeping."""
        stack = self.stack
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            stack.weights,
            self.gradients,
            stack.first_moments,
            stack.second_moments,
            [],  # AMSGrad's
            self.steps,
            lr=lr,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )


def nothing_fired(stack: "Stack") -> Tensor:
    n_sae, _, latent_dim = stack.weights[0].shape
    return torch.zeros(n_sae, latent_dim, dtype=torch.bool, device=stack.cell.device)


@torch.no_grad()
def decay(weights: tuple[Tensor, ...], by: float) -> None:
    """Decoupled from the gradient, as by AdamW."""
    if by:
        for weight in weights:
            weight.mul_(1 - by)


@torch.no_grad()
def take_out_the_radial_part(W_dec: Tensor) -> None:
    """Leave of the gradient what turns the unit directions W_dec (n_sae, latent_dim, input_dim), not what scales them.

    After the step they are brought back to unit norm: in this order Adam's moments hold no push against it.
    """
    assert W_dec.grad is not None
    W_dec.grad.sub_(W_dec * (W_dec.grad * W_dec).sum(dim=2, keepdim=True))
