"""The device that a flag names."""

import torch

from thought_saes.common.command_line import InputError


def choose_device(name: str) -> torch.device:
    """The device `name`; 'auto' is CUDA, then MPS, then the CPU. Raises InputError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise InputError(f"there is no device '{name}' here; 'auto' takes CUDA, MPS or the CPU") from problem
    return device
