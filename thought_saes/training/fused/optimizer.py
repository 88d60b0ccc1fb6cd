"""Adam with rows that are left behind while they have no gradient, and made up for when they are needed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from thought_saes.training.adam import BETA1, BETA2, DECAY, EPS, AdamSteps, Rates
from thought_saes.training.fused import kernels
from thought_saes.training.fused.team import FloatArray, IntArray, Team, zeros

REPLAYED = 200  # missed steps that are made up for: later ones do not change a float32


class SAEArrays(NamedTuple):
    """Weights of one SAE, float32 and C-contiguous."""

    W_enc: FloatArray  # (latent_dim, input_dim)
    b_enc: FloatArray  # (latent_dim,)
    W_dec: FloatArray  # (latent_dim, input_dim): feature-major, the transpose of nn.Linear's decoder.weight
    b_dec: FloatArray  # (input_dim,)


class LazyAdam:
    """Weights and moments of an SAE, by position, and the steps taken.

    The encoder's bias is a column of its weights, beside a constant 1 in the batch. Rows are padded to an odd number
    of cache lines: with a power-of-two stride a column piece of all rows would fall in a few cache sets.
    """

    def __init__(self, initial: SAEArrays, lr: Rates, team: Team) -> None:
        latent_dim, self.input_dim = initial.W_enc.shape
        lines = -(-(self.input_dim + 1) // kernels.LINE)
        self.stride = (lines + 1 - lines % 2) * kernels.LINE
        self.lr, self.team, self.steps = lr, team, 0
        self.table = AdamSteps.up_to(1000, lr)
        self.enc = kernels.Weights(*(zeros(latent_dim, self.stride) for _ in range(3)))
        self.dec = kernels.Weights(*(zeros(latent_dim, self.stride) for _ in range(3)))
        self.b_dec = kernels.Weights(*(zeros(self.stride) for _ in range(3)))
        self.enc.w[:, : self.input_dim], self.enc.w[:, self.input_dim] = initial.W_enc, initial.b_enc
        self.dec.w[:, : self.input_dim], self.b_dec.w[: self.input_dim] = initial.W_dec, initial.b_dec
        self.b_dec.w[self.input_dim] = 1  # equals the batch's constant, so that its residual is zero

    def next_step(self) -> kernels.Factors:
        """Count a step, and give what it does to a weight."""
        if self.steps == len(self.table.paths) - 1:
            self.table = AdamSteps.up_to(2 * self.steps, self.lr)
        self.steps += 1
        size, root_scale = self.table.sizes[self.steps], self.table.root_scales[self.steps]
        return kernels.Factors(*map(np.float32, (BETA1, BETA2, size, root_scale, EPS)))

    def replay(self, weights: kernels.Weights, since: IntArray, positions: IntArray) -> None:
        """Make up for the steps without gradient that the rows at `positions` missed."""
        positions = positions[since[positions] < self.steps]
        if not len(positions):
            return
        flat, (sizes, root_scales, _) = weights.flat(), self.table
        steps = kernels.Steps(self.steps, sizes, root_scales, BETA1, BETA2, np.float32(EPS), REPLAYED)

        def replay(first: int, last: int) -> None:
            kernels.replay(positions, since, flat, steps, self.stride, first, last)

        few = len(positions) < 32  # are done before another thread has started
        self.team.run(replay, [0, len(positions)] if few else self.team.cuts(len(positions)))

    def speeds_and_sizes(self, positions: IntArray) -> tuple[FloatArray, FloatArray]:
        """Norms |m / sqrt(v)| and |w| of encoder rows."""
        eps = np.float32(EPS * math.sqrt(1 - BETA2 ** (self.steps + 1)))
        speeds, sizes = kernels.speeds_and_sizes(self.enc, positions, eps)
        return speeds, sizes

    def path(self, steps: int) -> np.float32:
        """How far steps without gradient can take a weight whose speed was taken `steps` steps ago, in its units."""
        return np.float32(DECAY**steps * self.table.paths[self.steps])

    def forget_moments(self) -> None:
        """They make room for what is returned."""
        nothing = zeros(0)
        self.enc, self.dec = (kernels.Weights(weights.w, nothing, nothing) for weights in (self.enc, self.dec))
