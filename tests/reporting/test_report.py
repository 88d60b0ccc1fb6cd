"""The report: whole, without a placeholder, and its tables equal to numbers computed here by other means."""

import json
import math
import re
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from analyze_all_layers import main
from tests.helpers.grids import Sae, write_baselines, write_grid, write_seed
from thought_saes.common.text import without_path

LAYERS, POSITIONS, LATENT_DIMS, K_VALUES = (0, 3, 7), (0, 1), (64, 128), (4, 8)
AXES = (LAYERS, POSITIONS, LATENT_DIMS, K_VALUES)
SEEDS = (0, 1, 2)
HEADINGS = [
    "# TopK SAE Multi-Layer Experiment Report",
    "## Executive Summary",
    "## 1. Experiment Design",
    "### 1.1 Motivation",
    "### 1.2 Comprehensive Grid",
    "### 1.3 Computational Efficiency",
    "### 1.4 How to Read the Numbers",
    "## 2. Results",
    "### 2.1 Overall Quality Distribution",
    "### 2.2 Best Configurations",
    "### 2.3 Layer and Position Effects",
    "### 2.4 Baselines",
    "### 2.5 Pareto Fronts",
    "### 2.6 Features and Generalisation",
    "## 3. Analysis",
    "### 3.1 Layer Effects",
    "### 3.2 Position Effects",
    "### 3.3 Layer \N{MULTIPLICATION SIGN} Position Interactions",
    "## 4. Recommendations",
    "### 4.1 For Mechanistic Interpretability",
    "### 4.2 For Future Experiments",
    "## 5. Limitations",
    "## 6. Future Work",
    "## Appendix",
    "### A.1 Layers",
    "### A.2 Positions",
    "### A.3 The Lowest of Each Layer",
    "### A.4 The Ten Lowest and the Ten of Highest Explained Variance",
    "### A.5 Pareto Fronts",
    "### A.6 Analysis of Variance",
    "### A.7 Further Figures",
    "### A.8 Files",
]
Call = Callable[..., tuple[int, str, str]]


def section(report: str, number: str) -> str:
    start = report.index(f"### {number} ")
    following = re.search(r"^#", report[start + 1 :].split("\n", 1)[1], re.MULTILINE)
    assert following
    return report[start : start + 1 + report[start + 1 :].index("\n") + 1 + following.start()]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table as a list of rows by header."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def mean_sd(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


@pytest.fixture
def seeds(tmp_path: Path) -> dict[int, dict[Sae, dict[str, float]]]:
    return {seed: write_seed(tmp_path / f"seed{seed}", seed, AXES) for seed in SEEDS}


@pytest.fixture
def report(tmp_path: Path, seeds: object, call: Call) -> str:
    folders = [tmp_path / f"seed{seed}" for seed in SEEDS]
    code, _, error = call(main, "--results", *folders, "--output", tmp_path / "out")
    assert (code, error) == (0, "")
    return (tmp_path / "out" / "report.md").read_text()


def test_every_section_is_there_in_order_and_no_placeholder(report: str) -> None:
    assert [line for line in report.splitlines() if line.startswith("#")] == HEADINGS
    assert not re.search(r"filled|TODO|\*\[|\bnan\b|\binf\b|None|NaN|\{|\}", report.replace("pos{position}", "")[:-900])
    assert not re.search(r"\bnan\b|\binf\b|None|NaN", report)


def test_every_section_has_a_sentence_before_its_first_table(report: str) -> None:
    for heading in (line for line in HEADINGS if line.startswith("###")):
        after = report.split(f"{heading}\n\n", 1)[1]
        assert re.match(r"[^|#\n]{20,}", after), heading


def test_the_report_and_the_summary_hold_no_path_of_the_machine(report: str, tmp_path: Path) -> None:
    for text in (report, (tmp_path / "out" / "analysis_summary.json").read_text()):
        assert str(tmp_path) not in text
        assert "/tmp" not in text
    assert "Read from `seed0`, `seed1`, `seed2`" in report


def test_the_quality_distribution_is_recomputed(report: str, seeds: dict[int, dict[Sae, dict[str, float]]]) -> None:
    text = section(report, "2.1")
    (by_k,) = tables(text)
    (overall,) = tables(report.split("## Appendix")[1].split("### A.1")[0])
    each = {seed: [own["fvu"] for own in metrics.values()] for seed, metrics in seeds.items()}
    every = [value for values in each.values() for value in values]
    row = next(row for row in overall if row["metric"] == "fvu")
    assert row["mean"] == mean_sd([statistics.fmean(values) for values in each.values()])
    assert row["std over SAEs"] == f"{statistics.stdev(every):.4f}"
    assert (row["min"], row["median"]) == (f"{min(every):.4f}", f"{statistics.median(every):.4f}")
    bad = sum(value >= 1 for value in every)
    collapsed = sum(
        own["num_active_features"] < 2 * sae[3] for metrics in seeds.values() for sae, own in metrics.items()
    )
    assert bad > 0
    assert collapsed == 3 * 3 * 2  # k 4, position 0: 3 layers x 2 latent_dims x 3 seeds
    assert f"{bad} of 72 ({bad / 72:.1%}) SAEs are no better than predicting the mean (fvu >= 1)" in text
    assert f"{collapsed} of 72 (25.0%) have collapsed" in text
    for row in by_k:
        k = int(row["k"])
        values = [[own["fvu"] for sae, own in metrics.items() if sae[3] == k] for metrics in seeds.values()]
        assert row["mean fvu"] == mean_sd([statistics.fmean(group) for group in values])
        assert row["collapsed"] == ("18" if k == 4 else "0")


def test_the_layer_effects_are_recomputed(report: str, seeds: dict[int, dict[Sae, dict[str, float]]]) -> None:
    text = section(report, "A.1")
    means = {}
    for row in tables(text)[0]:
        layer = int(row["layer"])
        each = [
            statistics.fmean(own["fvu"] for sae, own in metrics.items() if sae[0] == layer)
            for metrics in seeds.values()
        ]
        means[layer] = statistics.fmean(each)
        assert row["mean fvu"] == mean_sd(each)
        assert row["EV floor"] == f"{0.9 + 0.01 * layer + 0.0005:.4f}"
    lowest, highest = min(means, key=lambda layer: means[layer]), max(means, key=lambda layer: means[layer])
    assert f"lowest at layer {lowest} (" in text
    assert f"highest at layer {highest} (" in text


def test_the_recommended_configuration_of_each_layer_is_recomputed(
    report: str, seeds: dict[int, dict[Sae, dict[str, float]]]
) -> None:
    per_layer = tables(section(report, "A.3"))[0]
    assert [int(row["layer"]) for row in per_layer] == list(LAYERS)
    for row in per_layer:
        candidates = {}
        for sae in (sae for sae in seeds[0] if sae[0] == int(row["layer"])):
            values = [metrics[sae]["fvu"] for metrics in seeds.values()]
            alive = all(metrics[sae]["num_active_features"] >= 2 * sae[3] for metrics in seeds.values())
            if alive and statistics.fmean(values) < 1:
                candidates[sae] = values
        best = min(candidates, key=lambda sae: statistics.fmean(candidates[sae]))
        assert row["lowest: position/latent_dim/k"] == "/".join(map(str, best[1:]))
        assert row["fvu"] == mean_sd(candidates[best])
        assert "with at most 10% dead" not in row  # 30% or more are dead everywhere: a column of dashes is left out
        ev = {
            sae: statistics.fmean(metrics[sae]["explained_variance"] for metrics in seeds.values())
            for sae in seeds[0]
            if sae[0] == int(row["layer"])
        }
        assert row["highest EV"].split()[0] == "/".join(map(str, max(ev, key=lambda sae: ev[sae])[1:]))


def test_the_rank_correlation_of_the_two_rankings_is_recomputed(
    report: str, seeds: dict[int, dict[Sae, dict[str, float]]]
) -> None:
    means = {
        name: [statistics.fmean(metrics[sae][name] for metrics in seeds.values()) for sae in seeds[0]]
        for name in ("fvu", "explained_variance")
    }
    ranks = {name: [sorted(values).index(value) for value in values] for name, values in means.items()}
    n = len(seeds[0])
    differences = [a - (n - 1 - b) for a, b in zip(ranks["explained_variance"], ranks["fvu"], strict=True)]
    correlation = 1 - 6 * sum(d * d for d in differences) / (n * (n * n - 1))
    assert f"(Spearman, high EV against low fvu) of {correlation:.3f};" in section(report, "2.2")


def test_the_comparison_with_pca_is_recomputed(report: str, seeds: dict[int, dict[Sae, dict[str, float]]]) -> None:
    text = section(report, "2.4")
    for row in tables(text)[0]:
        k = int(row["k"])
        better = sum(
            own["fvu"] < 1 / (1 + 0.1 * k + 0.01 * sae[0])
            for metrics in seeds.values()
            for sae, own in metrics.items()
            if sae[3] == k
        )
        expected = f"{better} of 36 ({better / 36:.1%})"
        # A column that is the same in every row is a sentence.
        assert row.get("SAEs better than PCA") == expected or f"SAEs better than PCA {expected}" in text
    assert "scores an explained_variance of 0.9000 to 0.9710" in text


def test_the_shares_of_variance_are_those_of_the_summary_and_add_up(report: str, tmp_path: Path) -> None:
    summary = json.loads((tmp_path / "out" / "analysis_summary.json").read_text())
    for metric, found in zip(("fvu", "feature_death_rate"), tables(section(report, "A.6")), strict=False):
        terms = summary["by_error"]["variance"][metric]["terms"]
        assert [row["term"] for row in found] == [term["term"] for term in terms]
        assert [row["share of variance"] for row in found] == [f"{term['share']:.1%}" for term in terms]
        assert math.isclose(sum(term["share"] for term in terms), 1)
    assert summary["by_error"]["variance"]["fvu"]["has_error_term"]
    assert "The error term is the variation between seeds within a configuration" in report


def test_with_several_seeds_the_summary_counts_the_saes_of_all(report: str, tmp_path: Path) -> None:
    summary = json.loads((tmp_path / "out" / "analysis_summary.json").read_text())
    assert summary["total_saes"] == 72
    assert summary["seeds"] == list(SEEDS)
    assert summary["best_configs"]["highest_ev"]["seed"] in SEEDS
    assert summary["config"]["results"] == ["seed0", "seed1", "seed2"]


def test_with_one_seed_no_difference_is_judged_and_there_is_no_error_term(tmp_path: Path, call: Call) -> None:
    write_seed(tmp_path, 0, AXES)
    assert call(main, "--results", tmp_path)[0] == 0
    text = (tmp_path / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS
    assert "±" not in text
    assert "differ from the lowest by more than chance" not in text
    assert "With one seed no difference can be judged against chance" in section(text, "3.1")
    assert "there is no error term, hence no F and no p" in section(text, "3.3")
    assert "**One seed**" in text


def test_the_originals_files_make_a_whole_report_that_says_what_it_cannot_say(tmp_path: Path, call: Call) -> None:
    metrics = {sae: {"explained_variance": 0.5 + 0.01 * n} for n, sae in enumerate(product(*AXES))}
    write_grid(tmp_path, metrics)
    code, output, _ = call(main, "--results", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert code == 0
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS
    assert "These files hold no fvu: every 'best' below falls back to explained_variance" in text
    assert "These results hold no baselines" in section(text, "2.4")
    assert "The files hold no fvu" in output
    # The last SAE of the last layer has the highest explained variance of all.
    # The same of every layer, so a sentence and no column.
    assert "The same in every row: lowest: position/latent_dim/k 1/128/8" in section(text, "A.3")


def test_a_grid_of_which_every_sae_has_collapsed_recommends_none(tmp_path: Path, call: Call) -> None:
    write_grid(tmp_path, {sae: {"fvu": 0.5, "num_active_features": sae[3]} for sae in product(*AXES)}, seed=0)
    write_baselines(tmp_path, product(LAYERS, POSITIONS), LATENT_DIMS, K_VALUES)
    code, output, _ = call(main, "--results", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert code == 0
    assert "No configuration can be recommended" in text
    assert "Every configuration has collapsed" in section(text, "2.5")
    assert "24 SAEs have collapsed" in output


def test_the_plan_of_the_run_names_the_model_and_the_data_set(tmp_path: Path, call: Call) -> None:
    write_seed(tmp_path / "results", 0, AXES)
    about = {
        "model": "/home/someone/models/Tiny.gguf",
        "dataset": "openai/gsm8k",
        "dataset_split": "train",
        "thought_projection": False,
    }
    (tmp_path / "results" / "grid_plan.json").write_text(json.dumps(about))
    assert call(main, "--results", tmp_path / "results")[0] == 0
    text = (tmp_path / "results" / "report.md").read_text()
    assert "**One model, one data set**: Tiny.gguf on " in text
    assert "openai/gsm8k (train)" in text
    assert "**Untrained thoughts**" in text
    assert "someone" not in text


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("openai/gsm8k", "openai/gsm8k"),
        ("gsm8k/train.jsonl", "gsm8k/train.jsonl"),
        ("/data/model", "model"),
        (None, None),
    ],
)
def test_a_name_is_kept_as_typed_and_an_absolute_path_cut_to_its_last_name(value: str | None, name: str | None) -> None:
    assert without_path(value) == name


def test_an_incomplete_grid_says_what_is_missing_in_the_report(tmp_path: Path, call: Call) -> None:
    write_seed(tmp_path, 0, AXES)
    (tmp_path / "grid_metrics_pos0_layer3_latent64.json").unlink()
    assert call(main, "--results", tmp_path)[0] == 2
    assert call(main, "--results", tmp_path, "--allow-partial")[0] == 0
    text = (tmp_path / "report.md").read_text()
    assert "22 of 24" in text
    assert "Missing: layer 3 position 0 (d64_k4, d64_k8)" in text
    assert "Without the layers of which SAEs are missing: 3" in section(text, "A.6")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "published ("),
        ({"centre": True, "start": "components", "lr_decay": True}, "improved ("),
        (
            {"centre": True, "start": "components", "lr_decay": True, "variant": "topk", "epochs": 10},
            "but variant topk; 10",
        ),
    ],
)
def test_the_recipe_is_named_with_what_differs_from_it(
    settings: dict[str, object], said: str, tmp_path: Path, call: Call
) -> None:
    write_grid(tmp_path, {(0, 0, 64, 4): {"fvu": 0.5}}, **settings)
    assert call(main, "--results", tmp_path)[0] == 0
    (line,) = (line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("- **Recipe**"))
    assert said in line
