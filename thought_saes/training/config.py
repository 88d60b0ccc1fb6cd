"""The flags that every training takes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from thought_saes.common.errors import InputError
from thought_saes.common.flags import (
    MOST_THREADS,
    Selection,
    check_at_least,
    check_at_most,
    check_positive,
    check_ray_address,
    keep_once,
    option,
)
from thought_saes.results.names import K_VALUES, LATENT_DIMS
from thought_saes.results.recipe import PUBLISHED, RECIPES, STARTS, Recipe, Run
from thought_saes.saes.variants import VARIANTS

# Beyond them no float32 weight moves, or none stays finite.
LEAST_LR, MOST_LR = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `train_grid.py` and `train_all_layers_positions.py` both take; the fields of Recipe are among them."""

    k_values: tuple[int, ...] = option(K_VALUES, help="latents kept per row, one SAE for each")
    # Each field of Recipe; None takes what --recipe says.
    recipe: str = option("published", choices=tuple(RECIPES), help="the settings below, where they are not given")
    variant: str = option(None, choices=tuple(VARIANTS), help="how latents are chosen")
    centre: bool = option(None, help="train on centred and scaled rows; the file's weights are of raw rows")
    start: str = option(None, choices=STARTS, help="linear: nn.Linear's; tied; components: from the rows, tied")
    epochs: int = option(None, help="passes over the training rows (published: 25)")
    batch_size: int = option(None, help="rows per step; the last batch of an epoch may be short (published: 256)")
    lr: float = option(None, help="learning rate of Adam, at the first step (published: 0.001)")
    lr_decay: bool = option(None, help="let the learning rate fall linearly to zero")
    whiten: float = option(None, help="whiten the centred rows by this power, up to 1; the file's weights undo it")
    unit_decoder: bool = option(None, help="keep the decoder's directions at unit norm")
    weight_decay: float = option(None, help="decay of both weight matrices, as AdamW's (published: 0)")
    aux_alpha: float = option(None, help="weight of the loss by which dead features are revived, such as 0.03125")
    aux_k: int = option(None, help="dead features that this loss reconstructs with; 0 takes max(k, 32)")
    dead_epochs: int = option(None, help="a feature that so many epochs have not selected is dead to this loss")
    tied: bool = option(False, help="the same as --start tied")
    seed: int = option(0, help="seed of the initial weights and of the batches")
    activations: Path = option(Path("activations"), help="folder that extract_activations.py wrote")
    results: Path = option(Path("results"), help="folder for the checkpoints and metrics")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    backend: str = option(
        "auto",
        choices=("auto", "torch", "fused"),
        help="torch: plain PyTorch, on any device; fused: compiled for the CPU; auto: fused wherever it is faster",
    )
    gaussian_control: bool = option(
        False,
        help="train an SAE of each k and one latent_dim on Gaussian rows of the same mean and covariance as well: what "
        "SAEs gain there over PCA is no sparse structure",
    )
    overwrite: bool = option(False, help="train again what was trained with other settings")
    no_checkpoints: bool = option(False, help="keep the metrics only; without this flag those SAEs train again")
    dry_run: bool = option(False, help="say what would be trained, what it would take and for how long, and stop")

    def __post_init__(self) -> None:
        if self.tied:
            if self.start not in (None, "tied"):
                raise InputError(f"--tied is --start tied, not --start {self.start}")
            object.__setattr__(self, "start", "tied")
        for field in fields(Recipe):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, getattr(RECIPES[self.recipe], field.name))
        if self.start == "components" and not self.centre:
            raise InputError("--start components needs --centre: principal components are those of centred rows")
        keep_once(self, "k_values")
        check_at_least(self, 1, "k_values", "epochs", "batch_size", "dead_epochs")
        check_at_least(self, 0, "seed", "whiten", "weight_decay", "aux_alpha", "aux_k")
        check_at_most(self, 1, "whiten", "aux_alpha")
        check_positive(self, "lr")
        if not LEAST_LR <= self.lr <= MOST_LR:
            raise InputError(f"--lr must be from {LEAST_LR:g} to {MOST_LR:g}, not {self.lr}")
        self._check_additions()

    def _check_additions(self) -> None:
        """Raises InputError if a setting is of no use with the others."""
        if self.whiten and not self.centre:
            raise InputError("--whiten needs --centre: what is whitened is how rows vary around their mean")
        if not self.weight_decay * self.lr < 1:
            raise InputError(f"--weight-decay {self.weight_decay:g} at --lr {self.lr:g} leaves nothing of the weights")
        if self.aux_alpha and not VARIANTS[self.variant].revival:
            able = ", ".join(name for name, variant in VARIANTS.items() if variant.revival)
            raise InputError(f"--aux-alpha is not for --variant {self.variant}; it is for {able}")
        for name in ("aux_k", "dead_epochs"):
            if not self.aux_alpha and getattr(self, name) != getattr(PUBLISHED, name):
                raise InputError(f"--{name.replace('_', '-')} needs --aux-alpha: without it no feature is revived")

    def check_k(self, latent_dims: Sequence[int]) -> None:
        """Raises InputError if a k is larger than a latent_dim."""
        if max(self.k_values) > min(latent_dims):
            raise InputError(f"k {max(self.k_values)} is larger than latent_dim {min(latent_dims)}")

    @property
    def settings(self) -> Recipe:
        """How the SAEs are trained."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

    def run(self, fingerprint: str) -> Run:
        """The identity of the SAEs of a cell whose activations have this fingerprint."""
        return Run(self.settings, self.seed, fingerprint)


@dataclass(frozen=True, kw_only=True)
class CellConfig(TrainConfig):
    """The flags of `train_grid.py`."""

    layer: int = option(help="the layer whose activations are reconstructed")
    position: int = option(help="the thought position; 0 is the bot token")
    latent_dims: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs", also="latent_dim")

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_once(self, "latent_dims")
        check_at_least(self, 0, "layer", "position")
        check_at_least(self, 1, "latent_dims")
        self.check_k(self.latent_dims)


@dataclass(frozen=True, kw_only=True)
class GridConfig(TrainConfig):
    """The flags of `train_all_layers_positions.py`."""

    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="thought positions: all, 3, 0-5 or 0,2,4")
    latent_dims: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs", also="latent_dim")
    workers: int | None = option(
        None, help="processes that train side by side; by default 3 on a GPU, on the CPU at most one per core"
    )
    cells_per_stack: int | None = option(
        None,
        help="(layer, position) whose SAEs of one latent_dim train as one stack; what is killed in the middle of one "
        "begins it anew; by default what fits the memory of a CUDA device, at most 8, and 1 elsewhere",
    )
    engine: str = option(
        "local", choices=("local", "ray"), help="local: processes on this machine; ray: tasks on a Ray cluster"
    )
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")
    gpus_per_task: float = option(1 / 3, help="GPUs of each task on Ray; three share one by default")
    cpus_per_task: int = option(1, help="cores, and threads, of each task on Ray that trains on the CPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_once(self, "latent_dims")
        check_at_least(self, 1, "latent_dims", "workers", "cells_per_stack", "cpus_per_task")
        check_at_most(self, MOST_THREADS, "workers", "cpus_per_task")
        check_positive(self, "gpus_per_task")
        check_ray_address(self)
        self.check_k(self.latent_dims)
