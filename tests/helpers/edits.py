"""A small folder of the demo model's activations with concepts, SAEs of them, and questions of another split."""

import random
from pathlib import Path
from typing import Any

from demo.problems import make_problem
from tests.helpers.substitution import write_cache, write_saes
from thought_saes.activations.cache import ActivationCache
from thought_saes.models.reasoner import LatentReasoner

TOLD = 4  # values of step 1: with few problems each is on enough rows


def problem_examples(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different problems whose value after step 1 is at most TOLD, as `demo/problems.py` writes them."""
    rng = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < n:
        problem = make_problem(rng, split, rng.randint(1, 3))
        if problem.steps[0].value <= TOLD:
            found.setdefault(problem.question, problem.record())
    return [{"id": row, **record} for row, record in enumerate(found.values())]


def write_run(folder: Path, reasoner: LatentReasoner, layers: list[int], positions: list[int]) -> ActivationCache:
    """`activations` and `results` of 200 training problems in `folder`; one SAE of latent_dim 24, k 3 a cell."""
    cache = write_cache(folder / "activations", reasoner, problem_examples("train", 200), layers, positions)
    write_saes(folder / "results", cache, [24], [3])
    return cache


def swap_record(condition: str, share: float, n_features: int | None = None, **fields: Any) -> dict[str, Any]:
    """A record of `edits.json` in which `share` of 40 answers are counterfactual, and half of the others original."""
    made: dict[str, Any] = {"layer": 1, "position": 3, "latent_dim": 64, "k": 5, "step": 3, "condition": condition}
    made |= {"n_features": n_features, "f1": 0.5 if condition == "sae" else None, "n_questions": 40}
    made |= {"n_with_probability": 40, "p_value": 0.5, "q_value": 0.5, "length": 2.0}
    shares = {"counterfactual": share, "original": (1 - share) / 2, "other": (1 - share) / 2}
    shares |= {"p_counterfactual": share, "p_original": (1 - share) / 2}
    for name, value in shares.items():
        made |= {name: value, f"{name}_interval": [max(0.0, value - 0.125), min(1.0, value + 0.125)]}
    return made | fields


def empty_swap(condition: str, **fields: Any) -> dict[str, Any]:
    """A record of a step that no question has."""
    names = ("counterfactual", "original", "other", "p_counterfactual", "p_original")
    nothing = {name: None for one in names for name in (one, f"{one}_interval")}
    return swap_record(condition, 0.5) | nothing | {"n_questions": 0, "n_with_probability": 0} | fields


def ablation_record(half: str, kl: float, over_random: tuple[float, float], **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"layer": 1, "position": 3, "latent_dim": 64, "k": 5, "half": half, "concept": None}
    made |= {
        "f1": None,
        "density": 0.25,
        "n_questions": 20,
        "right_to_wrong": 5,
        "wrong_to_right": 0,
        "p_value": 0.0625,
    }
    made |= {"q_value": 0.125, "agreement": 0.75, "agreement_interval": [0.5, 0.875], "kl": kl, "random_kl": 0.125}
    made |= {"kl_interval": [kl / 2, 2 * kl], "kl_over_random_interval": list(over_random), "mean_agreement": 0.25}
    made |= {"length": 1.5, "random_agreement": 0.875, "mean_kl": 2.0}
    made |= {"log_probability_change": -kl, "log_probability_change_interval": [-2 * kl, 0.0]}
    return made | fields


def edits_content() -> dict[str, Any]:
    """A file with two positions, the first with two steps, and three features taken out."""
    about = {"model_fingerprint": "f", "dataset": "made", "dataset_split": "test", "n_questions": 50}
    about |= {"questions_sha256": "s", "all_positions": [3, 4], "seed": 0, "max_new_tokens": 5, "n_features": 2}
    swaps = [
        swap_record("sae", 0.125),
        swap_record("sae_long", 0.375),
        swap_record("several", 0.5, 5),
        swap_record("several", 0.75, 64),
        swap_record("pca", 0.625, 5),
        swap_record("random_long", 0.0),
        swap_record("class_means", 0.875),
        swap_record("mean", 0.25),
        swap_record("sae", 0.75, step=2),
        swap_record("class_means", 0.25, step=2),
        swap_record("class_means", 0.5, position=4),
        swap_record("sae", 0.25, position=4),
        empty_swap("sae", position=4, step=5),
        empty_swap("class_means", position=4, step=5),
    ]
    ablations = [
        ablation_record("3+", 0.5, (0.25, 1.0), concept="value after step 3 = 7", f1=0.75, q_value=0.015625),
        ablation_record("9-", 1.5, (-0.25, 3.0)),
        ablation_record("4+", 0.75, (0.5, 1.0)),
    ]
    return {"metadata": about, "ablations": ablations, "swaps": swaps}
