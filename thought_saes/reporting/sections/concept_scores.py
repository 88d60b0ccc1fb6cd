"""What single features tell of known concepts, from concept_scores.json."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thought_saes.analysis.findings import Findings
from thought_saes.common.text import number, of, percent, table
from thought_saes.features.findings import coverage_in_words
from thought_saes.features.summary import Relation, coverage_table, read_scores, relation

NAMES = {"raw": "raw", "pca": "PCA", "untrained": "untrained", "shuffled": "shuffled", "probe": "probe"}


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section's Markdown, the finding first."""
    scores = read_scores(folders)
    if scores is None:
        return None
    saes = coverage_table(scores)
    about = scores["metadata"]
    definition = (
        f"A feature with a sign is held against {about['concepts']} concepts ({', '.join(about['families'])}), each on "
        f"20 training questions or more; {about['concepts_left_out']:,} rarer ones are left out. For each concept the "
        "feature and threshold of highest F1 on the training questions are scored on the "
        f"{about['n_validation']:,} validation questions; coverage is the mean of these F1. Intervals hold the middle "
        "95 % of 1,000 resamples of the questions."
    )
    blocks = [coverage_in_words(scores), _beside_baselines(saes), _by_configuration(saes), _goes_with(saes)]
    blocks += [_by_position(saes, about["page"]), definition]
    return "\n\n".join(block for block in blocks if block)


def _beside_baselines(saes: pd.DataFrame) -> str:
    raw, untrained = ((saes[f"over_{name}_low"] > 0).sum() for name in ("raw", "untrained"))
    return (
        f"The coverage is above that of raw dimensions, the interval of the difference above 0, for "
        f"{of(raw, len(saes))} SAEs, and above that of untrained SAEs for {of(untrained, len(saes))}."
    )


def _by_configuration(saes: pd.DataFrame) -> str:
    rows = []
    for (latent_dim, k), group in saes.groupby(["latent_dim", "k"]):
        rows.append(
            [
                f"{latent_dim}",
                f"{k}",
                number(group["coverage"].mean(), ".3f"),
                *(number(group[name].mean(), ".3f") for name in NAMES),
                percent(group["monosemantic_share"].mean()),
                number(group["splitting"].mean(), ".2f"),
            ]
        )
    headers = ["latent_dim", "k", "coverage", *NAMES.values(), "monosemantic", "halves a concept"]
    return (
        table(headers, rows, words=0)
        + "\n\nMeans over cells. Monosemantic: halves that fire for one concept in 95 % of their rows, of those "
        "that fire on 20 training rows or more. Halves a concept: those with F1 above 0.5."
    )


def _goes_with(saes: pd.DataFrame) -> str:
    """Whether fvu, k and latent_dim foretell coverage; empty for one configuration."""
    if not saes[["latent_dim", "k"]].drop_duplicates().shape[0] > 1:
        return ""

    def in_words(name: str, found: Relation) -> str:
        return (
            f"with {name} {number(found.overall, '+.2f')} over all SAEs and {number(found.within_cells, '+.2f')} "
            f"within a cell (above 0 in {of(found.positive, found.cells)})"
        )

    told = [
        in_words(name, relation(saes, name))
        for name in ("fvu", "k", "latent_dim")
        if saes[name].notna().any() and saes[name].nunique() > 1
    ]
    return f"Spearman's rank correlation of coverage {'; '.join(told)}." if told else ""


def _by_position(saes: pd.DataFrame, page: dict[str, int]) -> str:
    shown = saes[(saes["latent_dim"] == page["latent_dim"]) & (saes["k"] == page["k"])]
    rows = [
        [
            f"{sae.layer}",
            f"{sae.position}",
            sae.best_family,
            f"{sae.coverage:.3f} ({sae.low:.3f} to {sae.high:.3f})",
            *(f"{getattr(sae, name):.3f}" for name in NAMES),
        ]
        for sae in shown.itertuples()
    ]
    headers = ["layer", "position", "best found", "coverage", *NAMES.values()]
    return (
        f"At latent_dim {page['latent_dim']}, k {page['k']}, with the family of concepts furthest above shuffled ones:"
        f"\n\n{table(headers, rows, words=3)}"
    )
