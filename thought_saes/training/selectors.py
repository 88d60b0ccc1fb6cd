"""Who selects in a step by hand: the variant itself, on any device, or a kernel that does the same in one launch.

A kernel is tried before it is taken, on a few rows against the variant: where its compiler is absent or gives
something else, the variant selects, and that is said.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from thought_saes.common.errors import one_line
from thought_saes.saes.variant import Variant
from thought_saes.saes.variants import VARIANTS

KERNELS = {"cuda": "thought_saes.training.triton_selection"}  # by type of device: has OneKernel and LONGEST_ROW


class Selector(Protocol):
    """A way to select in a step of one stack."""

    def __call__(self, pre_acts: Tensor, latents: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
        """Write the latents of pre_acts (n_sae, n, latent_dim), and into fired (n_sae, latent_dim) what is selected.

        Gives what `Variant.select` gives.
        """


class ByVariant:
    """The reference."""

    def __init__(self, variant: Variant, k_values: Sequence[int], nothing: Tensor) -> None:
        """`nothing` is a zero on the device."""
        self.variant, self.k_values, self.nothing = variant, k_values, nothing

    def __call__(self, pre_acts: Tensor, latents: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
        selected, smallest = self.variant.select(pre_acts, self.k_values)
        torch.where(selected, pre_acts, self.nothing, out=latents)
        fired |= selected.any(dim=1)
        return selected, smallest


def selector_of(variant: Variant, k_values: Sequence[int], latent_dim: int, nothing: Tensor) -> Selector:
    """The fastest that can be had for SAEs of ascending k_values (n_sae,), where the zero `nothing` is."""
    device = nothing.device
    kernels = kernels_for(device) if device.type in KERNELS else None
    if kernels and variant.name in kernels.OneKernel.rules and latent_dim <= kernels.LONGEST_ROW:
        kernel: Selector = kernels.OneKernel(variant.name, k_values, device)
        return kernel
    return ByVariant(variant, k_values, nothing)


@cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """The kernels for a device, tried once in a process; None if they cannot be had, which is said on stderr."""
    try:
        kernels = importlib.import_module(KERNELS[device.type])
        for rule in kernels.OneKernel.rules:
            if not gives_the_same(kernels.OneKernel, rule, device):
                raise ValueError(f"{rule} comes out otherwise than by its rule")
    except Exception as problem:  # whatever a compiler, a driver or a linker may raise
        print(f"selecting without a kernel of its own: {one_line(problem)[:200]}", file=sys.stderr)
        return None
    return kernels


def gives_the_same(kernel: Any, rule: str, device: torch.device) -> bool:
    """Whether a kernel selects on a few rows as the variant does."""
    pre_acts = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)).to(device)
    found = []
    for way in (kernel(rule, (3, 30), device), ByVariant(VARIANTS[rule], (3, 30), pre_acts.new_zeros(()))):
        latents, fired = torch.full_like(pre_acts, torch.nan), torch.zeros(2, 48, dtype=torch.bool, device=device)
        found.append((latents, fired, *way(pre_acts, latents, fired)))
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
