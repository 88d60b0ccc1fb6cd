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
