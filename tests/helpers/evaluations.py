"""Small files of the evaluations, as their scripts write them."""

import json
from typing import Any

from tests.helpers.paths import ROOT

DEMO = ROOT / "results" / "demo"
AREA = {"auroc": 0.7, "auroc_interval": [0.6, 0.8]}


def substitution() -> dict[str, Any]:
    """The demo's records of two positions, one k, and whole layers."""
    content: dict[str, Any] = json.loads((DEMO / "substitution.json").read_text())
    k = min(record["k"] for record in content["records"] if record["condition"] == "sae")
    content["records"] = [
        record for record in content["records"] if record["k"] in (None, k) and record["position"] in (None, 1, 3)
    ]
    return content


def edits() -> dict[str, Any]:
    """The demo's, of some features and some swaps."""
    content: dict[str, Any] = json.loads((DEMO / "edits.json").read_text())
    return content | {"ablations": content["ablations"][:3], "swaps": content["swaps"][:12]}


def error_prediction() -> dict[str, Any]:
    """Made up: three SAEs of one cell and its raw activations."""
    where = {"layer": 0, "position": 1, "delta_auroc": 0.01, "delta_auroc_interval": [-0.1, 0.1]}
    found = {"spearman": -0.5, "interval": [-0.8, -0.2]}
    names = ("overall", "within_cell", "between_cells", "within_k")
    return {
        "metadata": {"activations": "activations_test", "seed": 0},
        "n_questions": 100,
        "n_wrong": 30,
        "baselines": AREA | {"auroc_within_steps": 0.6},
        "oracle_steps": AREA,
        "records": [
            AREA | where | {"features": "raw", "latent_dim": None, "k": None},
            *(AREA | where | {"features": "sae", "latent_dim": 16, "k": k, "fvu": 0.1 * k} for k in (2, 3, 4)),
        ],
        "best_chosen_on_one_half": {"auroc_where_chosen": 0.75, "auroc": 0.7, "auroc_of_the_median": 0.69},
        "published_question": {"n_configurations": 3, "reliability": 0.5, "ceiling": 0.7}
        | {f"{quality}_{over}": found for quality in ("fvu", "explained_variance") for over in names},
    }


def transfer() -> dict[str, Any]:
    """Made up: two SAEs of a cell, compared with those of the other data set."""
    own = {"fvu": 0.1, "feature_death_rate": 0.0, "l0_mean": 2.0}
    records = [
        {"layer": 0, "position": 1, "latent_dim": 16, "k": k, "fvu_at_home": 0.1, "own": own, "gap": 0.1}
        | own
        | {"fvu": 0.2}
        for k in (2, 4)
    ]
    gap = {"n_saes": 2, "n_cells": 1, "fvu": 0.2, "fvu_own": 0.1, "gap": 0.1, "gap_interval": [0.05, 0.15]}
    fvus = {"2": {"fvu": 0.3}, "4": {"fvu": 0.2}}
    baselines = {"mean_of_a": {"fvu": 1.1}, "mean_of_b": {"fvu": 1.0}, "pca_of_a": fvus, "pca_of_b": fvus}
    return {
        "metadata": {"activations": "activations_b", "n_validation": 24},
        "gaps": [gap | {"latent_dim": None, "k": None}, gap | {"latent_dim": 16, "k": 2, "gap_interval": None}],
        "records": records,
        "baselines": [{"layer": 0, "position": 1} | baselines],
    }
