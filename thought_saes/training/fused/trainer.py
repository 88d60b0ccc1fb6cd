"""Train one SAE on the CPU, paying for little more than the encoder's forward product.

Only k of the latent_dim latents of a row are non-zero, on average, so after the dense pre-activations everything is
sparse. One step over a batch is four passes, of which each thread does an even part:

1. rows: gather the batch, `pre_acts = x W_enc^T + b_enc` (the only dense product), select;
2. rows: the reconstruction from the selected decoder rows, the residual and the loss;
3. columns: from the selected entries sorted by feature, the gradient of the latents and of the decoder rows;
4. columns: from these, the gradient of the encoder rows.

In 3 and 4 Adam is applied to a piece of a row as soon as its gradient is there, in cache: no dense gradient is
written. Threads take columns, not features, since features fire so unevenly that no cut of them is even.

Adam moves the weights of a feature without gradient too, but along a path that is known in advance. So a
decoder row is left behind while its feature does not fire, and the skipped steps are replayed when it does
(`optimizer.py`). Features that cannot be selected are left out of the dense product too (`freezer.py`).

Features that fire on half the rows or more come first and are multiplied densely in all passes, which is
then faster: at a large k / latent_dim that is most of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numba.core.errors import NumbaError

from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.adam import Rates
from thought_saes.training.fused.optimizer import SAEArrays
from thought_saes.training.fused.selection import RULES, Selection
from thought_saes.training.fused.step import StepTrainer
from thought_saes.training.fused.team import FloatArray, IntArray, Team
from thought_saes.training.stack import Trained


def fused_pays(input_dim: int, latent_dim: int, k: int) -> bool:
    """Whether `train_fused` is expected to be faster than an autograd loop of dense products.

    Measured faster by at least 1.3 at every k up to latent_dim, since it multiplies densely where that pays;
    only so small a step that the calls themselves are the cost has nothing to gain.
    """
    return 1 <= k <= latent_dim and input_dim * latent_dim >= 1 << 10


def train_fused(
    x: FloatArray,
    initial: SAEArrays,
    selection: Selection | int,
    epoch_orders: Iterable[IntArray],
    *,
    batch_size: int,
    lr: Rates,
    freeze: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> SAEArrays:
    """Train with Adam on the mean squared error over all elements; `initial` is not changed.

    x: (n_rows, input_dim), read in place. selection: a rule, or the k of AbsTopK. epoch_orders: one permutation of
    the rows per epoch; the last short batch is kept. on_epoch(epoch, mean_loss) is called after every epoch; the loss
    is not finite as soon as the data, a weight or the loss itself is not. Uses `torch.get_num_threads()` threads,
    one of which is the caller's: torch itself is set to one thread meanwhile, also during on_epoch.
    """
    with Team() as team:
        trainer = StepTrainer(x, initial, as_selection(selection), batch_size, lr, freeze, team)
        for epoch, order in enumerate(epoch_orders):
            loss = trainer.epoch(order, batch_size)
            if on_epoch is not None:
                on_epoch(epoch, loss)
        return trainer.result()


def as_selection(selection: Selection | int) -> Selection:
    """The rule, AbsTopK if it is a mere k."""
    return Selection("abstopk", selection) if isinstance(selection, int) else selection


def train_sae(
    sae: SparseAutoencoder,
    x: torch.Tensor,
    orders: Iterable[IntArray],
    batch_size: int,
    lr: Rates,
    on_epochs: Callable[[int], object] = lambda n: None,
    selection: Selection | None = None,
) -> Trained:
    """Train `sae` on x (n, input_dim), in place; `on_epochs(1)` is called after each epoch.

    By AbsTopK if no selection is given. Meanwhile its parameters are empty, so that the weights are held once.
    """
    started = time.perf_counter()
    parameters = (sae.encoder.weight, sae.encoder.bias, sae.decoder.weight, sae.decoder.bias)
    finite = True
    with Team() as team:
        W_enc, b_enc, W_dec, b_dec = (parameter.detach().numpy() for parameter in parameters)
        initial = SAEArrays(W_enc, b_enc, W_dec.T, b_dec)
        rule = selection or as_selection(sae.k)
        trainer = StepTrainer(x.numpy(), initial, rule, batch_size, lr, freeze=True, team=team)
        del W_enc, b_enc, W_dec, b_dec, initial
        for parameter in parameters:  # the trainer has them now: no second copy of the weights meanwhile
            parameter.data = parameter.data.new_empty(0)
        for order in orders:
            finite &= math.isfinite(trainer.epoch(order, batch_size))
            on_epochs(1)
        trained = trainer.result()
    for parameter, weight in zip(parameters, trained._replace(W_dec=trained.W_dec.T), strict=True):
        parameter.data = torch.from_numpy(np.ascontiguousarray(weight))
    return Trained(finite, time.perf_counter() - started, "fused")


def try_out() -> None:
    """Train tiny SAEs, so that all is compiled. Raises RuntimeError where Numba cannot compile it."""
    generator = np.random.default_rng(0)
    x, W_enc, W_dec = (generator.random((n, 20), np.float32) for n in (16, 8, 8))
    initial = SAEArrays(W_enc, np.zeros(8, np.float32), W_dec, np.zeros(20, np.float32))
    try:
        with Team() as team:
            for rule in RULES:
                selection = Selection(rule, 2, (4, 8) if rule == "matryoshka" else ())
                trainer = StepTrainer(x, initial, selection, batch_size=4, lr=1e-3, freeze=True, team=team)
                for _ in range(4):
                    trainer.epoch(np.arange(16), batch_size=4)
                    if trainer.freezer:  # every row may have frozen features that its list does not name
                        trainer.freezer.lists.rest[:] = np.inf
    except NumbaError as problem:
        raise RuntimeError(str(problem)) from problem
