"""The published results, and files of the original experiment, pass the models; damaged ones are one line."""

import json
from typing import Any

import pytest

from tests.helpers.json_damage import DAMAGE
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.common.files import parse_json, read_json
from thought_saes.common.schema import Record, check
from thought_saes.results.formats import BaselinesContent, GridPlan, LastRun, MetricsContent

PUBLISHED = ROOT / "results" / "smollm2-135m-gsm8k"
EXAMPLES: dict[str, type[Record]] = {
    "grid_metrics_pos3_layer14_latent1024.json": MetricsContent,
    "baselines_pos3_layer14.json": BaselinesContent,
    "grid_plan.json": GridPlan,
    "last_run.json": LastRun,
}


def test_every_published_file_is_what_its_model_says() -> None:
    for pattern, model in (("grid_metrics_*.json", MetricsContent), ("baselines_*.json", BaselinesContent)):
        for path in PUBLISHED.glob(pattern):
            check(read_json(path), model, str(path))
    for name in ("grid_plan.json", "last_run.json"):
        check(read_json(PUBLISHED / name), EXAMPLES[name], name)


def test_a_file_of_the_original_is_read() -> None:
    metadata: dict[str, Any] = {"position": 0, "layer": 3, "n_train": 5978, "n_val": 1495, "input_dim": 2048}
    metrics = {"explained_variance": 0.9, "feature_death_rate": float("nan"), "l0_mean": float("inf"), "epochs": 25}
    content = {"metadata": metadata | {"epochs": 25, "batch_size": 256}, "results": {"512": {"5": metrics}}}
    read = check(parse_json(json.dumps(content), "-"), MetricsContent, "-")
    assert read.results["512"]["5"].explained_variance == 0.9
    assert read.results["512"]["5"].feature_death_rate is None


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", EXAMPLES)
def test_damage_is_an_input_error_of_one_line_that_names_the_file(name: str, damage: str) -> None:
    refused = []
    for content in DAMAGE[damage]((PUBLISHED / name).read_text()):
        try:
            check(parse_json(content, name), EXAMPLES[name], name)
        except InputError as problem:
            refused.append(str(problem))
    assert all(message.startswith(name) and len(message) < 300 for message in refused)
    if damage in ("nested", "another document", "wrong type", "number for text or back"):
        assert refused
