"""The analysis of variance against one worked out by hand and against the whole factorial model in statsmodels."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols  # type: ignore[import-untyped]
from statsmodels.stats.anova import anova_lm  # type: ignore[import-untyped]

from thought_saes.analysis.variance import CROSS, ERROR, HIGHER, HIGHER_AND_SEED, decompose
from thought_saes.results.names import AXES

# Layer x position means 1, 3, 5, 11; two seeds half a unit below and above.
MEANS = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 11.0}


def by_hand(deviations: dict[int, float]) -> pd.DataFrame:
    rows = [
        {"layer": layer, "position": position, "latent_dim": 64, "k": 4, "seed": seed, "fvu": mean + deviation}
        for (layer, position), mean in MEANS.items()
        for seed, deviation in deviations.items()
    ]
    return pd.DataFrame(rows)


def factorial(n_seeds: int) -> pd.DataFrame:
    rows = list(product((0, 1, 2), (0, 1), (64, 128), (4, 8), range(n_seeds)))
    table = pd.DataFrame(rows, columns=[*AXES, "seed"])
    noise = np.random.default_rng(0).normal(size=len(table))
    return table.assign(fvu=table["layer"] * table["position"] + np.log(table["k"]) + 0.5 * noise)


def test_sums_of_squares_shares_f_and_p_are_those_worked_out_by_hand() -> None:
    terms = decompose(by_hand({0: -0.5, 1: 0.5}), "fvu").terms  # type: ignore[union-attr]
    crossed = f"layer{CROSS}position"
    assert terms.index.tolist() == ["layer", "position", crossed, ERROR]
    # Grand mean 5. Layers 2 and 8: 4 SAEs each, 4 * 9 + 4 * 9 = 72. Positions 3 and 7: 4 * 4 + 4 * 4 = 32.
    # Interaction: 1 - (2 + 3 - 5) = 1, then -1, -1, 1: 8 SAEs * 1 = 8. Seeds: 8 * 0.25 = 2 with 4 * (2 - 1) = 4 df.
    assert terms["sum_sq"].tolist() == pytest.approx([72, 32, 8, 2])
    assert terms["df"].tolist() == [1, 1, 1, 4]
    assert terms["share"].tolist() == pytest.approx([72 / 114, 32 / 114, 8 / 114, 2 / 114])
    # Mean square of the error: 2 / 4 = 0.5.
    assert terms["F"].tolist()[:3] == pytest.approx([144, 64, 16])
    # F(1, 4) = t(4)^2, and the distribution function of t(4) is 1/2 + 3/8 u (1 - u^2 / 12), u = t / sqrt(1 + t^2 / 4).
    u = 4 / math.sqrt(1 + 16 / 4)
    assert terms.loc[crossed, "p"] == pytest.approx(2 * (0.5 - 3 / 8 * u * (1 - u**2 / 12)))
    assert terms.loc[ERROR, ["F", "p"]].isna().all()


def test_with_one_seed_there_are_shares_but_no_error_term() -> None:
    terms = decompose(by_hand({0: 0.0}).drop(columns="seed"), "fvu").terms  # type: ignore[union-attr]
    assert terms["sum_sq"].tolist() == pytest.approx([36, 16, 4])
    assert terms["share"].sum() == pytest.approx(1)
    assert terms[["F", "p"]].isna().all(axis=None)
    assert ERROR not in terms.index


def test_terms_agree_with_the_whole_factorial_model_of_statsmodels() -> None:
    table = factorial(n_seeds=3)
    found = decompose(table, "fvu")
    assert found is not None
    terms = found.terms
    whole = anova_lm(ols("fvu ~ C(layer) * C(position) * C(latent_dim) * C(k)", table).fit(), typ=2)
    names = [name.replace("C(", "").replace(")", "").replace(":", CROSS) for name in whole.index]
    whole.index = pd.Index(names)
    for name in terms.index.drop([HIGHER, ERROR]):
        for ours, theirs in (("sum_sq", "sum_sq"), ("df", "df"), ("F", "F"), ("p", "PR(>F)")):
            assert terms.loc[name, ours] == pytest.approx(whole.loc[name, theirs], rel=1e-6), (name, ours)
    assert terms.loc[ERROR, "sum_sq"] == pytest.approx(whole.loc["Residual", "sum_sq"])
    assert terms.loc[ERROR, "df"] == whole.loc["Residual", "df"]
    higher = [name for name in names if name.count(CROSS) > 1]
    assert len(higher) == 5
    assert terms.loc[HIGHER, "sum_sq"] == pytest.approx(whole.loc[higher, "sum_sq"].sum())
    assert terms.loc[HIGHER, "df"] == whole.loc[higher, "df"].sum()
    assert terms["sum_sq"].sum() == pytest.approx(((table["fvu"] - table["fvu"].mean()) ** 2).sum())


def test_with_one_seed_the_highest_interactions_and_the_seed_are_one_term() -> None:
    terms = decompose(factorial(n_seeds=1), "fvu").terms  # type: ignore[union-attr]
    assert terms.index[-1] == HIGHER_AND_SEED
    assert terms["df"].sum() == 3 * 2 * 2 * 2 - 1


def test_a_layer_with_a_missing_sae_is_left_out_and_named() -> None:
    table = factorial(n_seeds=2)
    table.loc[(table["layer"] == 1) & (table["k"] == 4) & (table["seed"] == 0), "fvu"] = np.nan
    found = decompose(table, "fvu")
    assert found is not None
    assert found.left_out == [1]
    whole = decompose(factorial(n_seeds=2).query("layer != 1"), "fvu")
    assert whole is not None
    assert found.terms["sum_sq"].tolist() == pytest.approx(whole.terms["sum_sq"].tolist())


def test_what_does_not_vary_or_is_one_configuration_has_no_decomposition() -> None:
    table = by_hand({0: 0.0})
    assert decompose(table.assign(fvu=0.5), "fvu") is None
    assert decompose(table.head(1), "fvu") is None
    assert decompose(table.assign(fvu=np.nan), "fvu") is None
