"""The content of analysis_summary.json: every number that the terminal's tables show, as strict JSON.

What the original's summary holds keeps its meaning: overall statistics and best configurations are over every SAE,
those of all seeds; every `std` is the sample standard deviation over SAEs. What is judged by fvu is of configurations,
each the mean over its seeds, and `sd` is over seeds. The effects of layer and of position, and the layer x position
matrix, are over the SAEs of one k and latent_dim; the effect of k is over every k of that latent_dim. Of equal values
the first counts, by layer, position, latent_dim, k.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from thought_saes.analysis.findings import Findings
from thought_saes.analysis.study import (
    DEATH,
    ERROR,
    EV,
    FEW_DEAD,
    FVU,
    Study,
    best,
    better_than_pca,
    has,
    over_seeds,
    pareto_front,
    rank_correlation,
)
from thought_saes.common.errors import InputError
from thought_saes.results.names import AXES

Json = dict[str, Any]


def best_effect(group: Sequence[Json], highest: bool = True) -> Json | None:
    """The first with the highest (or lowest) mean explained variance; None if no member has one."""
    known = [effect for effect in group if effect[EV]["mean"] is not None]
    sign = 1 if highest else -1
    return max(known, key=lambda effect: sign * effect[EV]["mean"], default=None)


def plain(value: Any) -> Any:
    """`value` for strict JSON: NumPy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def statistics(values: pd.Series) -> Json:
    """Over the finite values; None where there are too few (the standard deviation takes two)."""
    both_ends = {"min": values.min(), "max": values.max()}
    return plain({"mean": values.mean(), "std": values.std(ddof=1)} | both_ends)


def best_row(saes: pd.DataFrame, metric: str, highest: bool = True) -> Json | None:
    """The first SAE with the highest (or lowest) value of `metric`, as the whole row; None if no SAE has one."""
    rows = plain(best(saes, metric, highest).to_dict("records"))
    return rows[0] if rows else None


def effects(saes: pd.DataFrame, axis: str, values: Sequence[int]) -> list[Json]:
    """For each value of `axis`, the statistics of the SAEs that share it, and the means' spread over seeds."""
    found = []
    for value in values:
        group = saes[saes[axis] == value]
        metrics = [EV, DEATH, *([FVU] if has(saes, FVU) else [])]
        effect: Json = {axis: value, "saes": len(group)} | {metric: statistics(group[metric]) for metric in metrics}
        for metric in metrics:
            sd = over_seeds(group, [axis], metric)["sd"]
            effect[metric]["sd_over_seeds"] = plain(sd.iloc[0]) if len(sd) else None
        found.append(effect)
    return found


def recommend(saes: pd.DataFrame) -> Json:
    """The SAE of highest explained variance: of all, and of those with few dead features."""
    few_dead = best_row(saes[saes[DEATH] <= FEW_DEAD], EV)
    return {
        "highest_ev": best_row(saes, EV),
        "highest_ev_few_dead": few_dead,
        "note": None if few_dead else f"no SAE has at most {FEW_DEAD:.0%} dead features",
    }


def by_error(study: Study) -> Json:
    """What is judged by fvu (by 1 - explained_variance where the files hold none), over seeds."""
    configs, saes = study.configs, study.saes
    eligible = configs[configs["eligible"]]
    candidates = configs[~configs["collapsed"]]
    per_layer = {layer: eligible[eligible["layer"] == layer] for layer in study.grid.values("layer")}
    fronts = {"k": ["k", ERROR], "k_death": ["k", ERROR, DEATH]}
    variance = {
        metric: None
        if found is None
        else {
            "terms": found.terms.reset_index(names="term").to_dict("records"),
            "layers_left_out": found.left_out,
            "has_error_term": study.n_seeds > 1,
        }
        for metric, found in (study.variance | {f"log {study.error}": study.log_variance}).items()
    }
    floor = "mean_explained_variance"
    return plain(
        {
            "error": study.error,
            "collapsed": int(saes["collapsed"].sum()),
            "off_k": int(saes["off_k"].sum()),
            "no_better_than_the_mean": int((saes[ERROR] >= 1).sum()) if study.has_fvu else None,
            "better_than_pca": beat_pca[0] if (beat_pca := better_than_pca(saes)) else None,
            "overall": statistics(saes[ERROR]),
            "best": best_row(eligible, ERROR, highest=False),
            "layers": [
                {
                    "layer": layer,
                    "best": best_row(found, ERROR, highest=False),
                    "best_few_dead": best_row(found[found[DEATH] <= FEW_DEAD], ERROR, highest=False),
                }
                for layer, found in per_layer.items()
            ],
            "pareto": {
                name: candidates[pareto_front(candidates, columns)][[*AXES, ERROR, DEATH]].to_dict("records")
                for name, columns in fronts.items()
            },
            "variance": variance,
            "variance_by_k": {
                k: found and {"terms": found.terms.reset_index(names="term").to_dict("records")}
                for k, found in study.variance_by_k.items()
            },
            "rank_correlation": {
                "high_ev_low_fvu": rank_correlation(configs[EV], -configs[ERROR]) if study.has_fvu else None,
                "ev_its_floor": rank_correlation(configs[EV], configs[floor]) if has(configs, floor) else None,
            },
        }
    )


def by_k(findings: Findings) -> list[Json]:
    """What is concluded at each k: what to use or why nothing, against PCA and Gaussian rows, and the cell in focus."""
    found = []
    for at in findings.at:
        use = at.recommendation
        found.append(
            {
                "k": at.k,
                "use": None if use.config is None else use.config.to_dict(),
                "why_none": use.reason.name.lower() if use.reason else None,
                "cells": use.cells,
                "all_cells": use.all_cells,
                "layers": list(use.layers),
                "others": use.others,
                "told_apart": use.told_apart,
                "relative_to_pca": at.relative,
                "better_than_pca": at.better_than_pca,
                "can_collapse": at.can_collapse,
                "collapsed": at.collapsed,
                "off_k": at.off_k,
                "l0_off": at.l0_off,
                "ten_fire_on_every_row": at.every_row,
                "gaussian_control": at.control and at.control._asdict(),
                "layers_by_error": at.layers.by_error.index.tolist(),
                "layers_relative_to_pca": at.layers.by_relative.index.tolist(),
                "focus": at.focus and at.focus._asdict(),
            }
        )
    return plain(found)


def analyse(findings: Findings, k: int, latent_dim: int) -> Json:
    """The content of analysis_summary.json: the original's keys, then ours. `k` and `latent_dim` are those asked for.

    Raises InputError if no SAE has a finite explained variance.
    """
    study = findings.study
    grid, chosen = study.grid, study.chosen
    table = grid.table
    if table[EV].isna().all():
        raise InputError(f"none of the {len(table):,} SAEs has a finite {EV}: nothing to analyse")
    same_latent_dim = table[table["latent_dim"] == chosen.latent_dim]
    saes = same_latent_dim[same_latent_dim["k"] == chosen.k]
    layers, positions = grid.values("layer"), grid.values("position")
    layer_effects = effects(saes, "layer", layers)
    position_effects = effects(saes, "position", positions)
    lowest_death = best_row(table, DEATH, highest=False)
    matrix = {
        metric: plain(grid.layer_position_matrix(metric, chosen.latent_dim, chosen.k).to_numpy().tolist())
        for metric in (EV, DEATH, FVU)
        if metric != FVU or has(table, FVU)
    }
    return {
        "total_saes": len(table),
        "layers": layers,
        "positions": positions,
        "k_values": grid.values("k"),
        "latent_dims": grid.values("latent_dim"),
        "overall_stats": {EV: statistics(table[EV]), DEATH: statistics(table[DEATH])},
        "best_configs": {"highest_ev": best_row(table, EV), "lowest_death": lowest_death},
        "seeds": list(grid.seeds),
        "lowest_death_shared_by": int((table[DEATH] == table[DEATH].min()).sum()),
        "slice": {
            "k": chosen.k,
            "latent_dim": chosen.latent_dim,
            "saes": len(saes),
            "k_stood_in": chosen.k != k,
            "latent_dim_stood_in": chosen.latent_dim != latent_dim,
            "note": chosen.note or None,
        },
        "layer_effects": layer_effects,
        "position_effects": position_effects,
        "k_effects": effects(same_latent_dim, "k", grid.values("k")),
        "layer_position_matrix": {"layers": layers, "positions": positions} | matrix,
        "best_layer": best_effect(layer_effects),
        "worst_layer": best_effect(layer_effects, highest=False),
        "best_position": best_effect(position_effects),
        "worst_position": best_effect(position_effects, highest=False),
        "recommended": {
            "few_dead": FEW_DEAD,
            "overall": recommend(table),
            "layers": [{"layer": layer} | recommend(table[table["layer"] == layer]) for layer in layers],
        },
        "by_error": by_error(study),
        "by_k": by_k(findings),
        "focus": None if findings.focus is None else findings.focus._asdict(),
        "position_0": grid.position_0,
        "not_finite": {
            metric: int(table[metric].isna().sum()) for metric in (EV, DEATH, FVU) if metric != FVU or has(table, FVU)
        },
        "missing": {
            "count": len(grid.missing),
            "saes": [dict(zip(AXES, sae, strict=True)) for sae in grid.missing],
        },
    }
