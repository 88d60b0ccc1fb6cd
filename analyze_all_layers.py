"""What a grid of SAEs shows: tables on the terminal, analysis_summary.json with the same numbers, and report.md.

    python analyze_all_layers.py --results results/ --k 20 --latent-dim 1024
    python analyze_all_layers.py --results results/seed0 results/seed1 results/seed2

Several folders are the same grid from several seeds. Nothing is trained or drawn here: train_all_layers_positions.py
writes the metrics, visualize_all_layers.py the figures that the report shows.
"""

from dataclasses import dataclass
from pathlib import Path

from thought_saes.activations.cell import Cell
from thought_saes.analysis.findings import chosen_focus, conclude
from thought_saes.analysis.grid import choose_slice
from thought_saes.analysis.runs import load_replicates, recorded
from thought_saes.analysis.study import make_study
from thought_saes.analysis.summary import analyse
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import write_bytes, write_json
from thought_saes.common.flags import check_at_least, option, parse_config
from thought_saes.reporting.origin import read_origin
from thought_saes.reporting.report import CSV, write_report
from thought_saes.reporting.terminal import describe
from thought_saes.results.names import SLICE_K, SLICE_LATENT_DIM

SUMMARY, REPORT = "analysis_summary.json", "report.md"
PUBLISHED_FOCUS = Cell(layer=14, position=3)  # the published report asks whether it is the best, or a first guess


@dataclass(frozen=True)
class AnalysisConfig:
    """The flags of this script."""

    results: tuple[Path, ...] = option(
        (Path("results"),), help="folders with the metrics files of one grid, each from another seed"
    )
    output: Path | None = option(None, help="folder for the summary and the report; if not given, the first of them")
    k: int = option(SLICE_K, help="k of the slice for layer and position effects")
    latent_dim: int = option(SLICE_LATENT_DIM, help="latent_dim of the slice")
    focus_layer: int | None = option(None, help="layer of the cell that the report answers for; if not given, 14")
    focus_position: int | None = option(None, help="its position; if not given, 3")
    allow_partial: bool = option(False, help="analyse what is there of an incomplete grid")
    dry_run: bool = option(False, help="say what would be read and written, and stop")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "k", "latent_dim")


def main() -> int:
    config = parse_config(AnalysisConfig, __doc__ or "")
    grid = load_replicates(config.results, config.allow_partial)
    record = recorded(config)
    origin = read_origin(config.results, record["results"])
    study = make_study(grid, choose_slice(grid, config.k, config.latent_dim))
    focus = chosen_focus(study, config.focus_layer, config.focus_position, PUBLISHED_FOCUS)
    findings = conclude(study, focus)
    summary = analyse(findings, config.k, config.latent_dim)
    versions = package_versions("numpy", "pandas", "statsmodels")
    report = write_report(findings, origin, [SUMMARY, REPORT, CSV], versions)
    output = config.output or config.results[0]
    names = ", ".join(str(output / name) for name in (SUMMARY, REPORT, CSV))
    if config.dry_run:
        print(f"{grid.describe_files(config.results)}\nwould be written: {names}")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / SUMMARY, summary | {"config": record, "versions": versions})
    write_bytes(output / REPORT, report.encode())
    write_bytes(output / CSV, study.configs.to_csv(index=False, float_format="%.4g").encode())
    print(f"{describe(summary, grid)}\n\nwritten: {names}")
    return 0


if __name__ == "__main__":
    run(main)
