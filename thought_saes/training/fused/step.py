"""The steps of the compiled trainer: how `trainer.py` says."""

from __future__ import annotations

import numpy as np

from thought_saes.training.adam import Rates
from thought_saes.training.fused import kernels
from thought_saes.training.fused.features import FeatureStates
from thought_saes.training.fused.freezer import Freezer
from thought_saes.training.fused.optimizer import LazyAdam, SAEArrays
from thought_saes.training.fused.selection import Selection
from thought_saes.training.fused.team import FloatArray, IntArray, Team, gather, product, zeros

REORDER_EVERY = 8  # steps between two looks for features to multiply densely
DENSE_SHARE = 0.5  # of the rows: features that fire more often are cheaper in dense products
DENSE_BLOCK = 128  # features whose dense gradients are held at a time
HALF_OCTAVE = 1 << 22  # in the bits of a float: how far the batch's threshold may fall in a step, or it is sought anew


class Buffers:
    """What a step over a batch writes and reads: nothing of it outlasts the step."""

    def __init__(self, rows: int, input_dim: int, stride: int, latent_dim: int, selection: Selection) -> None:
        n_entries, self.n_levels = rows * selection.k, max(1, len(selection.prefixes))
        self.batch, self.residual = zeros(rows, stride), zeros(self.n_levels * rows, stride)
        self.batch[:, input_dim] = 1
        self.pre_acts, self.dense_acts = zeros(rows, latent_dim + kernels.LINE), zeros(rows, latent_dim)
        self.dense_grads = self.pre_acts  # whose values are not needed for features that fire this often
        self.kth, self.squares = zeros(rows), zeros(rows)
        ends = (np.zeros(rows, np.int64) for _ in range(3))
        self.entries = kernels.Entries(np.zeros(n_entries, np.int64), zeros(n_entries), *ends)
        width = latent_dim if selection.of_batch else 0
        self.candidates = kernels.Candidates(np.zeros((rows, width), np.int32), np.zeros(rows, np.int64))
        self.by_feature = kernels.ByFeature(
            np.zeros(latent_dim + 1, np.int64), np.zeros(n_entries, np.int64), zeros(n_entries)
        )
        self.level_ends = np.zeros((rows, self.n_levels), np.int64)


class StepTrainer:
    """One training of one SAE: its weights and moments, its features' states, its buffers."""

    def __init__(
        self,
        x: FloatArray,
        initial: SAEArrays,
        selection: Selection,
        batch_size: int,
        lr: Rates,
        freeze: bool,
        team: Team,
    ) -> None:
        latent_dim, input_dim = initial.W_enc.shape
        selection.check(latent_dim)
        if x.shape[1] != input_dim:
            raise ValueError(f"x {x.shape} and W_enc {initial.W_enc.shape} do not fit together")
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            raise ValueError(f"x is {x.dtype}, contiguous: {x.flags.c_contiguous}; C-contiguous float32 needed")
        self.x, self.selection, self.team = x, selection, team
        self.columns = input_dim + 1  # with the constant of the encoder's bias
        self.adam = LazyAdam(initial, lr, team)
        self.features = FeatureStates(latent_dim, selection.prefixes[:-1], (*self.adam.enc, *self.adam.dec))
        rows = min(batch_size, len(x))
        self.buffers = Buffers(rows, input_dim, self.adam.stride, latent_dim, selection)
        self.grads = zeros(team.threads, rows * selection.k)  # of each thread's columns, then of all in the first
        self.floor = 1  # bits of a float that a latent is likely to exceed, where the rows of a batch compete
        self.freezer = Freezer(x, self.features, self.adam, selection.signed, team) if freeze else None

    def epoch(self, order: IntArray, batch_size: int) -> float:
        """One pass over all rows in this order; returns the mean squared error over all values.

        Raises ValueError if the order lacks a row: features are frozen for having been watched on all of them.
        """
        if len(order) != len(self.x) or (np.bincount(order, minlength=len(order)) != 1).any():
            raise ValueError(f"an order of {len(order)} is no permutation of {len(self.x)} rows")
        if self.freezer:
            self.freezer.watch_idle()
        squares = sum(self.step(order[start : start + batch_size]) for start in range(0, len(order), batch_size))
        if self.freezer:
            self.freezer.freeze_watched()
        return squares / self.x.size

    def step(self, order: IntArray) -> float:
        """One optimiser step on the rows `order`; returns the sum of the squared residuals."""
        self._choose_latents(order)
        self._compute_residual(order)
        self._update_weights(len(order))
        if self.adam.steps % REORDER_EVERY == 0 and not self.selection.prefixes:
            self._reorder_dense(len(order))
        return float(self.buffers.squares[: len(order)].sum(dtype=np.float64))

    def _choose_latents(self, order: IntArray) -> None:
        """Fill batch, entries, kth and dense_acts; sort the entries of sparse features by feature."""
        buffers, n_rows = self.buffers, len(order)
        of_batch = self.selection.of_batch

        def encode_and_select(first: int, last: int) -> None:
            gather(self.x, order[first:last], buffers.batch[first:last, : self.x.shape[1]])
            self._encode(first, last, 0, self.features.n_live)
            if not of_batch:
                self._select(np.arange(first, last))

        self.team.run(encode_and_select, self.team.cuts(n_rows))
        if of_batch:
            self._select_of_batch(n_rows)
        if self.freezer and self.features.n_frozen:
            frozen = self.features.n_live
            rows = self.freezer.thaw(buffers.batch[:n_rows, : self.columns], buffers.kth[:n_rows], order)
            if self.features.n_live > frozen:
                self._encode(0, n_rows, frozen, self.features.n_live)
                if of_batch:
                    self._select_of_batch(n_rows)
                else:
                    self._select(rows)
        features = self.features.arrays()
        if self.selection.prefixes:
            kernels.sort_by_level(features, buffers.entries, buffers.level_ends, 0, n_rows)
        kernels.sort_by_feature(features, buffers.entries, buffers.by_feature, n_rows)
        n_dense = self.features.n_dense
        fired = np.diff(buffers.by_feature.offsets[n_dense : self.features.n_live + 1])
        self.firing, self.idle = (n_dense + np.flatnonzero(chosen) for chosen in (fired > 0, fired == 0))

    def _encode(self, row: int, end: int, first: int, last: int) -> None:
        """pre_acts[row:end, first:last] of the features at positions [first, last)."""
        weights = self.adam.enc.w[first:last, : self.columns]
        product(self.buffers.batch[row:end, : self.columns], weights.T, self.buffers.pre_acts[row:end, first:last])

    def _select(self, rows: IntArray) -> None:
        buffers, features = self.buffers, self.features.arrays()
        k, signed = self.selection.k, self.selection.signed
        kernels.select(buffers.pre_acts, features, buffers.entries, buffers.kth, k, signed, rows)
        kernels.scatter(features, buffers.entries, buffers.dense_acts, rows)

    def _select_of_batch(self, n_rows: int) -> None:
        """Select among all rows, first of what is near the last batch's threshold: nearly always that is enough."""
        buffers, features, cuts = self.buffers, self.features.arrays(), self.team.cuts(n_rows)
        pre_acts, candidates, n_kept = buffers.pre_acts, buffers.candidates, n_rows * self.selection.k

        def collect(floor: int) -> int:
            self.team.run(
                lambda first, last: kernels.collect(pre_acts, features, candidates, np.int32(floor), first, last), cuts
            )
            return int(candidates.counts[:n_rows].sum())

        if collect(self.floor) < n_kept and self.floor > 1:
            collect(1)
        reached = kernels.threshold_of_batch(pre_acts, features, candidates, buffers.entries, n_rows, n_kept)
        self.floor = max(1, int(reached[0]) - HALF_OCTAVE)

        def fill(first: int, last: int) -> None:
            kernels.fill(pre_acts, features, candidates, buffers.entries, buffers.kth, *reached, first, last)
            kernels.scatter(features, buffers.entries, buffers.dense_acts, np.arange(first, last))

        self.team.run(fill, cuts)

    def _compute_residual(self, order: IntArray) -> None:
        """Fill residual with d loss / d reconstruction, and the gradients of the dense features' latents."""
        n_rows, cuts, buffers, stride = len(order), self.team.cuts(len(order)), self.buffers, self.adam.stride
        watch = self.freezer.watch_batch() if self.freezer else None
        self.adam.replay(self.adam.dec, self.features.dec_at, self.firing)
        features, n_dense = self.features.arrays(), self.features.n_dense
        W_dense, dec, entries = self.adam.dec.w[:n_dense], self.adam.dec.flat(), buffers.entries
        n_levels, level = buffers.n_levels, buffers.batch.size
        scale = np.float32(2 / (n_levels * n_rows * self.adam.input_dim))  # from the mean of squares
        batch, residual = buffers.batch.reshape(-1), buffers.residual.reshape(-1)

        def reconstruct(first: int, last: int) -> None:
            rows = slice(first, last)
            if watch:
                watch.note(buffers.pre_acts, buffers.kth, order, cuts.index(first), first, last)
            if n_levels > 1:
                kernels.reconstruct_nested(
                    batch, dec.w, self.adam.b_dec.w, entries, buffers.level_ends, residual, buffers.squares, scale,
                    stride, level, first, last,
                )  # fmt: skip
                return
            if n_dense:
                product(buffers.dense_acts[rows, :n_dense], W_dense, buffers.residual[rows])
            else:
                buffers.residual[rows] = 0
            kernels.reconstruct(
                batch, dec.w, self.adam.b_dec.w, entries, residual, buffers.squares, scale, stride, first, last
            )
            if n_dense:
                product(buffers.residual[rows], W_dense.T, buffers.dense_grads[rows, :n_dense])
                kernels.zero_unselected(features, entries, buffers.dense_grads, first, last)

        self.team.run(reconstruct, cuts)
        if watch:
            watch.end()

    def _update_weights(self, n_rows: int) -> None:
        """Gradients and Adam of the live features and of the decoder's bias."""
        factors, buffers, stride = self.adam.next_step(), self.buffers, self.adam.stride
        cuts = self.team.cuts(stride, kernels.LINE)
        features, by_feature = self.features.arrays(), buffers.by_feature
        n_entries = by_feature.offsets[features.n_live]
        enc, dec = self.adam.enc.flat(), self.adam.dec.flat()
        batch, residual = buffers.batch.reshape(-1), buffers.residual.reshape(-1)

        def update_dense(acts: FloatArray, rows: FloatArray, weights: kernels.Weights, first: int, last: int) -> None:
            for start in range(0, features.n_dense, DENSE_BLOCK):
                stop = min(start + DENSE_BLOCK, features.n_dense)
                gradients = np.empty((stop - start, last - first), np.float32)
                product(acts[:n_rows, start:stop].T, rows[:n_rows, first:last], gradients)
                kernels.update_dense(gradients, weights, factors, stride, start, first, last)

        def update_decoder(first: int, last: int) -> None:
            update_dense(buffers.dense_acts, buffers.residual, dec, first, last)
            kernels.update_decoder(
                residual, features, self.firing, by_feature, self.grads[cuts.index(first), :n_entries], dec, factors,
                stride, buffers.batch.size, first, last,
            )  # fmt: skip
            kernels.update_bias(residual, self.adam.b_dec, factors, n_rows, stride, first, last)

        def update_encoder(first: int, last: int) -> None:
            update_dense(buffers.dense_grads, buffers.batch, enc, first, last)
            kernels.update_encoder(batch, self.firing, by_feature, self.grads[0], enc, factors, stride, first, last)
            kernels.update_idle(self.idle, enc, factors, stride, first, last)

        self.team.run(update_decoder, cuts)
        for part in self.grads[1 : len(cuts) - 1, :n_entries]:
            self.grads[0, :n_entries] += part
        self.team.run(update_encoder, cuts)
        for seen in (self.features.last_fired, self.features.dec_at):
            seen[: features.n_dense] = seen[self.firing] = self.adam.steps

    def _reorder_dense(self, n_rows: int) -> None:
        """Let the features be dense that fired on a large share of the batch."""
        n_dense, n_live = self.features.n_dense, self.features.n_live
        margin = np.where(np.arange(n_live) < n_dense, 0.8, 1.2)  # against going back and forth
        fired = np.diff(self.buffers.by_feature.offsets[: n_live + 1])
        fired[:n_dense] = np.count_nonzero(self.buffers.dense_acts[:n_rows, :n_dense], axis=0)
        self.features.make_dense(fired > margin * DENSE_SHARE * n_rows)

    def result(self) -> SAEArrays:
        """The weights in the order of `initial`, every feature brought up to the last step."""
        adam, features = self.adam, self.features
        adam.replay(adam.enc, features.enc_at, np.arange(features.n_live, len(features.ids)))
        adam.replay(adam.dec, features.dec_at, np.arange(len(features.ids)))
        features.carried = ()
        adam.forget_moments()
        W_enc, W_dec = (np.empty((len(features.ids), adam.input_dim), np.float32) for _ in range(2))
        b_enc = adam.enc.w[features.place, adam.input_dim]
        for feature, position in enumerate(features.place):
            W_enc[feature] = adam.enc.w[position, : adam.input_dim]
            W_dec[feature] = adam.dec.w[position, : adam.input_dim]
        return SAEArrays(W_enc, b_enc, W_dec, adam.b_dec.w[: adam.input_dim].copy())
