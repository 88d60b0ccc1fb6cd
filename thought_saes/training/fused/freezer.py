"""Features that cannot be selected leave the products, and come back before they could be.

A feature that stopped firing is *frozen*: its encoder row is left behind. For an epoch before that it is *watched*:
its pre-activation on every training row, which is computed anyway, bounds what it can be there later, with what is
left of its path. Every row keeps a list of the frozen features that reach farthest there, and the bound of all
others. If what the live ones have to reach on a row (the k-th largest of the row, or of the batch) is above them, no
frozen feature can be selected there; otherwise those that may be are looked at, and are live again before the
selection is made. So every step selects what plain training would.
"""

from __future__ import annotations

import numpy as np

from thought_saes.training.freezing import ROUNDING
from thought_saes.training.fused import kernels
from thought_saes.training.fused.features import FeatureStates
from thought_saes.training.fused.optimizer import LazyAdam
from thought_saes.training.fused.team import FloatArray, IntArray, Team, product, zeros

MARGIN = 0.95  # of what is selected: features that reach it are not frozen, as they would soon be thawed
LISTED = 32  # frozen features that each row names


class Freezer:
    """Watches, freezes and thaws the features of one training on x (n, input_dim)."""

    def __init__(self, x: FloatArray, features: FeatureStates, adam: LazyAdam, signed: bool, team: Team) -> None:
        self.features, self.adam, self.signed, self.team = features, adam, signed, team
        self.lists = kernels.Lists(
            zeros(len(x), LISTED), np.full((len(x), LISTED), -1, np.int32), zeros(len(x)), zeros(len(x))
        )
        team.run(lambda first, last: kernels.row_norms(x, self.lists.norms, first, last), team.cuts(len(x)))

    def watch_idle(self) -> None:
        """Begin to watch the features that have not fired for a while: an epoch begins."""
        features = self.features
        features.slack[features.n_dense : features.n_live] = np.inf
        features.watched_since = self.adam.steps
        self._set_slack(features.idle(self.adam.steps))

    def freeze_watched(self) -> None:
        """Freeze the features that came near selection on no row of the epoch that ends."""
        watched = self.features.watched()
        self._set_slack(watched)
        self.features.freeze(watched, self.adam.steps)

    def _set_slack(self, positions: IntArray) -> None:
        features = self.features
        features.speeds[positions], features.sizes[positions] = self.adam.speeds_and_sizes(positions)
        features.slack[positions] = self._slack(positions, 0)

    def _slack(self, positions: IntArray, steps: int) -> FloatArray:
        """How far the pre-activation can still move, `steps` steps after the speeds were taken."""
        features = self.features
        rounding: FloatArray = np.float32(ROUNDING) * features.sizes[positions]
        return self.adam.path(steps) * features.speeds[positions] + rounding

    def watch_batch(self) -> Watch:
        """What notes how near the watched features come on the rows of the present batch."""
        watched = self.features.watched()
        return Watch(self, watched, self._slack(watched, self.adam.steps - self.features.watched_since))

    def thaw(self, batch: FloatArray, kth: FloatArray, order: IntArray) -> IntArray:
        """Make those frozen features live that may be selected on a row of the batch; returns the rows concerned.

        batch (rows, input_dim + 1): the rows `order`; kth (rows,): what the live features have to reach there. The
        features that are new stand last among the live ones.
        """
        features, columns = self.features, batch.shape[1]
        wanted, unsure = np.zeros(len(features.ids), np.bool_), np.zeros(len(order), np.bool_)
        rows: IntArray = kernels.may_be_selected(
            batch, self.adam.enc.w, kth, order, features.arrays(), self.lists, wanted, unsure, self.signed
        )
        if unsure.any():
            all_rows = np.flatnonzero(unsure)
            pre_acts = np.empty((len(all_rows), features.n_frozen), np.float32)
            product(batch[all_rows], self.adam.enc.w[features.n_live :, :columns].T, pre_acts)
            kernels.list_anew(
                pre_acts, kth, order, features.arrays(), all_rows, self.lists, wanted, self.signed
            )  # fmt: skip
        thawed = np.sort(features.place[wanted])
        if not len(thawed):
            return thawed
        self.adam.replay(self.adam.enc, features.enc_at, thawed)
        features.thaw(thawed, self.adam.steps)
        return rows


class Watch:
    """Of one batch: how near the watched features come to selection."""

    def __init__(self, freezer: Freezer, watched: IntArray, slack: FloatArray) -> None:
        self.freezer, self.watched, self.slack = freezer, watched, slack
        self.features = freezer.features.arrays()
        self.near = np.zeros((freezer.team.threads, len(watched)), np.bool_)

    def note(self, pre_acts: FloatArray, kth: FloatArray, order: IntArray, part: int, first: int, last: int) -> None:
        """Look at rows [first, last), which are the `part`-th that the team's threads take."""
        kernels.watch(
            pre_acts, kth, order, self.features, self.watched, self.slack, self.freezer.lists, self.near[part],
            np.float32(MARGIN), self.freezer.signed, first, last,
        )  # fmt: skip

    def end(self) -> None:
        """Those that came near are not watched any more."""
        self.freezer.features.slack[self.watched[self.near.any(axis=0)]] = np.inf
