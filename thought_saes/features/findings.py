"""What was found of the features, in sentences."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from thought_saes.common.text import number
from thought_saes.features.beside import NOTHING, Beside, effect_in_words


def place_in_words(layer: int, position: int, position_0: str = "bot token") -> str:
    """`thought 3, layer 1`."""
    return f"{f'thought {position}' if position else f'the {position_0}'}, layer {layer}"


def concept_in_words(concept: str) -> str:
    """`the value after step 3 is 12` of `value after step 3 = 12`."""
    family, _, value = concept.partition(" = ")
    return f"the {family} is {value}"


def coverage_in_words(scores: Mapping[str, Any]) -> str:
    """The SAE of highest coverage beside what it is compared with."""
    best = max(scores["saes"], key=lambda sae: sae["sae"]["coverage"])
    cell = next(cell for cell in scores["cells"] if all(cell[axis] == best[axis] for axis in ("layer", "position")))
    baselines = ", ".join(
        f"{words} {number(value['coverage'], '.2f')}"
        for words, value in (
            ("raw dimensions", cell["raw"]),
            ("principal components", cell["pca"]),
            ("an untrained SAE", best["untrained"]),
            ("shuffled concepts", best["shuffled"]),
            ("a linear probe", cell["probe"]),
        )
    )
    ours = best["sae"]
    where = place_in_words(best["layer"], best["position"], scores["metadata"]["position_0"])
    return (
        f"Highest coverage of the {scores['metadata']['concepts']} known concepts: {ours['coverage']:.2f} "
        f"({ours['low']:.2f} to {ours['high']:.2f}) at {where}, latent_dim {best['latent_dim']}, k {best['k']}; "
        f"{baselines}."
    )


def best_finding(features: pd.DataFrame, scores: Mapping[str, Any], beside: Beside = NOTHING) -> str:
    """The half of highest F1 on the validation rows among those with a page; of equal ones the one that fires most."""
    page = scores["metadata"]["page"]
    shown = (features["latent_dim"] == page["latent_dim"]) & (features["k"] == page["k"])
    told = features[shown & features["f1"].notna()]
    if told.empty:
        return "No feature fires for a known concept."
    best = told.sort_values(["f1", "density"], ascending=False, kind="stable").iloc[0]
    where = place_in_words(best["layer"], best["position"], scores["metadata"]["position_0"])
    return (
        f"Feature {best['half']} at {where} (latent_dim {best['latent_dim']}, k {best['k']}) fires when "
        f"{concept_in_words(best['concept'])}: F1 {best['f1']:.2f} on questions it was not chosen on"
        f"{effect_in_words(best, beside.effects)}."
    )
