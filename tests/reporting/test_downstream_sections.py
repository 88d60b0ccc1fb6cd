"""The sections on substitution and on error prediction say what their files hold."""

from typing import Any

import pytest

from thought_saes.reporting.sections import error_prediction, substitution


def record(condition: str, accuracy: float, regime: str = "layer", **fields: Any) -> dict[str, Any]:
    made = {"regime": regime, "layer": 0, "position": None, "condition": condition, "latent_dim": None, "k": None}
    made |= {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.1, accuracy + 0.1], "kl": 0.5, "n_questions": 50}
    return made | {"delta_accuracy": accuracy - 1, "delta_accuracy_interval": [-0.3, -0.1], "q_value": 0.01} | fields


def made_records() -> list[dict[str, Any]]:
    return [
        record("own", 0.9),
        record("mean", 0.1),
        record("sae", 0.8, latent_dim=64, k=5),
        record("pca", 0.2, k=5),
        record("mean", 0.8, "cell", position=1),
        record("mean", 0.99, "cell", position=2, delta_accuracy_interval=[-0.03, 0.01], q_value=0.4),
    ]


def test_substitution_names_what_the_sparsest_saes_keep_and_brackets_what_may_be_nothing() -> None:
    text = substitution.phrase({"records": made_records()})
    assert text.startswith(
        "With every state of layer 0 replaced, 5 features of 64 keep 80.0% [70.0%, 90.0%] of 50 answers right"
    )
    assert "| SAE                          | 80.0% [70.0%, 90.0%] |" in text
    assert text.splitlines()[-1].split("|")[2:4] == ["      -20.0 ", "     (-1.0) "]


def test_of_a_model_that_is_nearly_always_wrong_agreement_is_told() -> None:
    records = [each | {"agreement": 0.6, "agreement_interval": [0.5, 0.7]} for each in made_records()]
    records[0] |= {
        "accuracy": 0.02,
        "accuracy_interval": [0.0, 0.05],
        "agreement": 1.0,
        "agreement_interval": [1.0, 1.0],
    }
    text = substitution.phrase({"records": records})
    assert "keep 60.0% [50.0%, 70.0%] of 50 answers as they are (2.0% [0.0%, 5.0%] of these are right" in text
    assert "80.0%" not in text
    assert "Which thoughts matter" not in text


def test_controls_that_were_not_measured_are_not_made_up() -> None:
    text = substitution.phrase({"records": [each for each in made_records() if each["condition"] != "pca"]})
    assert text.startswith("The unmodified model, its SAEs and their controls were not all measured.")


@pytest.mark.parametrize(
    ("interval", "verdict"), [([-0.9, -0.2], "Yes"), ([-0.4, 0.3], "Not shown"), ([0.1, 0.5], "The opposite")]
)
def test_the_published_question_is_answered_by_the_interval(interval: list[float], verdict: str) -> None:
    found = {"spearman": sum(interval) / 2, "interval": interval}
    one = {"auroc": 0.7, "auroc_interval": [0.6, 0.8], "delta_auroc": 0.01, "delta_auroc_interval": [-0.1, 0.1]}
    answer: dict[str, Any] = {"n_configurations": 12, "ceiling": 0.8}
    for quality in ("fvu", "explained_variance"):
        answer |= {f"{quality}_{over}": found for over, _ in error_prediction.OVER}
    best = {"auroc_where_chosen": 0.75, "auroc": 0.7, "auroc_of_the_median": 0.69}
    text = error_prediction.phrase(
        {
            "published_question": answer,
            "records": [one | {"features": "sae", "k": 5}, one | {"features": "raw", "k": None}],
            "best_chosen_on_one_half": best,
            "n_wrong": 30,
            "n_questions": 100,
            "baselines": one,
            "oracle_steps": one,
        }
    )
    assert f"**{verdict}**" in text
    assert "| sae, k 5 | 0.700 [0.600, 0.800] |             +0.010 |           0 of 1 |" in text
