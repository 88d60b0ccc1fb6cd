"""Train the TopK SAEs of one (layer, position): every k at every latent_dim.

    python train_grid.py --layer 14 --position 3 [--latent-dim 512 ...] [--k-values 5 10 20 100]

The SAEs of a latent_dim are one task. In plain PyTorch they train as one stack of weights, which may span several
(layer, position) when `train_all_layers_positions.py` calls; compiled for the CPU, one after another. An SAE's start
and its batches are seeded by what it is, so it comes out the same whatever it is trained beside.

Deliberately missing, as in the experiment: learning-rate schedule, input normalisation, treatment of dead features.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.common.flags import check_at_least, keep_once, option, parse_config
from thought_saes.common.machine import choose_device
from thought_saes.common.text import in_time
from thought_saes.results.names import LATENT_DIMS
from thought_saes.training.forecast import Workers, describe, seconds_to_train
from thought_saes.training.run import choose_backend, train_task
from thought_saes.training.task import TrainConfig, check_room, plan_tasks


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


def foretell(config: CellConfig, cache: ActivationCache, device: torch.device) -> None:
    """Say what a run would take. Raises InputError if the disk is too small for it."""
    tasks, n_done = plan_tasks(config, cache, [Cell(config.layer, config.position)], config.latent_dim)
    backend = choose_backend(config.backend, device)
    print(describe(config, cache, tasks, n_done, Workers(1, str(device), backend)))
    check_room(config, cache.input_dim, tasks)
    print(f"time: about {in_time(seconds_to_train(tasks, config, cache, device, backend))}")


def main() -> int:
    config = parse_config(CellConfig, __doc__ or "")
    device = choose_device(config.device)
    cache = ActivationCache(config.activations)
    if Cell(config.layer, config.position) not in cache.cells:
        raise InputError(
            f"no layer {config.layer}, position {config.position} in {config.activations}; it has layers "
            f"{', '.join(map(str, cache.layers))} and positions {', '.join(map(str, cache.positions))}"
        )
    if config.dry_run:
        foretell(config, cache, device)
        return 0
    failures = []
    with only_writer(config.results):
        tasks, n_done = plan_tasks(config, cache, [Cell(config.layer, config.position)], config.latent_dim)
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
