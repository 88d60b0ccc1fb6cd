"""The figures of a grid of SAEs, as PNGs: the six published heatmaps, and what tells a good SAE from a good score.

    python visualize_all_layers.py --results results/ --k 20 --latent-dim 1024
    python visualize_all_layers.py --results results/seed0 results/seed1 results/seed2

Four heatmaps show one published metric each at one --k and --latent-dim; two show every k of that latent_dim on one
colour scale. Several folders are the same grid from several seeds: heatmaps then show means over them, the other
figures means with their standard deviation. A figure whose data the files do not hold is left out, and named.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from thought_saes.analysis.grid import Grid, Slice, choose_slice
from thought_saes.analysis.runs import load_replicates, recorded
from thought_saes.analysis.study import FVU as FVU_METRIC
from thought_saes.analysis.study import Study, has, make_study
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import write_bytes
from thought_saes.common.flags import check_at_least, option, parse_config
from thought_saes.figures.comparisons import COMPARISONS, NotThere
from thought_saes.figures.heatmaps import (
    EXPLAINED_VARIANCE,
    FEATURE_DEATH,
    FVU,
    MEAN_ACTIVATION,
    MEAN_FLOOR,
    RECONSTRUCTION_LOSS,
    Quantity,
    color_scale,
    draw,
)
from thought_saes.results.names import SLICE_K, SLICE_LATENT_DIM

DPI = 300
SINGLE_FIGURES = {
    "layer_position_explained_variance.png": EXPLAINED_VARIANCE,
    "layer_position_feature_death.png": FEATURE_DEATH,
    "layer_position_mean_activation.png": MEAN_ACTIVATION,
    "layer_position_reconstruction_loss.png": RECONSTRUCTION_LOSS,
}
ALL_K_FIGURES = {
    "layer_position_all_k_ev.png": EXPLAINED_VARIANCE,
    "layer_position_all_k_death.png": FEATURE_DEATH,
}
FVU_FIGURE = "layer_position_fvu.png"
FLOOR_FIGURE = "layer_position_mean_floor.png"


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


def heatmap(grid: Grid, chosen: Slice, quantity: Quantity, k_values: Sequence[int], all_k: bool) -> Figure:
    """One metric at each of `k_values`; titles of the panels where all k are shown."""
    shown_saes = int((grid.table["k"].isin(k_values) & (grid.table["latent_dim"] == chosen.latent_dim)).sum())
    count = f"{shown_saes:,} SAE" + ("" if shown_saes == 1 else "s")
    sizes = f"k = {', '.join(map(str, k_values))}; latent_dim = {chosen.latent_dim}; {count}"
    if len(grid.seeds) > 1:
        sizes += f", mean over {len(grid.seeds)} seeds"
    panels = [
        (f"k = {k}" if all_k else "", grid.layer_position_matrix(quantity.metric, chosen.latent_dim, k))
        for k in k_values
    ]
    return draw(quantity, panels, [sizes, *([chosen.note] if chosen.note else [])], grid.position_0)


def mean_floor(grid: Grid, chosen: Slice) -> Figure:
    """What predicting the mean scores, in the colours of the published explained variance."""
    published = grid.layer_position_matrix(EXPLAINED_VARIANCE.metric, chosen.latent_dim, chosen.k).to_numpy()
    # The baseline has neither k nor latent_dim; any SAE of the cell knows it.
    floor = grid.table.pivot_table(index="layer", columns="position", values=MEAN_FLOOR.metric, aggfunc="first")
    floor = floor.reindex(index=grid.values("layer"), columns=grid.values("position")).astype(float)
    subtitle = [
        "the score of a constant, on validation rows; colours and limits of "
        f"explained variance at k = {chosen.k}, latent_dim = {chosen.latent_dim}"
    ]
    return draw(MEAN_FLOOR, [("", floor)], subtitle, grid.position_0, color_scale(EXPLAINED_VARIANCE, published))


def figures(study: Study) -> tuple[dict[str, Figure], list[str]]:
    """The figures by file name, and in words those that are left out and why."""
    grid, chosen = study.grid, study.chosen
    drawn = {name: heatmap(grid, chosen, quantity, [chosen.k], False) for name, quantity in SINGLE_FIGURES.items()}
    drawn |= {name: heatmap(grid, chosen, quantity, grid.values("k"), True) for name, quantity in ALL_K_FIGURES.items()}
    left_out = []
    if has(grid.table, FVU_METRIC):
        drawn[FVU_FIGURE] = heatmap(grid, chosen, FVU, [chosen.k], False)
    else:
        left_out.append(f"{FVU_FIGURE}: the files hold no fvu")
    if has(grid.table, MEAN_FLOOR.metric):
        drawn[FLOOR_FIGURE] = mean_floor(grid, chosen)
    else:
        left_out.append(f"{FLOOR_FIGURE}: there are no baselines")
    for name, make in COMPARISONS.items():
        try:
            drawn[name] = make(study)
        except NotThere as reason:
            left_out.append(f"{name}: {reason}")
    return drawn, left_out


def png(figure: Figure, origin: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Description": origin})
    return content.getvalue()


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
