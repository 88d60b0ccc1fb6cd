"""The grid's published values, what an SAE is called, and the names of the files in a results folder."""

import re
from pathlib import Path
from typing import NamedTuple

from thought_saes.activations.cell import Cell

K_VALUES = (5, 10, 20, 100)
LATENT_DIMS = (512, 1024, 2048)
# The k and the latent_dim of single heatmaps and of the layer and position effects.
SLICE_K = 20
SLICE_LATENT_DIM = 1024

AXES = ["layer", "position", "latent_dim", "k"]


class SaeKey(NamedTuple):
    """Which SAE of a grid."""

    cell: Cell
    latent_dim: int
    k: int

    @property
    def values(self) -> tuple[int, int, int, int]:
        """In the order of AXES."""
        return (*self.cell, self.latent_dim, self.k)

    def __str__(self) -> str:
        return f"{self.cell} latent_dim {self.latent_dim} k {self.k}"


def checkpoint_path(results: Path, key: SaeKey) -> Path:
    """The weights of one SAE."""
    return results / f"pos{key.cell.position}_layer{key.cell.layer}_d{key.latent_dim}_k{key.k}.pt"


def checkpoint_keys(results: Path) -> list[SaeKey]:
    """The SAEs whose weights a folder holds, in the order of AXES."""
    names = (re.fullmatch(r"pos(\d+)_layer(\d+)_d(\d+)_k(\d+)\.pt", path.name) for path in results.glob("pos*.pt"))
    numbers = (tuple(map(int, name.groups())) for name in names if name)
    return sorted(SaeKey(Cell(layer, position), latent_dim, k) for position, layer, latent_dim, k in numbers)


def metrics_path(results: Path, cell: Cell, latent_dim: int) -> Path:
    """The metrics of the SAEs of one cell and latent_dim, by k."""
    return results / f"grid_metrics_pos{cell.position}_layer{cell.layer}_latent{latent_dim}.json"


def baselines_path(results: Path, cell: Cell) -> Path:
    """What predicting the mean, PCA and untrained SAEs score on one cell."""
    return results / f"baselines_pos{cell.position}_layer{cell.layer}.json"


def plan_path(results: Path) -> Path:
    """What the runs into this folder set out to train: the values of every axis in AXES."""
    return results / "grid_plan.json"


def last_run_path(results: Path) -> Path:
    """What the last run of the whole grid into this folder took."""
    return results / "last_run.json"


def logs_path(results: Path) -> Path:
    """The folder of the workers' logs."""
    return results / "logs"
