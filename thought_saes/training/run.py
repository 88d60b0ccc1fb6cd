"""Train the SAEs of a task, measure them and write their files: what every worker does.

An SAE's start and its batches are seeded by what it is, so it comes out the same whatever it is trained beside.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.command_line import package_versions
from thought_saes.common.errors import InputError, one_line
from thought_saes.common.files import read_json, write_json
from thought_saes.results.names import SaeKey, baselines_path, checkpoint_path, metrics_path
from thought_saes.saes.baselines import measure_baselines
from thought_saes.saes.topk_sae import CHUNK_ROWS, TopKSAE, evaluate
from thought_saes.training.freezing import LiveEpochs
from thought_saes.training.stack import Trained, train_stack
from thought_saes.training.task import Part, Task, TrainConfig


def seeded_sae(input_dim: int, key: SaeKey, seed: int) -> TopKSAE:
    """An untrained SAE whose weights depend on nothing but the arguments."""
    state = np.random.SeedSequence([seed, *key.values]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(state[0]))
        return TopKSAE(input_dim, key.latent_dim, key.k)


def epoch_orders(n_rows: int, epochs: int, seed: int, cell: Cell) -> Iterator[np.ndarray]:
    """The order of the training rows in each epoch: the same for every SAE of a (layer, position)."""
    generator = np.random.default_rng([seed, *cell])
    for _ in range(epochs):
        yield generator.permutation(n_rows)


def choose_backend(backend: str, device: torch.device) -> str:
    """'torch' or 'fused'. Raises InputError if 'fused' was asked for and cannot be had.

    Tries the compiled code on a few rows, so that it is compiled (and cached on disk) once, before the work.
    """
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return "torch"
    if device.type != "cpu":
        raise InputError(f"--backend fused is for the CPU, not for {device}")
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


def train_saes(
    saes: Sequence[TopKSAE],
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
    if backend == "fused":
        from thought_saes.training.fused.trainer import fused_pays, train_sae

        if config.backend == "fused" or all(fused_pays(sae.input_dim, sae.latent_dim, sae.k) for sae in saes):
            return [
                train_sae(sae, x[cell], orders(cell), config.batch_size, config.lr, on_epochs)
                for sae, cell in zip(saes, cells, strict=True)
            ]
    of_all_cells = map(np.stack, zip(*map(orders, range(len(x))), strict=True))
    return train_stack(saes, cells, x, of_all_cells, config.batch_size, config.lr, on_epochs, run_epoch=LiveEpochs())


def load_cells(cache: ActivationCache, parts: Sequence[Part], device: torch.device) -> tuple[Tensor, Tensor]:
    """The training and the validation rows of every part's cell, (n_cells, n, input_dim) each, in float32."""
    loaded = [torch.empty(len(parts), len(rows), cache.input_dim, device=device) for rows in cache.split]
    for index, part in enumerate(parts):
        array = cache.cell(part.cell)
        for x, rows in zip(loaded, cache.split, strict=True):
            for start in range(0, len(rows), CHUNK_ROWS):  # no second copy of all rows
                chunk = array[rows[start : start + CHUNK_ROWS]]
                x[index, start : start + CHUNK_ROWS] = torch.from_numpy(chunk)
    return loaded[0], loaded[1]


def train_task(
    task: Task,
    config: TrainConfig,
    cache: ActivationCache,
    device: torch.device,
    backend: str,
    on_epochs: Callable[[int], object] = lambda n: None,
) -> list[str]:
    """Train the SAEs of a task, measure them and write their files. Returns what failed, in words."""
    x_train, x_validation = load_cells(cache, task.parts, device)
    metadata = [part_metadata(part, cache, device) for part in task.parts]
    for cell, part in enumerate(task.parts):
        if part.baselines:
            about = metadata[cell] | {"seed": config.seed, "activations": part.fingerprint}
            measured = baselines_of(part, x_train[cell], x_validation[cell], config)
            write_json(baselines_path(config.results, part.cell), {"metadata": about} | measured)

    def orders(cell: int) -> Iterator[np.ndarray]:
        part = task.parts[cell]
        return epoch_orders(x_train.shape[1], config.epochs, config.seed, part.cell)

    def train_stack_of(stack: Sequence[tuple[int, int]]) -> list[str]:
        cells = [cell for cell, _ in stack]
        saes = [
            seeded_sae(cache.input_dim, SaeKey(part.cell, task.latent_dim, k), config.seed)
            for part, k in ((task.parts[cell], k) for cell, k in stack)
        ]
        outcomes = train_saes(saes, cells, x_train, orders, config, backend, on_epochs)
        failures = []
        for cell, sae, outcome in zip(cells, saes, outcomes, strict=True):
            about = metadata[cell] | {"backend": backend}
            failures += write_sae(task.parts[cell], sae, outcome, x_train[cell], x_validation[cell], config, about)
        return failures

    stack = [(cell, k) for cell, part in enumerate(task.parts) for k in part.k_values]
    if backend == "fused":  # trains one by one: so no more than one is in memory
        return [failure for member in stack for failure in train_stack_of([member])]
    return train_stack_of(stack) if stack else []


def part_metadata(part: Part, cache: ActivationCache, device: torch.device) -> dict[str, Any]:
    """What the files of one (layer, position) say of themselves."""
    return {
        "position": part.cell.position,
        "layer": part.cell.layer,
        "n_train": len(cache.split.train),
        "n_val": len(cache.split.validation),
        "input_dim": cache.input_dim,
        "position_0": cache.position_0,
        "device": str(device),
        "versions": package_versions("torch", "numpy"),
    }


def baselines_of(part: Part, x_train: Tensor, x_validation: Tensor, config: TrainConfig) -> dict[str, Any]:
    """Measure what the cell's SAEs are to be compared with; rows are (n, input_dim)."""
    untrained = (
        seeded_sae(x_train.shape[1], SaeKey(part.cell, latent_dim, k), config.seed).to(x_train.device)
        for latent_dim in part.baselines
        for k in config.k_values
    )
    return measure_baselines(x_train, x_validation, config.k_values, untrained)


def write_sae(
    part: Part,
    sae: TopKSAE,
    trained: Trained,
    x_train: Tensor,
    x_validation: Tensor,
    config: TrainConfig,
    metadata: dict[str, Any],
) -> list[str]:
    """Measure an SAE of the part on its rows (n, input_dim), write its checkpoint, then its metrics beside others'.

    Returns what failed, in words.
    """
    cell, latent_dim = part.cell, part.latent_dim
    if not trained.finite:
        return part._replace(k_values=(sae.k,)).failed("the loss is not finite")
    settings = config.settings(part.fingerprint)
    path = metrics_path(config.results, cell, latent_dim)
    by_k, unkept = same_settings_results(path, latent_dim, settings)
    sae.metrics = evaluate(sae, x_train, x_validation) | {"train_time_sec": trained.seconds, "epochs": config.epochs}
    sae.config |= {"position": cell.position, "layer": cell.layer} | settings
    checkpoint = checkpoint_path(config.results, SaeKey(cell, latent_dim, sae.k))
    if config.no_checkpoints:
        checkpoint.unlink(missing_ok=True)  # one of other settings would be taken for this SAE's
        unkept.add(sae.k)
    else:
        sae.save(checkpoint)
        unkept.discard(sae.k)
    by_k[str(sae.k)] = sae.metrics
    ordered = dict(sorted(by_k.items(), key=lambda item: int(item[0])))
    if unkept:
        metadata = metadata | {"without_checkpoint": sorted(unkept)}
    write_json(path, {"metadata": metadata | settings, "results": {str(latent_dim): ordered}})
    return []


def same_settings_results(path: Path, latent_dim: int, settings: dict[str, Any]) -> tuple[dict[str, Any], set[int]]:
    """The metrics by k that a metrics file already holds for the same settings, and the k without a checkpoint.

    A file of other settings, which is about to be replaced, is removed: its checkpoints will not be its own.
    """
    try:
        content = read_json(path)
        if all(content["metadata"].get(name) == value for name, value in settings.items()):
            unkept = set(content["metadata"].get("without_checkpoint", []))
            return dict(content["results"][str(latent_dim)]), unkept
    except (FileNotFoundError, InputError, LookupError, TypeError, AttributeError, ValueError):
        pass
    path.unlink(missing_ok=True)
    return {}, set()
