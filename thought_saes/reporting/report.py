"""The report of a run as Markdown, every number computed, in the section numbers of the published report.

The text is `report.md.jinja`; the Findings decide what it says, `phrases.py` words what depends on several of them, and
`tables.py` and `appendix.py` set the tables.
"""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from thought_saes.analysis.findings import Findings
from thought_saes.analysis.grid import describe_missing
from thought_saes.analysis.study import DEATH, ERROR, EV, better_than_pca, has, rank_correlation
from thought_saes.analysis.told_apart import ALPHA
from thought_saes.analysis.variance import ERROR as SEEDS
from thought_saes.common.text import TIMES, compact, count, number, of, percent
from thought_saes.reporting import appendix, phrases, tables
from thought_saes.reporting.limits import limits
from thought_saes.reporting.origin import Origin, hardware, recipe, setting
from thought_saes.reporting.sections import EVALUATIONS, there, told

if TYPE_CHECKING:
    from jinja2 import Environment

CSV = "configurations.csv"
GALLERY = {
    "Explained variance at every k": ("layer_position_all_k_ev.png", ()),
    "Feature death at every k": ("layer_position_all_k_death.png", ()),
    "Fraction of variance unexplained": ("layer_position_fvu.png", ("fvu",)),
    "Effective rank and the explained variance of the mean": ("layer_position_ease.png", ("effective_rank",)),
    "fvu against k": ("fvu_against_k.png", ("fvu",)),
    "Training against validation rows": ("train_validation_gap.png", ("fvu", "fvu_train")),
    "Dead features against gamma": ("death_against_gamma.png", ("gamma",)),
    "Shares of variance": ("variance_shares.png", ()),
}


def environment() -> "Environment":
    """Strict: a name that the template has and nobody gives is an error, not an empty text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # --help and refusals do without

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(  # Markdown, not HTML
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def lead_and_rest(text: str) -> tuple[str, str]:
    """A section's first paragraph, which holds its finding, and everything after it, for the appendix."""
    lead, _, rest = text.partition("\n\n")
    return lead, rest


def first_sentence(lead: str) -> str:
    """What the summary tells of a section: its first statement, with the question that it answers."""
    return re.split(r"(?<=\.) (?=[A-Z])", lead, maxsplit=1)[0]


def write_report(findings: Findings, origin: Origin, written: Sequence[str], versions: dict[str, str]) -> str:
    """The whole report. `written` names the files that the analysis writes."""
    study = findings.study
    grid, saes, configs = study.grid, study.saes, study.configs
    largest, its_variance = next(
        ((at, found) for at in reversed(findings.at) if (found := study.variance_by_k[at.k])), (None, None)
    )
    floors = saes.drop_duplicates(["layer", "position"]).get("mean_explained_variance")
    text = (
        environment()
        .get_template("report.md.jinja")
        .render(
            f=findings,
            study=study,
            grid=grid,
            origin=origin,
            date=date.today().isoformat(),
            setting=lambda name, form="": setting(grid.metadata, name, form),
            recipe=recipe(grid.metadata),
            hardware=hardware(origin, grid.metadata),
            n_saes=len(saes),
            n_full=len(grid.table) + len(grid.missing),
            n_bad=int((saes[ERROR] >= 1).sum()),
            pca=better_than_pca(saes),
            missing=describe_missing(grid.missing),
            flat="; ".join(str(cell) for cell in study.flat_cells),
            largest_k=largest,
            largest_k_share=lambda term: its_variance.share(term) if its_variance else None,
            best_overall=phrases.best_overall(findings),
            strategy=phrases.strategy(findings),
            focus_answer=phrases.focus_answer(findings),
            cost=phrases.cost(study, origin),
            thresholds=phrases.thresholds(findings),
            ev_best=phrases.ev_best(study),
            ev_agreement=rank_correlation(configs[EV], -configs[ERROR]),
            floor_agreement=rank_correlation(configs[EV], configs["mean_explained_variance"])
            if has(configs, "mean_explained_variance")
            else None,
            eases=lambda name: phrases.eases(findings, name),
            floors=None if floors is None or floors.dropna().empty else floors.dropna(),
            controlled=any(at.control for at in findings.at),
            control_finding=phrases.control(findings),
            front=phrases.front(study),
            features_finding=phrases.features(findings),
            axis_finding=lambda axis: phrases.axis(findings, axis),
            interactions=phrases.interactions(findings),
            lessons=phrases.lessons(findings),
            limits=limits(findings, origin),
            first_sentence=first_sentence,
            told=[(evaluation, *lead_and_rest(text)) for evaluation, text in told(study.folders, findings)],
            not_run=[evaluation for evaluation in EVALUATIONS if not there(evaluation, study.folders)],
            gallery=[(title, name) for title, (name, needs) in GALLERY.items() if has(saes, *needs)],
            folders=", ".join(f"`{name}`" for name in origin.folders),
            written=written,
            made_with=", ".join(f"{name} {version}" for name, version in versions.items()),
            listed=lambda values: ", ".join(map(str, values)),
            tables=tables,
            appendix=appendix,
            of=of,
            count=count,
            number=number,
            percent=percent,
            compact=compact,
            TIMES=TIMES,
            ALPHA=ALPHA,
            SEEDS=SEEDS,
            DEATH=DEATH,
            EV=EV,
            CSV=CSV,
        )
    )
    return phrases.tidy(text)
