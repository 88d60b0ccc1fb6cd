"""What the compiled trainer knows of each feature: where its weights are, and whether it is dense, live or frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thought_saes.training.fused import kernels
from thought_saes.training.fused.team import FloatArray, IntArray, zeros

WATCH_AFTER = 40  # steps without firing: Adam moves the weights of others too far


class FeatureStates:
    """Every feature has a position, which is the row of its weights, and by it a state:

    - [0, n_dense) dense: it fires so often that it is multiplied densely in all passes;
    - [n_dense, n_live) sparse; *watched* where its slack is finite: if it comes near selection on no row of the
      epoch, it is frozen at the end;
    - [n_live, latent_dim) frozen: in no product, and its encoder row is left behind.

    Positions change by `swap` alone, which takes the rows of `carried` along.
    """

    def __init__(self, latent_dim: int, prefixes: Sequence[int], carried: tuple[FloatArray, ...]) -> None:
        self.carried = carried
        self.n_live, self.n_dense = latent_dim, 0
        self.ids, self.place = np.arange(latent_dim), np.arange(latent_dim)
        self.levels = np.searchsorted(np.array(prefixes, np.int64), self.ids, side="right").astype(np.int64)
        self.last_fired = np.full(latent_dim, -WATCH_AFTER)
        # Steps seen by the encoder row of a frozen feature and by every decoder row that is not dense.
        self.enc_at, self.dec_at = np.zeros(latent_dim, np.int64), np.zeros(latent_dim, np.int64)
        # How far the pre-activation of a frozen or watched feature can still move, per unit of |x|; infinite for
        # others. Of watched ones when they began to be; it gets less with Adam's moments.
        self.slack = np.full(latent_dim, np.inf, np.float32)
        self.speeds, self.sizes = zeros(latent_dim), zeros(latent_dim)  # |m / sqrt(v)|, |w|: norms of encoder rows
        self.watched_since = 0

    @property
    def n_frozen(self) -> int:
        return len(self.ids) - self.n_live

    def arrays(self) -> kernels.Features:
        """The states as kernels read them, in the same memory."""
        return kernels.Features(self.ids, self.place, self.slack, self.levels, self.n_dense, self.n_live)

    def watched(self) -> IntArray:
        """Positions of the watched features."""
        return self.n_dense + np.flatnonzero(self.slack[self.n_dense : self.n_live] < np.inf)

    def idle(self, step: int) -> IntArray:
        """Positions of the sparse features that have not fired for WATCH_AFTER steps before `step`."""
        sparse = np.arange(self.n_dense, self.n_live)
        return sparse[step - self.last_fired[sparse] >= WATCH_AFTER]

    def swap(self, a: int, b: int) -> None:
        """Exchange the features at positions a and b."""
        kernels.swap(self.carried, a, b)
        per_position = self.ids, self.levels, self.last_fired, self.enc_at, self.dec_at, self.slack
        for array in (*per_position, self.speeds, self.sizes):
            array[[a, b]] = array[[b, a]]
        self.place[self.ids[[a, b]]] = a, b

    def freeze(self, positions: IntArray, step: int) -> None:
        """Make live features, all watched, frozen: their encoder rows have seen `step` steps."""
        for position in positions[::-1].tolist():
            self.n_live -= 1
            self.swap(position, self.n_live)
            self.enc_at[self.n_live] = step

    def thaw(self, positions: IntArray, step: int) -> None:
        """Make frozen features, ascending, live and idle from `step` on: their encoder rows are up to date."""
        for position in positions.tolist():
            self.swap(position, self.n_live)
            self.last_fired[self.n_live] = step
            self.slack[self.n_live] = np.inf
            self.n_live += 1

    def make_dense(self, often: np.ndarray) -> None:
        """Let exactly the live features that `often` (n_live,) names be dense."""
        self.n_dense = int(often.sum())
        leave, enter = np.flatnonzero(~often[: self.n_dense]), np.flatnonzero(often[self.n_dense :])
        for a, b in zip(leave.tolist(), (enter + self.n_dense).tolist(), strict=True):
            self.swap(a, b)

    def check(self) -> None:
        """Raises AssertionError unless the states hold together."""
        assert 0 <= self.n_dense <= self.n_live <= len(self.ids)
        np.testing.assert_array_equal(self.ids[self.place], np.arange(len(self.ids)))
        assert np.isinf(self.slack[: self.n_dense]).all(), "a dense feature is watched"
        assert np.isfinite(self.slack[self.n_live :]).all(), "nothing bounds a frozen feature"
        assert (self.slack >= 0).all()
        assert (np.diff(self.levels[self.place]) >= 0).all(), "the levels did not follow their features"
