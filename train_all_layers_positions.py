"""Train the whole grid of SAEs: every layer x position x latent_dim x k that the activations hold.

    python train_all_layers_positions.py [--layers 0-15] [--positions 0-5] [--latent-dims 512 1024 2048]

Worker processes side by side, three on a GPU as in the experiment, live for the whole run and take from one queue,
cell by cell: with three workers the latent_dims of a (layer, position) train at once, and nobody idles before the
queue is empty. On a GPU a stack spans several cells, so that its steps are long enough to keep the device busy. What
is done is skipped; what fails is reported at the end and stops nothing else. `--engine ray` gives the same work to a
Ray cluster, of one machine or of many.
"""

from thought_saes.common.command_line import run
from thought_saes.common.flags import parse_config
from thought_saes.engines.grid_run import foretell, open_engine, open_rows, run_grid
from thought_saes.training.config import GridConfig


def main() -> int:
    config = parse_config(GridConfig, __doc__ or "")
    cache = open_rows(config.activations)
    cells = cache.choose(config.layers, config.positions)
    with open_engine(config, cache, len(cells)) as engine:
        if config.dry_run:
            foretell(config, cache, cells, engine)
            return 0
        return run_grid(config, cache, cells, engine)


if __name__ == "__main__":
    run(main)
