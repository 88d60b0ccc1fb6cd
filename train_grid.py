"""Train the TopK SAEs of one (layer, position): every k at every latent_dim.

    python train_grid.py --layer 14 --position 3 [--latent-dim 512 ...] [--k-values 5 10 20 100]

All k of a latent_dim train together, as one stack of weights, which may span several (layer, position) when
`train_all_layers_positions.py` calls. An SAE's start and its batches are seeded by what it is, so it comes out the
same whatever it is trained beside. Deliberately missing, as in the experiment: learning-rate schedule, input
normalisation, treatment of dead features.
"""

import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from activation_cache import ActivationCache
from baselines import measure_baselines
from command_line import (
    InputError,
    check_at_least,
    check_positive,
    keep_once,
    one_line,
    option,
    package_versions,
    parse_config,
    run,
)
from devices import choose_device
from estimates import METRICS_BYTES, check_disk, checkpoint_bytes, in_time, there_already
from files import only_writer, read_json, write_json
from frozen_features import LiveEpochs
from grid import K_VALUES, LATENT_DIMS, baselines_path, checkpoint_path, metrics_path
from stack_trainer import Trained, train_stack
from topk_sae import CHUNK_ROWS, TopKSAE, evaluate

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `train_grid.py` and `train_all_layers_positions.py` both take."""

    k_values: tuple[int, ...] = option(K_VALUES, help="latents kept per row, one SAE for each")
    epochs: int = option(25, help="passes over the training rows")
    batch_size: int = option(256, help="rows per step; the last batch of an epoch may be short")
    lr: float = option(1e-3, help="learning rate of Adam")
    seed: int = option(0, help="seed of the initial weights and of the batches")
    activations: Path = option(Path("activations"), help="folder that extract_activations.py wrote")
    results: Path = option(Path("results"), help="folder for the checkpoints and metrics")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    backend: str = option(
        "auto",
        choices=("auto", "torch", "fused"),
        help="torch: plain PyTorch, on any device; fused: compiled for the CPU; auto: fused wherever it is faster",
    )
    overwrite: bool = option(False, help="train again what was trained with other settings")
    no_checkpoints: bool = option(False, help="keep the metrics only; without this flag those SAEs train again")
    dry_run: bool = option(False, help="say what would be trained, what it would take and for how long, and stop")

    def __post_init__(self) -> None:
        keep_once(self, "k_values")
        check_at_least(self, 1, "k_values", "epochs", "batch_size")
        check_at_least(self, 0, "seed")
        check_positive(self, "lr")

    def check_k(self, latent_dims: Sequence[int]) -> None:
        """Raises InputError if a k is larger than a latent_dim."""
        if max(self.k_values) > min(latent_dims):
            raise InputError(f"k {max(self.k_values)} is larger than latent_dim {min(latent_dims)}")

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """What decides how an SAE comes out, as stored in its metrics file."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "seed": self.seed,
            "activations": fingerprint,
        }


@dataclass(frozen=True, kw_only=True)
class CellConfig(TrainConfig):
    layer: int = option(help="the layer whose activations are reconstructed")
    position: int = option(help="the thought position; 0 is the bot token")
    latent_dim: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs")

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_once(self, "latent_dim")
        check_at_least(self, 0, "layer", "position")
        check_at_least(self, 1, "latent_dim")
        self.check_k(self.latent_dim)


class Part(NamedTuple):
    """What is still to be done of one (layer, position, latent_dim)."""

    layer: int
    position: int
    latent_dim: int
    k_values: tuple[int, ...]
    fingerprint: str  # of the cell's activations
    baselines: tuple[int, ...] = ()  # if any: measure the cell's baselines too, for these latent_dims

    def __str__(self) -> str:
        cell = f"layer {self.layer} position {self.position}"
        ks = ", ".join(map(str, self.k_values))
        return f"{cell} latent_dim {self.latent_dim} k {ks}" if ks else f"{cell} baselines"

    def failed(self, why: str) -> list[str]:
        """A line for each SAE of the part; one line if it is only to measure baselines."""
        lines = [self._replace(k_values=(k,)) for k in self.k_values] or [self]
        return [f"{line}: {why}" for line in lines]


class Task(NamedTuple):
    """The SAEs of one latent_dim, of one or several (layer, position), that are to be trained as one stack."""

    latent_dim: int
    parts: tuple[Part, ...]

    @property
    def n_saes(self) -> int:
        return sum(len(part.k_values) for part in self.parts)

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts))

    def failed(self, why: str) -> list[str]:
        return [line for part in self.parts for line in part.failed(why)]


class Existing(NamedTuple):
    """What a results folder already holds of one (layer, position, latent_dim)."""

    done: tuple[int, ...]  # the k of SAEs that are whole and were trained with the same settings
    damaged: list[str]  # files to be written again, and why
    difference: str | None  # how the settings differ, if they do
    n_metrics_only: int = 0  # SAEs that would be done but for their checkpoints, which were not kept


def find_existing(
    results: Path,
    layer: int,
    position: int,
    latent_dim: int,
    k_values: Sequence[int],
    settings: dict[str, Any],
    metrics_only: bool = False,
) -> Existing:
    """Look for finished SAEs. The metrics file is written last: what it does not name is not finished.

    With `metrics_only` an SAE needs no checkpoint to be.
    """
    path = metrics_path(results, position, layer, latent_dim)
    if not path.exists():
        return Existing((), [], None)
    try:
        content = read_json(path)
        metadata, by_k = content["metadata"], content["results"][str(latent_dim)]
        differences = [
            f"{name} {metadata.get(name, 'unknown')} there, {value} now"
            for name, value in settings.items()
            if metadata.get(name) != value
        ]
        found, unkept = {int(k) for k in by_k}, set(metadata.get("without_checkpoint", []))
    except (InputError, LookupError, TypeError, AttributeError, ValueError):
        return Existing((), [f"{path} is damaged"], None)
    if differences:
        return Existing((), [], f"{path}: {', '.join(differences)}")
    there = [k for k in k_values if k in found]
    if metrics_only:
        return Existing(tuple(there), [], None)
    done, damaged = [], []
    for k in there:
        if k not in unkept:
            problem = checkpoint_problem(checkpoint_path(results, position, layer, latent_dim, k))
            done.append(k) if problem is None else damaged.append(problem)
    return Existing(tuple(done), damaged, None, n_metrics_only=len(unkept.intersection(there)))


def checkpoint_problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums in it; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{path} is damaged" if archive.testzip() else None
    except FileNotFoundError:
        return f"{path} is absent"
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        return f"{path} is damaged"


def plan_tasks(
    config: TrainConfig,
    cache: ActivationCache,
    cells: Sequence[tuple[int, int]],
    latent_dims: Sequence[int],
    cells_per_stack: Callable[[int], int] = lambda latent_dim: 1,
) -> tuple[list[Task], int]:
    """What is left to train in `cells` (layer, position), and how many SAEs are done.

    `cells_per_stack` says for each latent_dim how many cells make a task. Says on stdout what is damaged and will be
    trained again. Raises InputError if a cell's activations are not finite, or if an SAE was trained with other
    settings and `config.overwrite` is off.
    """
    parts: dict[int, list[Part]] = {latent_dim: [] for latent_dim in sorted(latent_dims, reverse=True)}
    n_done, n_metrics_only, differences = 0, 0, []
    for layer, position in tqdm(cells, desc="checking activations", unit="cell", leave=False, delay=1):
        fingerprint = cache.fingerprint(layer, position)
        baselines = () if has_baselines(config, layer, position, fingerprint, latent_dims) else tuple(latent_dims)
        for latent_dim in parts:
            where = (config.results, layer, position, latent_dim)
            existing = find_existing(*where, config.k_values, config.settings(fingerprint), config.no_checkpoints)
            for problem in existing.damaged:
                tqdm.write(f"{problem}: its SAEs are trained again")
            if existing.difference:
                differences.append(existing.difference)
            left = tuple(k for k in config.k_values if k not in existing.done)
            n_done += len(existing.done)
            n_metrics_only += existing.n_metrics_only
            if left or baselines:
                parts[latent_dim].append(Part(layer, position, latent_dim, left, fingerprint, baselines))
                baselines = ()  # once for the cell
    if differences and not config.overwrite:
        raise InputError(
            f"{config.results} holds SAEs trained with other settings ({differences[0]}; {len(differences)} files "
            "in all): choose another --results, or --overwrite them"
        )
    if n_metrics_only:
        print(f"{n_metrics_only:,} SAEs have metrics and, by --no-checkpoints, no checkpoint: they are trained again")
    stacks = (batched(parts[latent_dim], cells_per_stack(latent_dim)) for latent_dim in parts)
    # Cell by cell, and of a cell the longest first, for an even end.
    in_turn = (stack for turn in zip_longest(*stacks) for stack in turn if stack)
    return [Task(stack[0].latent_dim, stack) for stack in in_turn], n_done


def batched(items: Sequence[Item], n: int) -> Iterator[tuple[Item, ...]]:
    """Neighbouring items, n at a time; the last may be fewer."""
    return (tuple(items[start : start + n]) for start in range(0, len(items), n))


def has_baselines(config: TrainConfig, layer: int, position: int, fingerprint: str, latent_dims: Sequence[int]) -> bool:
    """Whether the cell's baselines file is whole, of these activations and seed, and has every k and latent_dim."""
    try:
        content = read_json(baselines_path(config.results, position, layer))
        metadata, untrained = content["metadata"], content["untrained"]
        return (metadata["activations"], metadata["seed"]) == (fingerprint, config.seed) and all(
            str(k) in untrained[str(latent_dim)] for latent_dim in latent_dims for k in config.k_values
        )
    except (FileNotFoundError, InputError, LookupError, TypeError):
        return False


def seeded_sae(input_dim: int, latent_dim: int, k: int, seed: int, layer: int, position: int) -> TopKSAE:
    """An untrained SAE whose weights depend on nothing but the arguments."""
    state = np.random.SeedSequence([seed, layer, position, latent_dim, k]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(state[0]))
        return TopKSAE(input_dim, latent_dim, k)


def epoch_orders(n_rows: int, epochs: int, seed: int, layer: int, position: int) -> Iterator[np.ndarray]:
    """The order of the training rows in each epoch: the same for every SAE of a (layer, position)."""
    generator = np.random.default_rng([seed, layer, position])
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
        from fused_trainer import try_out

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
        from fused_trainer import fused_pays, train_sae

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
        array = cache.cell(part.layer, part.position)
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
            write_json(baselines_path(config.results, part.position, part.layer), {"metadata": about} | measured)

    def orders(cell: int) -> Iterator[np.ndarray]:
        part = task.parts[cell]
        return epoch_orders(x_train.shape[1], config.epochs, config.seed, part.layer, part.position)

    def train_stack_of(stack: Sequence[tuple[int, int]]) -> list[str]:
        cells = [cell for cell, _ in stack]
        saes = [
            seeded_sae(cache.input_dim, task.latent_dim, k, config.seed, part.layer, part.position)
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
        "position": part.position,
        "layer": part.layer,
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
        seeded_sae(x_train.shape[1], latent_dim, k, config.seed, part.layer, part.position).to(x_train.device)
        for latent_dim in part.baselines
        for k in config.k_values
    )
    return measure_baselines(x_train, x_validation, config.k_values, untrained)


def check_room(config: TrainConfig, input_dim: int, tasks: Sequence[Task]) -> None:
    """Raises InputError if the disk is too small for what `tasks` write."""
    way_out = "train fewer SAEs" if config.no_checkpoints else "keep the metrics only, with --no-checkpoints"
    check_disk(config.results, bytes_to_write(config, input_dim, tasks), way_out)


def bytes_to_write(config: TrainConfig, input_dim: int, tasks: Sequence[Task]) -> int:
    """What the files of `tasks` need of the disk, beyond those that they replace."""
    n_bytes = 0
    for part in (part for task in tasks for part in task.parts):
        n_bytes += (len(part.k_values) + 1) * METRICS_BYTES
        if not config.no_checkpoints:
            where = (config.results, part.position, part.layer, part.latent_dim)
            n_bytes += len(part.k_values) * checkpoint_bytes(input_dim, part.latent_dim)
            n_bytes -= there_already(checkpoint_path(*where, k) for k in part.k_values)
    return n_bytes


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
    layer, position, latent_dim = part.layer, part.position, part.latent_dim
    if not trained.finite:
        return part._replace(k_values=(sae.k,)).failed("the loss is not finite")
    settings = config.settings(part.fingerprint)
    path = metrics_path(config.results, position, layer, latent_dim)
    by_k, unkept = same_settings_results(path, latent_dim, settings)
    sae.metrics = evaluate(sae, x_train, x_validation) | {"train_time_sec": trained.seconds, "epochs": config.epochs}
    sae.config |= {"position": position, "layer": layer} | settings
    checkpoint = checkpoint_path(config.results, position, layer, latent_dim, sae.k)
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


def foretell(config: CellConfig, cache: ActivationCache, device: torch.device) -> None:
    """Say what a run would take. Raises InputError if the disk is too small for it."""
    from forecast import Workers, describe, seconds_to_train  # which import this module

    tasks, n_done = plan_tasks(config, cache, [(config.layer, config.position)], config.latent_dim)
    backend = choose_backend(config.backend, device)
    print(describe(config, cache, tasks, n_done, Workers(1, str(device), backend)))
    check_room(config, cache.input_dim, tasks)
    print(f"time: about {in_time(seconds_to_train(tasks, config, cache, device, backend))}")


def main() -> int:
    config = parse_config(CellConfig, __doc__ or "")
    device = choose_device(config.device)
    cache = ActivationCache(config.activations)
    if (config.layer, config.position) not in cache.cells:
        raise InputError(
            f"no layer {config.layer}, position {config.position} in {config.activations}; it has layers "
            f"{', '.join(map(str, cache.layers))} and positions {', '.join(map(str, cache.positions))}"
        )
    if config.dry_run:
        foretell(config, cache, device)
        return 0
    failures = []
    with only_writer(config.results):
        tasks, n_done = plan_tasks(config, cache, [(config.layer, config.position)], config.latent_dim)
        check_room(config, cache.input_dim, tasks)
        if n_done:
            print(f"{n_done} SAEs are already done")
        n_saes = sum(task.n_saes for task in tasks)
        backend = choose_backend(config.backend, device) if tasks else ""
        with tqdm(total=n_saes * config.epochs, unit="epoch", disable=not tasks) as bar:
            for task in tasks:
                bar.set_description(f"latent_dim {task.latent_dim}")
                failures += train_task(task, config, cache, device, backend, bar.update)
    for failure in failures:
        print(f"failed: {failure}")
    print(f"{n_saes - len(failures)} SAEs trained, in {config.results}")
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
