"""What a results folder already holds of an SAE that is asked for.

An SAE is done when its metrics file names it with the same run and its checkpoint is whole: so any command can be
killed and repeated, and trains only what is not there.
"""

from collections.abc import Sequence
from typing import NamedTuple

from thought_saes.activations.cell import Cell
from thought_saes.common.errors import DamagedFile
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import Run
from thought_saes.results.store import Results


class Existing(NamedTuple):
    """What there is of one cell and latent_dim."""

    done: tuple[int, ...]  # the k of SAEs that are whole and of the same run
    damaged: list[str]  # files to be written again, and why
    difference: str | None  # how the run differs, if it does
    n_metrics_only: int = 0  # SAEs that would be done but for their checkpoints, which were not kept


def find_existing(
    results: Results, cell: Cell, latent_dim: int, k_values: Sequence[int], run: Run, metrics_only: bool = False
) -> Existing:
    """Look for finished SAEs. With `metrics_only` an SAE needs no checkpoint to be one."""
    try:
        there = results.metrics(cell, latent_dim)
    except DamagedFile as problem:
        return Existing((), [f"{problem} (damaged)"], None)
    if there is None:
        return Existing((), [], None)
    if differences := there.run.differences(run):
        return Existing((), [], f"{there.path}: {', '.join(differences)}")
    found = [k for k in k_values if k in there.by_k]
    if metrics_only:
        return Existing(tuple(found), [], None)
    done: list[int] = []
    damaged: list[str] = []
    for k in found:
        if k not in there.without_checkpoint:
            wrong = results.checkpoint_problem(SaeKey(cell, latent_dim, k))
            done.append(k) if wrong is None else damaged.append(wrong)
    n_unkept = len(there.without_checkpoint.intersection(found))
    return Existing(tuple(done), damaged, None, n_metrics_only=n_unkept)
