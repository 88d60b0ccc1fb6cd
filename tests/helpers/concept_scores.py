"""A concept_scores.json made of a few numbers."""

from collections.abc import Mapping
from typing import Any

Sae = tuple[int, int, int, int]  # layer, position, latent_dim, k


def make_scores(coverages: Mapping[Sae, float], fvus: Mapping[Sae, float]) -> dict[str, Any]:
    """SAEs of these coverages; raw dimensions have 0.4 everywhere, and the page is of latent_dim 64, k 4."""

    def value(coverage: float) -> dict[str, Any]:
        families = {"answer": {"coverage": coverage, "low": 0.0, "high": 1.0}}
        return {"coverage": coverage, "low": coverage - 0.01, "high": coverage + 0.01, "families": families}

    cells = sorted({sae[:2] for sae in coverages})
    return {
        "metadata": {
            "page": {"latent_dim": 64, "k": 4},
            "concepts": 12,
            "concepts_left_out": 3,
            "families": ["answer"],
            "n_train": 80,
            "n_validation": 20,
            "position_0": "bot token",
        },
        "cells": [
            {"layer": layer, "position": position, "raw": value(0.4), "pca": value(0.3), "probe": value(0.9)}
            for layer, position in cells
        ],
        "saes": [
            {
                **dict(zip(("layer", "position", "latent_dim", "k"), sae, strict=True)),
                "fvu": fvus[sae],
                "feature_death_rate": 0.0,
                "sae": value(coverage),
                "untrained": value(0.2),
                "shuffled": value(0.1),
                "over_raw": {"difference": coverage - 0.4, "low": coverage - 0.45, "high": coverage - 0.35},
                "over_untrained": {"difference": coverage - 0.2, "low": coverage - 0.25, "high": coverage - 0.15},
                "best_family": "answer",
                "monosemantic_share": None,
                "monosemantic_halves": 0,
                "judged_halves": 0,
                "splitting": 1.5,
            }
            for sae, coverage in coverages.items()
        ],
    }
