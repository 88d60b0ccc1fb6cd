"""Train the SAEs of some cells, measure them and write their files: what every worker does."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError, one_line
from thought_saes.common.helpers import helpers
from thought_saes.results.names import SaeKey
from thought_saes.results.provenance import provenance
from thought_saes.results.recipe import PUBLISHED, Recipe
from thought_saes.results.store import Results
from thought_saes.saes.measures import RowMoments, evaluate
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.adam import Rates, linear_decay
from thought_saes.training.config import TrainConfig
from thought_saes.training.freezing import LiveEpochs
from thought_saes.training.fused.selection import RULES, Selection
from thought_saes.training.prepared import Prepared
from thought_saes.training.rows import about_rows, load_cells
from thought_saes.training.stack import Trained, train_epoch, train_stack
from thought_saes.training.start import epoch_orders

# Settings of a recipe that change a step itself, where they are not zero: the plain trainer alone has them.
ADDED_TO_A_STEP = ("unit_decoder", "weight_decay", "aux_alpha")


class Part(NamedTuple):
    """The SAEs of one cell and latent_dim that are still to be trained."""

    cell: Cell
    latent_dim: int
    k_values: tuple[int, ...]
    fingerprint: str  # of the cell's activations

    @property
    def keys(self) -> tuple[SaeKey, ...]:
        return tuple(SaeKey(self.cell, self.latent_dim, k) for k in self.k_values)

    def __str__(self) -> str:
        return f"{self.cell} latent_dim {self.latent_dim} k {', '.join(map(str, self.k_values))}"


def lacks_kernel(recipe: Recipe) -> str | None:
    """What of a recipe the compiled trainer does not have, as its flag; None if it has all."""
    if recipe.variant not in RULES:
        return f"--variant {recipe.variant}"
    added = [f"--{name.replace('_', '-')}" for name in ADDED_TO_A_STEP if getattr(recipe, name)]
    return added[0] if added else None


def choose_backend(backend: str, device: torch.device, recipe: Recipe = PUBLISHED) -> str:
    """'torch' or 'fused', for a recipe. Raises InputError if 'fused' was asked for and cannot be had.

    Tries the compiled code on a few rows, so that it is compiled (and cached on disk) once, before the work. Says on
    stderr why it is not taken, where it would be on this device.
    """
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return "torch"
    if device.type != "cpu":
        raise InputError(f"--backend fused is for the CPU, not for {device}")
    if lacking := lacks_kernel(recipe):
        if backend == "fused":
            raise InputError(f"--backend fused has no {lacking}: leave --backend out")
        print(f"training in plain PyTorch: the fused backend has no {lacking}", file=sys.stderr)
        return "torch"
    try:
        from thought_saes.training.fused.trainer import try_out

        try_out()
    except (ImportError, RuntimeError, OSError) as problem:  # no Numba, or a processor it cannot compile for
        reason = one_line(problem)[:200]
        if backend == "fused":
            raise InputError(f"--backend fused cannot run here ({reason})") from problem
        print(f"training in plain PyTorch: the fused backend cannot run here ({reason})", file=sys.stderr)
        return "torch"
    return "fused"


def learning_rates(config: TrainConfig, n_rows: int) -> Rates:
    """Of a training on so many rows: one for all steps, or that of each."""
    n_steps = config.epochs * -(-n_rows // config.batch_size)
    return linear_decay(config.lr, n_steps) if config.lr_decay else config.lr


def train_saes(
    saes: Sequence[SparseAutoencoder],
    cells: Sequence[int],
    x: Tensor,
    orders: Callable[[int], Iterator[np.ndarray]],
    config: TrainConfig,
    backend: str,
    on_epochs: Callable[[int], object],
) -> list[Trained]:
    """Train SAEs of one shape, in place, in the faster way: saes[i] on x[cells[i]], x (n_cells, n, input_dim).

    `orders(cell)` are the orders of its rows, epoch by epoch. `on_epochs(n)` is called as training goes on: n more
    epochs of one SAE are done.
    """
    recipe = config.settings
    rates = learning_rates(config, x.shape[1])
    if backend == "fused":
        from thought_saes.training.fused.trainer import fused_pays, train_sae

        assert lacks_kernel(recipe) is None, "see choose_backend"
        if config.backend == "fused" or all(fused_pays(sae.input_dim, sae.latent_dim, sae.k) for sae in saes):
            return [
                train_sae(
                    sae,
                    x[cell],
                    orders(cell),
                    config.batch_size,
                    rates,
                    on_epochs,
                    Selection(config.variant, sae.k, sae.variant.prefixes(sae.latent_dim)),
                )
                for sae, cell in zip(saes, cells, strict=True)
            ]
    of_all_cells = map(np.stack, zip(*map(orders, range(len(x))), strict=True))
    # What a batch or a nested prefix selects has no bound of its own row, by which features could be left out; and
    # what a recipe adds to a step moves those that are not selected.
    at_rest = VARIANTS[recipe.variant].threshold == "row" and lacks_kernel(recipe) is None
    run_epoch = LiveEpochs() if at_rest else train_epoch
    return train_stack(saes, cells, x, of_all_cells, config.batch_size, rates, on_epochs, run_epoch, recipe)


def train_parts(
    parts: Sequence[Part],
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> list[str]:
    """Train the SAEs of parts of one latent_dim, measure them and write their files. Returns what failed, in words."""
    x_train, x_validation = load_cells(cache, [part.cell for part in parts], device)
    results, about = Results(config.results), about_rows(cache) | {"epochs": config.epochs}
    x = torch.empty_like(x_train) if config.centre else x_train
    prepared = [
        Prepared(rows, config.settings, into, part.fingerprint)
        for rows, into, part in zip(x_train, x, parts, strict=True)
    ]
    moments = [RowMoments() for _ in parts]

    def orders(cell: int) -> Iterator[np.ndarray]:
        return epoch_orders(x_train.shape[1], config.epochs, config.seed, parts[cell].cell)

    def train_stack_of(stack: Sequence[tuple[int, SaeKey]]) -> list[str]:
        """Starts are made, and files written, by helpers."""
        cells = [cell for cell, _ in stack]
        saes = list(pool.map(lambda member: prepared[member[0]].start(member[1], config.seed), stack))
        failures, writing = [], []
        for (cell, key), sae, trained in zip(
            stack, saes, train_saes(saes, cells, x, orders, config, backend, on_epochs), strict=True
        ):
            if not trained.finite:
                failures.append(f"{key}: the loss is not finite")
                continue
            prepared[cell].finish(sae)
            costs = {"train_time_sec": trained.seconds, "epochs": config.epochs}
            sae.metrics = evaluate(sae, x_train[cell], x_validation[cell], rows=moments[cell]) | costs
            made = provenance(trained.backend, str(device))
            run = config.run(parts[cell].fingerprint)
            writing.append(pool.submit(results.add, key, sae, run, about, made, not config.no_checkpoints))
        for written in writing:
            written.result()
        return failures

    stack = [(cell, key) for cell, part in enumerate(parts) for key in part.keys]
    with helpers(device) as pool:
        if backend == "fused":  # trains one by one: so no more than one is in memory
            return [failure for member in stack for failure in train_stack_of([member])]
        return train_stack_of(stack) if stack else []
