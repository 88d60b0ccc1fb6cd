"""The figures of a grid of SAEs, as PNGs: the six published heatmaps, and what tells a good SAE from a good score.

    python visualize_all_layers.py --results results/ --k 20 --latent-dim 1024
    python visualize_all_layers.py --results results/seed0 results/seed1 results/seed2

Four heatmaps show one published metric each at one --k and --latent-dim; two show every k of that latent_dim on one
colour scale. Several folders are the same grid from several seeds: heatmaps then show means over them, the other
figures means with their standard deviation. A figure whose data the files do not hold is left out, and named.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from thought_saes.analysis.grid import choose_slice
from thought_saes.analysis.runs import load_replicates, recorded
from thought_saes.analysis.study import make_study
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import write_bytes
from thought_saes.common.flags import check_at_least, option, parse_config
from thought_saes.figures.registry import figures
from thought_saes.figures.style import png
from thought_saes.results.names import SLICE_K, SLICE_LATENT_DIM


@dataclass(frozen=True)
class FigureConfig:
    """The flags of this script."""

    results: tuple[Path, ...] = option(
        (Path("results"),), help="folders with the metrics files of one grid, each from another seed"
    )
    output: Path | None = option(None, help="folder for the figures; if not given, the first of them")
    k: int = option(SLICE_K, help="k of the heatmaps that show one")
    latent_dim: int = option(SLICE_LATENT_DIM, help="latent_dim of all heatmaps")
    allow_partial: bool = option(False, help="draw an incomplete grid, absent cells hatched")
    dry_run: bool = option(False, help="say what would be read and written, and stop")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "k", "latent_dim")


def main() -> int:
    config = parse_config(FigureConfig, __doc__ or "")
    grid = load_replicates(config.results, config.allow_partial)
    chosen = choose_slice(grid, config.k, config.latent_dim)
    versions = package_versions("matplotlib", "seaborn", "pandas", "numpy", "statsmodels")
    origin = json.dumps({"config": recorded(config), "versions": versions})
    if chosen.note:
        print(f"Note: {chosen.note}.")
    if grid.missing:
        print(f"Incomplete: {len(grid.missing):,} SAEs are missing; their cells are hatched.")
    drawn, left_out = figures(make_study(grid, chosen))
    output = config.output or config.results[0]
    if config.dry_run:
        print(grid.describe_files(config.results))
        print("\n".join(f"would be written: {output / name}" for name in drawn))
    else:
        contents = {name: png(figure, origin) for name, figure in drawn.items()}
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(output / name, content)
        print("\n".join(f"written: {output / name}" for name in contents))
    for figure in left_out:
        print(f"left out: {figure}")
    return 0


if __name__ == "__main__":
    run(main)
