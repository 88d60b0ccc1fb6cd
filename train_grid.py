"""Train the SAEs of one (layer, position): every k at every latent_dim.

    python train_grid.py --layer 14 --position 3 [--latent-dim 512 ...] [--k-values 5 10 20 100]

The SAEs of a latent_dim are one job. In plain PyTorch they train as one stack of weights; compiled for the CPU, one
after another. An SAE's start and its batches are seeded by what it is, so it comes out the same whatever it is trained
beside. `train_all_layers_positions.py` does the same for many cells, side by side.
"""

from thought_saes.common.command_line import run
from thought_saes.common.flags import parse_config
from thought_saes.engines.grid_run import open_rows, run_cell
from thought_saes.training.config import CellConfig


def main() -> int:
    config = parse_config(CellConfig, __doc__ or "")
    return run_cell(config, open_rows(config.activations))


if __name__ == "__main__":
    run(main)
