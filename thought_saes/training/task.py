"""What is left to train of a grid, cut into tasks: the stacks that workers train.

An SAE is done when its metrics file names it with the same settings and its checkpoint is whole: so any command can be
killed and repeated, and trains only what is not there.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.common.files import read_json
from thought_saes.common.flags import check_at_least, check_positive, keep_once, option
from thought_saes.common.machine import check_disk, there_already
from thought_saes.results.names import K_VALUES, SaeKey, baselines_path, checkpoint_path, metrics_path
from thought_saes.saes.topk_sae import checkpoint_bytes

Item = TypeVar("Item")

# A metrics file: some 900 bytes for each SAE and as much for the rest.
METRICS_BYTES = 900


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


class Part(NamedTuple):
    """What is still to be done of one (layer, position, latent_dim)."""

    cell: Cell
    latent_dim: int
    k_values: tuple[int, ...]
    fingerprint: str  # of the cell's activations
    baselines: tuple[int, ...] = ()  # if any: measure the cell's baselines too, for these latent_dims

    def __str__(self) -> str:
        ks = ", ".join(map(str, self.k_values))
        return f"{self.cell} latent_dim {self.latent_dim} k {ks}" if ks else f"{self.cell} baselines"

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
    cell: Cell,
    latent_dim: int,
    k_values: Sequence[int],
    settings: dict[str, Any],
    metrics_only: bool = False,
) -> Existing:
    """Look for finished SAEs. The metrics file is written last: what it does not name is not finished.

    With `metrics_only` an SAE needs no checkpoint to be.
    """
    path = metrics_path(results, cell, latent_dim)
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
            problem = checkpoint_problem(checkpoint_path(results, SaeKey(cell, latent_dim, k)))
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
    cells: Sequence[Cell],
    latent_dims: Sequence[int],
    cells_per_stack: Callable[[int], int] = lambda latent_dim: 1,
) -> tuple[list[Task], int]:
    """What is left to train in `cells`, and how many SAEs are done.

    `cells_per_stack` says for each latent_dim how many cells make a task. Says on stdout what is damaged and will be
    trained again. Raises InputError if a cell's activations are not finite, or if an SAE was trained with other
    settings and `config.overwrite` is off.
    """
    parts: dict[int, list[Part]] = {latent_dim: [] for latent_dim in sorted(latent_dims, reverse=True)}
    n_done, n_metrics_only, differences = 0, 0, []
    for cell in tqdm(cells, desc="checking activations", unit="cell", leave=False, delay=1):
        fingerprint = cache.fingerprint(cell)
        baselines = () if has_baselines(config, cell, fingerprint, latent_dims) else tuple(latent_dims)
        for latent_dim in parts:
            where = (config.results, cell, latent_dim)
            existing = find_existing(*where, config.k_values, config.settings(fingerprint), config.no_checkpoints)
            for problem in existing.damaged:
                tqdm.write(f"{problem}: its SAEs are trained again")
            if existing.difference:
                differences.append(existing.difference)
            left = tuple(k for k in config.k_values if k not in existing.done)
            n_done += len(existing.done)
            n_metrics_only += existing.n_metrics_only
            if left or baselines:
                parts[latent_dim].append(Part(cell, latent_dim, left, fingerprint, baselines))
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


def has_baselines(config: TrainConfig, cell: Cell, fingerprint: str, latent_dims: Sequence[int]) -> bool:
    """Whether the cell's baselines file is whole, of these activations and seed, and has every k and latent_dim."""
    try:
        content = read_json(baselines_path(config.results, cell))
        metadata, untrained = content["metadata"], content["untrained"]
        return (metadata["activations"], metadata["seed"]) == (fingerprint, config.seed) and all(
            str(k) in untrained[str(latent_dim)] for latent_dim in latent_dims for k in config.k_values
        )
    except (FileNotFoundError, InputError, LookupError, TypeError):
        return False


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
            n_bytes += len(part.k_values) * checkpoint_bytes(input_dim, part.latent_dim)
            n_bytes -= there_already(
                checkpoint_path(config.results, SaeKey(part.cell, part.latent_dim, k)) for k in part.k_values
            )
    return n_bytes
