"""Every figure by its file name. A new figure is a function in a module of this folder and a line here.

A function takes the Study (`study.folders` are the results folders, for what stands beside the metrics) and raises
NotThere, with the reason, where the folders do not hold what it shows.
"""

from collections.abc import Callable

from matplotlib.figure import Figure

from thought_saes.analysis.study import Study
from thought_saes.figures import comparisons, concepts
from thought_saes.figures.downstream import DOWNSTREAM
from thought_saes.figures.edits import swap_by_position
from thought_saes.figures.maps import ALL_K_FIGURES, SINGLE_FIGURES, ease, fvu, fvu_relative, mean_floor
from thought_saes.figures.style import NotRun, NotThere

FVU_FIGURE = "layer_position_fvu.png"
FLOOR_FIGURE = "layer_position_mean_floor.png"
COMPARISONS: dict[str, Callable[[Study], Figure]] = {
    "fvu_against_k.png": comparisons.fvu_against_k,
    "pareto_front.png": comparisons.pareto,
    "death_against_gamma.png": comparisons.death_against_gamma,
    "train_validation_gap.png": comparisons.train_validation_gap,
    "variance_shares.png": comparisons.variance_shares,
    "gaussian_control.png": comparisons.gaussian_control,
}
# Of what scripts of their own measure: not drawn, and not missed, where they have not been run.
EVALUATIONS: dict[str, Callable[[Study], Figure]] = {
    "concept_coverage.png": concepts.concept_coverage,
    "coverage_against_fvu.png": concepts.coverage_against_fvu,
    **DOWNSTREAM,
    "swap_by_position.png": swap_by_position,
}
FIGURES: dict[str, Callable[[Study], Figure]] = {
    **SINGLE_FIGURES,
    **ALL_K_FIGURES,
    FVU_FIGURE: fvu,
    FLOOR_FIGURE: mean_floor,
    "layer_position_all_k_fvu_relative.png": fvu_relative,
    "layer_position_ease.png": ease,
    **COMPARISONS,
    **EVALUATIONS,
}


def figures(study: Study) -> tuple[dict[str, Figure], list[str]]:
    """The figures by file name, and in words those that are left out and why."""
    drawn, left_out = {}, []
    for name, make in FIGURES.items():
        try:
            drawn[name] = make(study)
        except NotRun:
            continue
        except NotThere as reason:
            left_out.append(f"{name}: {reason}")
    return drawn, left_out
