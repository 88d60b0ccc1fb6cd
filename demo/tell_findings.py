"""Say in three sentences what the demo found, where its figures are, which feature tells a concept best, and what a
swap of features does to the answer.

    python demo/tell_findings.py [--results demo/run/results]

Reads `measurements.json` of the demo model, `analysis_summary.json` of the grid, the tables of its features and
`edits.json`; computes nothing of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from thought_saes.analysis.formats import AnalysisSummary
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.flags import option, parse_config
from thought_saes.common.schema import Record, Share, read_checked, read_record
from thought_saes.common.text import count
from thought_saes.downstream.edit_findings import EDITS_FILE
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.features import load_features
from thought_saes.features.findings import best_finding
from thought_saes.features.formats import ConceptScores
from thought_saes.features.summary import SCORES_FILE
from thought_saes.figures.heatmaps import cell_text
from thought_saes.reporting.sections.edits import finding as swap_finding


@dataclass(frozen=True)
class FindingsConfig:
    model: Path = option(Path("demo/model"), help="folder of the demo model")
    results: Path = option(Path("demo/run/results"), help="folder that the grid, its analysis and figures are in")


class Solved(Record):
    """Shares of problems solved, with what thoughts."""

    own: Share
    mean: Share
    swapped: Share


class Accuracy(Record):
    """The part of the model's measurements that is told here."""

    by_steps: Annotated[dict[str, Solved], Meta(min_length=1)]


class Measurements(Record):
    """What demo/measure_demo_model.py measured."""

    accuracy: Accuracy


def thoughts_matter(measured: Measurements) -> str:
    steps, solved = list(measured.accuracy.by_steps.items())[-1]
    return (
        f"The model thinks in its thoughts: of the problems of {steps} steps it solves {solved.own:.0%}, with mean "
        f"thoughts {solved.mean:.0%}, with another problem's {solved.swapped:.0%}."
    )


def where_it_is_easy(summary: AnalysisSummary) -> str:
    bests = (layer.best for layer in summary.by_error.layers)
    by_fvu = {best.fvu: best for best in bests if best and best.fvu is not None}
    if not by_fvu:
        return "No SAE is better than predicting the mean."
    lowest, highest = min(by_fvu), max(by_fvu)
    easiest, hardest = by_fvu[lowest], by_fvu[highest]
    return (
        f"The lowest fvu is {cell_text(lowest)}, at layer {easiest.layer}, position {easiest.position}, "
        f"latent_dim {easiest.latent_dim}, k {easiest.k}; the layer hardest to take apart is "
        f"{hardest.layer}, where the best is {cell_text(highest)}."
    )


def what_sparsity_buys(summary: AnalysisSummary) -> str:
    judged = summary.by_error
    beat_pca = "an unknown number" if judged.better_than_pca is None else f"{judged.better_than_pca:,}"
    agreement = judged.rank_correlation.high_ev_low_fvu
    return (
        f"{beat_pca} of {count(summary.total_saes, 'SAE')} have a lower fvu than PCA of the same rank k, and "
        f"{judged.collapsed:,} have collapsed onto fewer than 2k features; explained_variance agrees with fvu on "
        f"which are good with a rank correlation of {'unknown size' if agreement is None else f'{agreement:.2f}'}."
    )


def main() -> int:
    config = parse_config(FindingsConfig, __doc__ or "")
    sources = config.model / "measurements.json", config.results / "analysis_summary.json"
    for path in sources:
        if not path.exists():
            raise InputError(f"no file {path}: has the demo been run?")
    measured, summary = read_record(sources[0], Measurements), read_record(sources[1], AnalysisSummary)
    findings = thoughts_matter(measured), where_it_is_easy(summary), what_sparsity_buys(summary)
    for number, finding in enumerate(findings, start=1):
        print(f"{number}. {finding}")
    print(f"The report is {config.results / 'report.md'}; the figures are beside it:")
    for figure in sorted(config.results.glob("*.png")):
        print(f"   {figure}")
    if (features := config.results / "features").is_dir():
        print(best_finding(load_features(features).features, read_checked(config.results / SCORES_FILE, ConceptScores)))
        print(f"See it, and every other feature: open {features / 'index.html'} in a browser.")
    if (edits := config.results / EDITS_FILE).exists():
        print(swap_finding(read_checked(edits, EditsContent)))
    return 0


if __name__ == "__main__":
    run(main)
