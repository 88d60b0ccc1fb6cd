"""The figures by layer and position: the six published heatmaps, and the same of what tells a good SAE from a score."""

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from thought_saes.analysis.study import RELATIVE, Study, has
from thought_saes.figures.heatmaps import Layout, Quantity, color_scale, draw, draw_panel, label_axes
from thought_saes.figures.style import SMALL, TEXT, NotThere, new_figure

BODY_HEIGHT = 4.8  # inches of panels: the figure stands on the report's pages, beside text

EXPLAINED_VARIANCE = Quantity(
    "explained_variance", "Explained variance", "explained variance (high is good)", "viridis"
)
FEATURE_DEATH = Quantity(
    "feature_death_rate",
    "Feature death rate",
    "dead features, share of latent_dim (low is good)",
    "Reds",
    limits=(0.0, 1.0),
)
MEAN_ACTIVATION = Quantity(
    "mean_activation",
    "Mean activation",
    "mean |z| of the nonzero latents",
    "cividis",
    log_if_wide=True,
    raw_scale=True,
)
RECONSTRUCTION_LOSS = Quantity(
    "reconstruction_loss",
    "Reconstruction loss",
    "mean squared error (low is good)",
    "Reds",
    log_if_wide=True,
    raw_scale=True,
)
RELATIVE_FVU = Quantity(
    RELATIVE, "fvu relative to PCA of the same k", "fvu / PCA's (blue: the SAE is better)", "RdBu_r", centre=1.0
)
EFFECTIVE_RANK = Quantity(
    "effective_rank",
    "Effective rank",
    "exp of the entropy of the covariance's eigenvalues",
    "cividis",
    log_if_wide=True,
)
FVU = Quantity(
    "fvu", "Fraction of variance unexplained", "fvu (low is good, 1 is predicting the mean)", "Reds", limits=(0.0, 1.0)
)
MEAN_FLOOR = Quantity(
    "mean_explained_variance",
    "Explained variance of predicting the mean",
    "explained variance, on the SAEs' scale",
    "viridis",
)


def heatmap(study: Study, quantity: Quantity, k_values: Sequence[int], all_k: bool) -> Figure:
    """One metric at each of `k_values`; titles of the panels where all k are shown."""
    grid, chosen = study.grid, study.chosen
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


def single(quantity: Quantity, study: Study) -> Figure:
    """One metric at the study's k and latent_dim."""
    return heatmap(study, quantity, [study.chosen.k], False)


def all_k(quantity: Quantity, study: Study) -> Figure:
    """One metric at every k and the study's latent_dim, on one colour scale."""
    return heatmap(study, quantity, study.grid.values("k"), True)


def fvu(study: Study) -> Figure:
    if not study.has_fvu:
        raise NotThere("the files hold no fvu")
    return single(FVU, study)


def mean_floor(study: Study) -> Figure:
    """What predicting the mean scores, in the colours of the published explained variance."""
    grid, chosen = study.grid, study.chosen
    if not has(grid.table, MEAN_FLOOR.metric):
        raise NotThere("there are no baselines")
    published = grid.layer_position_matrix(EXPLAINED_VARIANCE.metric, chosen.latent_dim, chosen.k).to_numpy()
    # The baseline has neither k nor latent_dim; any SAE of the cell knows it.
    floor = grid.table.pivot_table(index="layer", columns="position", values=MEAN_FLOOR.metric, aggfunc="first")
    floor = floor.reindex(index=grid.values("layer"), columns=grid.values("position")).astype(float)
    subtitle = [
        "the score of a constant, on validation rows; colours and limits of "
        f"explained variance at k = {chosen.k}, latent_dim = {chosen.latent_dim}"
    ]
    return draw(MEAN_FLOOR, [("", floor)], subtitle, grid.position_0, color_scale(EXPLAINED_VARIANCE, published))


def fvu_relative(study: Study) -> Figure:
    """fvu over that of PCA of rank k at every k, collapsed SAEs marked."""
    grid, chosen = study.grid, study.chosen
    if not has(study.saes, RELATIVE):
        raise NotThere("the files hold no fvu, or there are no baselines")
    layers, positions = grid.values("layer"), grid.values("position")
    here = study.configs[study.configs["latent_dim"] == chosen.latent_dim]

    def matrix(k: int, column: str) -> pd.DataFrame:
        found = here[here["k"] == k].pivot(index="layer", columns="position", values=column)
        return found.reindex(index=layers, columns=positions)

    k_values = grid.values("k")
    panels = [(f"k = {k}", matrix(k, RELATIVE).astype(float)) for k in k_values]
    marks = [matrix(k, "collapsed").fillna(False).astype(bool) for k in k_values]  # absent is not collapsed
    subtitle = [
        f"1: as good as PCA; latent_dim = {chosen.latent_dim}" + (f", {seeds}" if (seeds := over(study)) else "")
    ]
    return draw(
        RELATIVE_FVU,
        panels,
        subtitle,
        grid.position_0,
        marks=marks,
        mark_label="collapsed: fewer than 2k features ever fire",
        panels_height=BODY_HEIGHT,
    )


def over(study: Study) -> str:
    return f"mean over {study.n_seeds} seeds" if study.n_seeds > 1 else ""


def ease(study: Study) -> Figure:
    """What a constant scores beside how many dimensions a cell has: both say how easy it is."""
    if not has(study.saes, MEAN_FLOOR.metric, EFFECTIVE_RANK.metric):
        raise NotThere("there are no baselines")
    grid = study.grid
    layers, positions = grid.values("layer"), grid.values("position")
    figure = new_figure(
        min(1.4 + 0.22 * len(layers), 8.0),
        "How easy a cell is",
        "left, what predicting the mean scores; right, how many dimensions the rows fill",
    )
    for axes, quantity in zip(figure.subplots(1, 2), (MEAN_FLOOR, EFFECTIVE_RANK), strict=True):
        matrix = grid.table.pivot_table(index="layer", columns="position", values=quantity.metric, aggfunc="first")
        matrix = matrix.reindex(index=layers, columns=positions).astype(float)
        scale = color_scale(quantity, matrix.to_numpy())
        layout = Layout.fit(2, len(layers), len(positions), 5)
        draw_panel(axes, matrix, quantity, scale, layout, apart=False)
        label_axes(axes, matrix, grid.position_0, layers_too=quantity is MEAN_FLOOR, apart=False)
        axes.set_title(quantity.title, fontsize=TEXT, pad=3)
        axes.set_xlabel("position", fontsize=TEXT)
        bar = figure.colorbar(ScalarMappable(scale, quantity.colors), ax=axes, location="bottom", aspect=30, pad=0.02)
        bar.set_label(quantity.scale_label, fontsize=TEXT)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


# The published figures, which every grid has.
SINGLE_FIGURES: dict[str, Callable[[Study], Figure]] = {
    "layer_position_explained_variance.png": partial(single, EXPLAINED_VARIANCE),
    "layer_position_feature_death.png": partial(single, FEATURE_DEATH),
    "layer_position_mean_activation.png": partial(single, MEAN_ACTIVATION),
    "layer_position_reconstruction_loss.png": partial(single, RECONSTRUCTION_LOSS),
}
ALL_K_FIGURES: dict[str, Callable[[Study], Figure]] = {
    "layer_position_all_k_ev.png": partial(all_k, EXPLAINED_VARIANCE),
    "layer_position_all_k_death.png": partial(all_k, FEATURE_DEATH),
}
