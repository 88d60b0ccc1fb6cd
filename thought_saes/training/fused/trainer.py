"""Train one AbsTopK SAE on the CPU, paying for little more than the encoder's forward product.

Only k of the latent_dim latents of a row are non-zero, so after the dense pre-activations everything is
sparse. One step over a batch is four passes, of which each thread does an even part:

1. rows: gather the batch, `pre_acts = x W_enc^T + b_enc` (the only dense product), keep the k largest |pre|;
2. rows: the reconstruction from the k selected decoder rows, the residual and the loss;
3. columns: from the selected entries sorted by feature, the gradient of the latents and of the decoder rows;
4. columns: from these, the gradient of the encoder rows.

In 3 and 4 Adam is applied to a piece of a row as soon as its gradient is there, in cache: no dense gradient is
written. Threads take columns, not features, since features fire so unevenly that no cut of them is even.

Adam moves the weights of a feature without gradient too, but along a path that is known in advance. So a
decoder row is left behind while its feature does not fire, and the skipped steps are replayed when it does.

A feature that stopped firing is *frozen*: its encoder row is left behind as well, and leaves the dense
product. For an epoch before that it is *watched*: its |pre| on every training row, which is computed anyway,
bounds what it can be there later, with what is left of its path. Every row keeps a list of the frozen
features that reach farthest there, and the bound of all others. If the row's k-th largest live |pre| is above
them, no frozen feature can be among its k largest; otherwise those that may be are looked at, and are live
again before the selection is made. So every step selects what plain training would.

Features that fire on half the rows or more come first and are multiplied densely in all passes, which is
then faster: at a large k / latent_dim that is most of them.

The encoder's bias is a column of its weights, beside a constant 1 in the batch. Rows are padded to an odd
number of cache lines: with a power-of-two stride a column piece of all rows would fall in a few cache sets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.core.errors import NumbaError
from numpy.typing import NDArray

from thought_saes.saes.topk_sae import TopKSAE
from thought_saes.training.freezing import BETA1, BETA2, ROUNDING
from thought_saes.training.fused import kernels as kernels
from thought_saes.training.stack import Trained

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

EPS = 1e-8  # torch.optim.Adam's default
DECAY = BETA1 / BETA2**0.5  # of |m| / sqrt(v) in a step without gradient
WATCH_AFTER = 40  # steps without firing: Adam moves the weights of others too far
MARGIN = 0.95  # of the k-th largest |pre|: features that reach it are not frozen, as they would soon be thawed
LISTED = 32  # frozen features that each row names
REORDER_EVERY = 8  # steps between two looks for features to multiply densely
DENSE_SHARE = 0.5  # of the rows: features that fire more often are cheaper in dense products
DENSE_BLOCK = 128  # features whose dense gradients are held at a time
FORGOTTEN = 400  # steps without gradient of which the last ones, 0.9^400, move no weight
REPLAYED = 200  # of them are made up for: later ones do not change a float32


class SAEArrays(NamedTuple):
    """Weights of one SAE, float32 and C-contiguous."""

    W_enc: FloatArray  # (latent_dim, input_dim)
    b_enc: FloatArray  # (latent_dim,)
    W_dec: FloatArray  # (latent_dim, input_dim): feature-major, the transpose of nn.Linear's decoder.weight
    b_dec: FloatArray  # (input_dim,)


class AdamSteps(NamedTuple):
    """What Adam's step t does to a weight w with moments m and v: w -= sizes[t] m / (root_scales[t] sqrt(v) + eps).

    paths[t]: how far steps without gradient can take w after step t, in units of |m| / (sqrt(v) + eps) then.
    """

    sizes: NDArray[np.float64]  # from step 0, which is none
    root_scales: NDArray[np.float64]
    paths: NDArray[np.float64]

    @classmethod
    def up_to(cls, steps: int, lr: float) -> AdamSteps:
        t = np.arange(1, steps + FORGOTTEN + 1)
        sizes, root_scales = lr / (1 - BETA1**t), 1 / np.sqrt(1 - BETA2**t)
        paths = np.correlate(sizes / root_scales, DECAY ** np.arange(1, FORGOTTEN + 1), "valid")
        return cls(np.append(0, sizes), np.append(0, root_scales), paths)


def fused_pays(input_dim: int, latent_dim: int, k: int) -> bool:
    """Whether `train_fused` is expected to be faster than an autograd loop of dense products.

    Measured faster by at least 1.3 at every k up to latent_dim, since it multiplies densely where that pays;
    only so small a step that the calls themselves are the cost has nothing to gain.
    """
    return 1 <= k <= latent_dim and input_dim * latent_dim >= 1 << 10


def train_fused(
    x: FloatArray,
    initial: SAEArrays,
    k: int,
    epoch_orders: Iterable[IntArray],
    *,
    batch_size: int,
    lr: float,
    freeze: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> SAEArrays:
    """Train with Adam on the mean squared error over all elements; `initial` is not changed.

    x: (n_rows, input_dim), read in place. epoch_orders: one permutation of the rows per epoch; the last short
    batch is kept. on_epoch(epoch, mean_loss) is called after every epoch; the loss is not finite as soon as
    the data, a weight or the loss itself is not. Uses `torch.get_num_threads()` threads,
    one of which is the caller's: torch itself is set to one thread meanwhile, also during on_epoch.
    """
    with _Team() as team:
        trainer = _Trainer(x, initial, k, batch_size, lr, freeze, team)
        for epoch, order in enumerate(epoch_orders):
            loss = trainer.epoch(order, batch_size)
            if on_epoch is not None:
                on_epoch(epoch, loss)
        return trainer.result()


def _product(a: FloatArray, b: FloatArray, out: FloatArray) -> None:
    """out = a b, by the BLAS of torch, which is faster than numpy's and lets other threads run."""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


def _flat(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Views of contiguous arrays with one dimension, as the kernels address them."""
    return tuple(array.reshape(-1) for array in arrays)


def zeros(*shape: int) -> FloatArray:
    """float32 zeros that begin with a cache line: where rows of whole lines do not, every second load takes two."""
    n = math.prod(shape)
    memory = np.zeros(n + kernels.LINE, np.float32)
    start = -memory.ctypes.data % (4 * kernels.LINE) // 4
    return memory[start : start + n].reshape(shape)


class _Team:
    """The caller's number of threads, each of which calls single-threaded compiled code.

    One pool runs both torch's products and the sparse passes: two pools would spin against each other.
    """

    def __enter__(self) -> _Team:
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(max(self.threads - 1, 1))
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.threads)

    def cuts(self, n: int, unit: int = 1) -> list[int]:
        """Even cuts of range(n) for `run`, at multiples of `unit`, one of n itself; no part is empty."""
        return sorted({n // unit * i // self.threads * unit for i in range(self.threads + 1)})

    def run(self, function: Callable[[int, int], None], cuts: list[int]) -> None:
        """function(first, last) for all neighbouring cuts, at the same time."""
        waiting = [self.pool.submit(function, *ends) for ends in list(pairwise(cuts))[1:]]
        function(cuts[0], cuts[1])
        for future in waiting:
            future.result()


class _Trainer:
    """Weights, moments and buffers of one training; features are at positions, the first n_live are live."""

    def __init__(
        self, x: FloatArray, initial: SAEArrays, k: int, batch_size: int, lr: float, freeze: bool, team: _Team
    ) -> None:
        latent_dim, self.input_dim = initial.W_enc.shape
        if x.shape[1] != self.input_dim or not 1 <= k <= latent_dim:
            raise ValueError(f"x {x.shape}, W_enc {initial.W_enc.shape} and k = {k} do not fit together")
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            raise ValueError(f"x is {x.dtype}, contiguous: {x.flags.c_contiguous}; C-contiguous float32 needed")
        self.x, self.k, self.lr, self.freeze, self.team = x, k, lr, freeze, team
        self.columns = self.input_dim + 1
        lines = -(-self.columns // kernels.LINE)
        self.stride = (lines + 1 - lines % 2) * kernels.LINE

        self.enc = tuple(zeros(latent_dim, self.stride) for _ in range(3))  # W, m, v
        self.dec = tuple(zeros(latent_dim, self.stride) for _ in range(3))
        self.b_dec = tuple(zeros(self.stride) for _ in range(3))
        self.enc[0][:, : self.input_dim], self.enc[0][:, self.input_dim] = initial.W_enc, initial.b_enc
        self.dec[0][:, : self.input_dim], self.b_dec[0][: self.input_dim] = initial.W_dec, initial.b_dec
        self.b_dec[0][self.input_dim] = 1  # equals the batch's constant, so that its residual is zero

        rows = min(batch_size, len(x))
        self.batch, self.residual = zeros(rows, self.stride), zeros(rows, self.stride)
        self.batch[:, self.input_dim] = 1
        self.pre_acts, self.dense_acts = zeros(rows, latent_dim + kernels.LINE), zeros(rows, latent_dim)
        self.dense_grads = self.pre_acts  # whose values are not needed for features that fire this often
        self.counts = np.zeros(rows, np.int64)
        self.indices, self.acts = np.zeros((rows, k), np.int64), zeros(rows, k)
        self.kth, self.squares = zeros(rows), zeros(rows)
        self.offsets = np.zeros(latent_dim + 1, np.int64)
        self.entry_rows, self.coefs = np.zeros(rows * k, np.int64), zeros(rows * k)
        self.grads = zeros(team.threads, rows * k)  # of each thread's columns, then of all in the first

        self.steps = 0
        self.adam = AdamSteps.up_to(1000, lr)
        self.n_live = latent_dim
        self.n_dense = 0  # of them at the front, multiplied densely after the encoder too
        self.ids, self.place = np.arange(latent_dim), np.arange(latent_dim)  # feature at each position, and back
        self.last_fired = np.full(latent_dim, -WATCH_AFTER)
        # Steps seen by the encoder row of a frozen feature and by every decoder row that is not dense.
        self.enc_at, self.dec_at = np.zeros(latent_dim, np.int64), np.zeros(latent_dim, np.int64)
        # How far |pre| of a frozen or watched feature can still move, per unit of |x|; infinite for others. Of watched
        # ones when they began to be; it gets less with Adam's moments: speeds |m / sqrt(v)|, sizes |w|, norms of rows.
        self.slack = np.full(latent_dim, np.inf, np.float32)
        self.speeds, self.sizes, self.watched_since = zeros(latent_dim), zeros(latent_dim), 0
        # For every row the frozen and watched features whose |pre| can reach farthest, and how far others can.
        self.lists = zeros(len(x), LISTED), np.full((len(x), LISTED), -1, np.int32), zeros(len(x))
        self.norms = zeros(len(x))
        if freeze:
            team.run(lambda first, last: kernels.row_norms(x, self.norms, first, last), team.cuts(len(x)))

    def epoch(self, order: IntArray, batch_size: int) -> float:
        """One pass over all rows in this order; returns the mean squared error over all values.

        Raises ValueError if the order lacks a row: features are frozen for having been watched on all of them.
        """
        if len(order) != len(self.x) or (np.bincount(order, minlength=len(order)) != 1).any():
            raise ValueError(f"an order of {len(order)} is no permutation of {len(self.x)} rows")
        if self.freeze:
            self._watch_idle()
        squares = sum(self.step(order[start : start + batch_size]) for start in range(0, len(order), batch_size))
        if self.freeze:
            self._freeze_watched()
        return squares / self.x.size

    def step(self, order: IntArray) -> float:
        """One optimiser step on the rows `order`; returns the sum of the squared residuals."""
        if self.steps == len(self.adam.paths) - 1:
            self.adam = AdamSteps.up_to(2 * self.steps, self.lr)
        self._choose_latents(order)
        self._compute_residual(order)
        self._update_weights(len(order))
        if self.steps % REORDER_EVERY == 0:
            self._reorder_dense(len(order))
        return float(self.squares[: len(order)].sum(dtype=np.float64))

    def _choose_latents(self, order: IntArray) -> None:
        """Fill batch, indices (ascending positions), acts, kth and dense_acts; sort the other entries by feature."""

        def encode_and_select(first: int, last: int) -> None:
            kernels.gather(self.x, order, self.batch, first, last)
            self._encode(self.batch[first:last], self.pre_acts[first:last], 0, self.n_live)
            self._select(np.arange(first, last))

        self.team.run(encode_and_select, self.team.cuts(len(order)))
        if self.n_live < len(self.ids):
            self._thaw_what_may_be_selected(order)
        kernels.sort_by_feature(
            self.indices, self.acts, self.counts, len(order), self.n_live, self.offsets, self.entry_rows, self.coefs
        )
        fired = np.diff(self.offsets[: self.n_live + 1])
        self.firing, self.idle = (
            self.n_dense + np.flatnonzero(sparse) for sparse in (fired[self.n_dense :] > 0, fired[self.n_dense :] == 0)
        )

    def _compute_residual(self, order: IntArray) -> None:
        """Fill residual with d loss / d reconstruction, and the gradients of the dense features' latents."""
        n_rows = len(order)
        watched = self.n_dense + np.flatnonzero(self.slack[self.n_dense : self.n_live] < np.inf)
        slack_now = self._slack(watched, self.steps - self.watched_since)
        near = np.zeros((self.team.threads, len(watched)), np.bool_)
        cuts = self.team.cuts(n_rows)
        self._replay(self.dec, self.dec_at, self.firing)
        n_dense, W_dense = self.n_dense, self.dec[0][: self.n_dense]
        scale = np.float32(2 / (n_rows * self.input_dim))  # from the mean of squares
        batch, residual, W_dec = _flat(self.batch, self.residual, self.dec[0])
        indices, acts = _flat(self.indices, self.acts)

        def reconstruct(first: int, last: int) -> None:
            rows = slice(first, last)
            kernels.watch(
                self.pre_acts, self.kth, order, self.norms, watched, slack_now, self.slack, self.ids, self.place,
                np.float32(MARGIN), *self.lists, near[cuts.index(first)], first, last,
            )  # fmt: skip
            if n_dense:
                _product(self.dense_acts[rows, :n_dense], W_dense, self.residual[rows])
            else:
                self.residual[rows] = 0
            kernels.reconstruct(
                batch, W_dec, self.b_dec[0], indices, acts, self.counts, self.k, self.stride, scale, residual,
                self.squares, first, last,
            )  # fmt: skip
            if n_dense:
                _product(self.residual[rows], W_dense.T, self.dense_grads[rows, :n_dense])
                kernels.zero_unselected(self.dense_grads, n_dense, self.indices, self.counts, first, last)

        self.team.run(reconstruct, cuts)
        self.slack[watched[near.any(axis=0)]] = np.inf

    def _update_weights(self, n_rows: int) -> None:
        """Gradients and Adam of the live features and of the decoder's bias."""
        self.steps += 1
        size, root_scale = self.adam.sizes[self.steps], self.adam.root_scales[self.steps]
        factors = tuple(map(np.float32, (BETA1, BETA2, size, root_scale, EPS)))
        stride, cuts = self.stride, self.team.cuts(self.stride, kernels.LINE)
        n_entries = self.offsets[self.n_live]
        enc, dec, (batch, residual) = _flat(*self.enc), _flat(*self.dec), _flat(self.batch, self.residual)

        def update_dense(
            coefs: FloatArray, rows: FloatArray, arrays: tuple[FloatArray, ...], first: int, last: int
        ) -> None:
            for start in range(0, self.n_dense, DENSE_BLOCK):
                stop = min(start + DENSE_BLOCK, self.n_dense)
                gradients = np.empty((stop - start, last - first), np.float32)
                _product(coefs[:n_rows, start:stop].T, rows[:n_rows, first:last], gradients)
                kernels.update_dense(gradients, arrays, factors, stride, start, first, last)

        def update_decoder(first: int, last: int) -> None:
            update_dense(self.dense_acts, self.residual, dec, first, last)
            kernels.update_decoder(
                residual, self.offsets, self.entry_rows, self.coefs, self.grads[cuts.index(first), :n_entries], dec,
                factors, stride, self.firing, first, last,
            )  # fmt: skip
            kernels.update_bias(residual, n_rows, stride, self.b_dec, factors, first, last)

        def update_encoder(first: int, last: int) -> None:
            update_dense(self.dense_grads, self.batch, enc, first, last)
            kernels.update_encoder(
                batch, self.offsets, self.entry_rows, self.grads[0], enc, factors, stride, self.firing, first, last
            )
            kernels.update_idle(enc, factors, stride, self.idle, first, last)

        self.team.run(update_decoder, cuts)
        for part in self.grads[1 : len(cuts) - 1, :n_entries]:
            self.grads[0, :n_entries] += part
        self.team.run(update_encoder, cuts)
        for seen in (self.last_fired, self.dec_at):
            seen[: self.n_dense] = seen[self.firing] = self.steps

    def result(self) -> SAEArrays:
        """The weights in the order of `initial`, every feature brought up to the last step."""
        self._replay(self.enc, self.enc_at, np.arange(self.n_live, len(self.ids)))
        self._replay(self.dec, self.dec_at, np.arange(len(self.ids)))
        self.enc, self.dec = self.enc[:1], self.dec[:1]  # the moments make room for what is returned
        in_order = np.argsort(self.ids)
        W_enc, W_dec = (np.empty((len(in_order), self.input_dim), np.float32) for _ in range(2))
        b_enc = self.enc[0][in_order, self.input_dim]
        for feature, position in enumerate(in_order):
            W_enc[feature] = self.enc[0][position, : self.input_dim]
            W_dec[feature] = self.dec[0][position, : self.input_dim]
        return SAEArrays(W_enc, b_enc, W_dec, self.b_dec[0][: self.input_dim].copy())

    def _encode(self, batch: FloatArray, out: FloatArray, first: int, last: int) -> None:
        """out[:, first:last] = pre-activations of the features at positions [first, last)."""
        _product(batch[:, : self.columns], self.enc[0][first:last, : self.columns].T, out[:, first:last])

    def _select(self, rows: IntArray) -> None:
        kernels.select(self.pre_acts, self.n_live, self.ids, self.indices, self.acts, self.kth, rows)
        kernels.scatter(self.indices, self.acts, self.n_dense, self.dense_acts, self.counts, rows)

    def _thaw_what_may_be_selected(self, order: IntArray) -> None:
        """Make those frozen features live that may be selected on a row of the batch, and select again."""
        wanted, unsure = np.zeros(len(self.ids), np.bool_), np.zeros(len(order), np.bool_)
        kth = self.kth[: len(order)]
        rows = kernels.may_be_selected(
            self.batch[:, : self.columns], self.enc[0], kth, order, self.norms, self.slack, self.n_live, self.place,
            *self.lists, wanted, unsure,
        )  # fmt: skip
        if unsure.any():
            all_rows = np.flatnonzero(unsure)
            pre_acts = np.empty((len(all_rows), len(self.ids) - self.n_live), np.float32)
            _product(self.batch[all_rows, : self.columns], self.enc[0][self.n_live :, : self.columns].T, pre_acts)
            kernels.list_anew(
                pre_acts, kth, all_rows, order, self.norms, self.slack, self.ids, self.place, self.n_live,
                *self.lists, wanted,
            )  # fmt: skip
        thawed = np.sort(self.place[wanted])
        if not len(thawed):
            return
        self._replay(self.enc, self.enc_at, thawed)
        frozen = self.n_live
        for position in thawed.tolist():
            self._swap(position, self.n_live)
            self.last_fired[self.n_live] = self.steps  # idle from now on
            self.slack[self.n_live] = np.inf
            self.n_live += 1
        self._encode(self.batch[: len(order)], self.pre_acts[: len(order)], frozen, self.n_live)
        self._select(rows)

    def _reorder_dense(self, n_rows: int) -> None:
        """Bring the features that fired on a large share of the batch to the front."""
        margin = np.where(np.arange(self.n_live) < self.n_dense, 0.8, 1.2)  # against going back and forth
        fired = np.diff(self.offsets[: self.n_live + 1])
        fired[: self.n_dense] = np.count_nonzero(self.dense_acts[:n_rows, : self.n_dense], axis=0)
        often = fired > margin * DENSE_SHARE * n_rows
        self.n_dense = int(often.sum())
        leave, enter = np.flatnonzero(~often[: self.n_dense]), np.flatnonzero(often[self.n_dense :])
        for a, b in zip(leave.tolist(), (enter + self.n_dense).tolist(), strict=True):
            self._swap(a, b)

    def _watch_idle(self) -> None:
        """Begin to watch the live features that have not fired for WATCH_AFTER steps."""
        live = np.arange(self.n_dense, self.n_live)
        self.slack[live] = np.inf
        self.watched_since = self.steps
        self._set_slack(live[self.steps - self.last_fired[live] >= WATCH_AFTER])

    def _freeze_watched(self) -> None:
        """Freeze the features that came near selection on no row of the epoch."""
        watched = self.n_dense + np.flatnonzero(self.slack[self.n_dense : self.n_live] < np.inf)
        self._set_slack(watched)
        for position in watched[::-1].tolist():
            self.n_live -= 1
            self._swap(position, self.n_live)
            self.enc_at[self.n_live] = self.steps

    def _set_slack(self, positions: IntArray) -> None:
        eps = np.float32(EPS * math.sqrt(1 - BETA2 ** (self.steps + 1)))
        self.speeds[positions], self.sizes[positions] = kernels.speeds_and_sizes(*self.enc, eps, positions)
        self.slack[positions] = self._slack(positions, 0)

    def _slack(self, positions: IntArray, steps: int) -> FloatArray:
        """How far |pre| can still move without a gradient, `steps` steps after the speeds were taken."""
        path = DECAY**steps * self.adam.paths[self.steps]
        return np.float32(path) * self.speeds[positions] + np.float32(ROUNDING) * self.sizes[positions]

    def _swap(self, a: int, b: int) -> None:
        """Exchange the features at positions a and b."""
        kernels.swap((*self.enc, *self.dec), a, b)
        for array in (self.ids, self.last_fired, self.enc_at, self.dec_at, self.slack, self.speeds, self.sizes):
            array[[a, b]] = array[[b, a]]
        self.place[self.ids[[a, b]]] = a, b

    def _replay(self, arrays: tuple[FloatArray, ...], since: IntArray, positions: IntArray) -> None:
        """Make up for the Adam steps without gradient that the rows at `positions` missed."""
        positions = positions[since[positions] < self.steps]
        if not len(positions):
            return
        flat = _flat(*arrays)

        def replay(first: int, last: int) -> None:
            kernels.replay(
                flat, since, positions, self.steps, self.adam.sizes, self.adam.root_scales, BETA1, BETA2, REPLAYED,
                np.float32(EPS), self.stride, first, last,
            )  # fmt: skip

        few = len(positions) < 32  # are done before another thread has started
        self.team.run(replay, [0, len(positions)] if few else self.team.cuts(len(positions)))


def train_sae(
    sae: TopKSAE,
    x: torch.Tensor,
    orders: Iterable[IntArray],
    batch_size: int,
    lr: float,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> Trained:
    """Train `sae` on x (n, input_dim), in place; `on_epochs(1)` is called after each epoch.

    Meanwhile its parameters are empty, so that the weights are held once.
    """
    started = time.perf_counter()
    parameters = (sae.encoder.weight, sae.encoder.bias, sae.decoder.weight, sae.decoder.bias)
    finite = True
    with _Team() as team:
        W_enc, b_enc, W_dec, b_dec = (parameter.detach().numpy() for parameter in parameters)
        initial = SAEArrays(W_enc, b_enc, W_dec.T, b_dec)
        trainer = _Trainer(x.numpy(), initial, sae.k, batch_size, lr, freeze=True, team=team)
        del W_enc, b_enc, W_dec, b_dec, initial
        for parameter in parameters:  # the trainer has them now: no second copy of the weights meanwhile
            parameter.data = parameter.data.new_empty(0)
        for order in orders:
            finite &= math.isfinite(trainer.epoch(order, batch_size))
            on_epochs(1)
        trained = trainer.result()
    for parameter, weight in zip(parameters, trained._replace(W_dec=trained.W_dec.T), strict=True):
        parameter.data = torch.from_numpy(np.ascontiguousarray(weight))
    return Trained(finite, time.perf_counter() - started)


def try_out() -> None:
    """Train a tiny SAE, so that all is compiled. Raises RuntimeError where Numba cannot compile it."""
    generator = np.random.default_rng(0)
    x, W_enc, W_dec = (generator.random((n, 20), np.float32) for n in (16, 8, 8))
    initial = SAEArrays(W_enc, np.zeros(8, np.float32), W_dec, np.zeros(20, np.float32))
    try:
        with _Team() as team:
            trainer = _Trainer(x, initial, k=2, batch_size=4, lr=1e-3, freeze=True, team=team)
            for _ in range(4):
                trainer.epoch(np.arange(16), batch_size=4)
                trainer.lists[2][:] = np.inf  # every row may have frozen features that its list does not name
    except NumbaError as problem:
        raise RuntimeError(str(problem)) from problem
