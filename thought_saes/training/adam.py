"""Adam as every trainer takes its steps: the constants of torch.optim.Adam, and its step sizes as tables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults
DECAY = BETA1 / BETA2**0.5  # of |m| / sqrt(v) in a step without gradient
FORGOTTEN = 400  # steps without gradient of which the last ones, 0.9^400, move no weight

Rates = float | NDArray[np.float64]  # one learning rate for all steps, or that of each


class AdamSteps(NamedTuple):
    """What Adam's step t does to a weight w with moments m and v: w -= sizes[t] m / (root_scales[t] sqrt(v) + eps).

    paths[t]: how far steps without gradient can take w after step t, in units of |m| / (sqrt(v) + eps) then.
    """

    sizes: NDArray[np.float64]  # from step 0, which is none
    root_scales: NDArray[np.float64]
    paths: NDArray[np.float64]

    @classmethod
    def up_to(cls, steps: int, lr: Rates) -> AdamSteps:
        """The tables of that many steps at learning rates `lr`; after its last one it stays as it is."""
        t = np.arange(1, steps + FORGOTTEN + 1)
        rates = np.asarray(lr, np.float64)
        if rates.ndim:
            rates = rates[np.minimum(t, len(rates)) - 1]
        sizes, root_scales = rates / (1 - BETA1**t), 1 / np.sqrt(1 - BETA2**t)
        paths = np.correlate(sizes / root_scales, DECAY ** np.arange(1, FORGOTTEN + 1), "valid")
        return cls(np.append(0, sizes), np.append(0, root_scales), paths)


def linear_decay(lr: float, steps: int) -> NDArray[np.float64]:
    """Learning rates from `lr` at the first of `steps` to lr / steps at the last."""
    return lr * (steps - np.arange(steps)) / steps
