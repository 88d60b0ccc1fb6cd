"""Whether features foretell wrong answers, and whether good reconstruction helps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.analysis.findings import Findings
from thought_saes.common.schema import read_checked
from thought_saes.common.text import count, number, table
from thought_saes.downstream.formats import ErrorPredictionContent

FILE = "error_prediction.json"
OVER = (
    ("overall", "over all configurations"),
    ("within_cell", "within a cell"),
    ("between_cells", "between cells, at one configuration"),
    ("within_k", "at one k"),
)


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section, or None where no folder holds the file. Raises DamagedFile."""
    path = next((folder / FILE for folder in folders if (folder / FILE).exists()), None)
    return None if path is None else phrase(read_checked(path, ErrorPredictionContent, "measure it anew"))


def phrase(content: dict[str, Any]) -> str:
    """The section's Markdown: the answer to the published question, then the areas, then the correlations."""
    answer, records = content["published_question"], content["records"]
    overall = answer["fvu_overall"]
    low, high = overall["interval"] or (0, 0)
    verdict = "Yes" if high < 0 else "The opposite" if low > 0 else "Not shown"
    best = content["best_chosen_on_one_half"]
    on_other, where_chosen, of_median = (
        number(best[name], ".3f") for name in ("auroc", "auroc_where_chosen", "auroc_of_the_median")
    )
    lines = [
        f"Do configurations that reconstruct better foretell errors better? **{verdict}**: over "
        f"{count(answer['n_configurations'], 'SAE')} the rank correlation of fvu with AUROC is "
        f"{correlation(overall)}; the AUROCs' own reliability allows at most {answer['ceiling']:.2f}.",
        f"{content['n_wrong']:,} of {count(content['n_questions'], 'answer')} are wrong. The model's own sureness "
        f"(entropy, margin, log-probability) with the question's length has an AUROC of {area(content['baselines'])}; "
        f"the number of worked steps, an oracle, {area(content['oracle_steps'])}. The best SAE, chosen on one half of "
        f"the questions, has {on_other} on the other half ({where_chosen} where it was chosen; the median SAE "
        f"{of_median}).",
    ]
    kinds = sorted({(r["features"], r["k"] or 0) for r in records})
    rows = []
    for kind, k in kinds:
        some = [r for r in records if r["features"] == kind and (r["k"] or 0) == k]
        middle = sorted(some, key=lambda r: r["auroc"])[len(some) // 2]
        added = [r["delta_auroc"] for r in some]
        clear = sum(r["delta_auroc_interval"] is not None and r["delta_auroc_interval"][0] > 0 for r in some)
        name = kind if not k else f"{kind}, k {k}"
        rows.append([name, area(middle), f"{np.median(added):+.3f}", f"{clear} of {len(some)}"])
    lines.append("The middle one of the cells; what it adds to the baselines, and in how many cells clearly so:")
    lines.append(table(["features", "AUROC", "added to baselines", "interval above 0"], rows))
    rows = [
        [name, *(correlation(answer[f"{quality}_{over}"]) for quality in ("fvu", "explained_variance"))]
        for over, name in OVER
    ]
    lines.append(table(["rank correlation with AUROC", "fvu", "explained variance"], rows))
    return "\n\n".join(lines)


def area(record: dict[str, Any]) -> str:
    return f"{record['auroc']:.3f}{ends(record['auroc_interval'], '.3f')}"


def correlation(found: dict[str, Any]) -> str:
    return number(found["spearman"], "+.2f") + ends(found["interval"], "+.2f")


def ends(interval: list[float] | None, form: str) -> str:
    return f" [{number(interval[0], form)}, {number(interval[1], form)}]" if interval else ""
