"""Whether features foretell wrong answers, and whether good reconstruction helps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.analysis.findings import Findings
from thought_saes.common.files import read_json
from thought_saes.common.text import count, table

FILE = "error_prediction.json"
OVER = (
    ("overall", "over all configurations"),
    ("within_cell", "within a cell"),
    ("between_cells", "between cells, at one configuration"),
    ("within_k", "at one k"),
)


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section, or None where no folder holds the file."""
    found = [read_json(folder / FILE) for folder in folders if (folder / FILE).exists()]
    return phrase(found[0]) if found else None


def phrase(content: dict[str, Any]) -> str:
    """The section's Markdown: the answer to the published question, then the areas, then the correlations."""
    answer, records = content["published_question"], content["records"]
    overall = answer["fvu_overall"]
    low, high = overall["interval"] or (float("nan"), float("nan"))
    verdict = "Yes" if high < 0 else "The opposite" if low > 0 else "Not shown"
    best = content["best_chosen_on_one_half"]
    lines = [
        f"Do configurations that reconstruct better foretell errors better? **{verdict}**: over "
        f"{count(answer['n_configurations'], 'SAE')} the rank correlation of fvu with AUROC is "
        f"{overall['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]; the AUROCs' own reliability allows at most "
        f"{answer['ceiling']:.2f}.",
        f"{content['n_wrong']:,} of {count(content['n_questions'], 'answer')} are wrong. The model's own sureness "
        f"(entropy, margin, log-probability) with the question's length has an AUROC of {area(content['baselines'])}; "
        f"the number of worked steps, an oracle, {area(content['oracle_steps'])}. The best SAE, chosen on one half of "
        f"the questions, has {best['auroc']:.3f} on the other half ({best['auroc_where_chosen']:.3f} where it was "
        f"chosen; the median SAE {best['auroc_of_the_median']:.3f}).",
    ]
    kinds = sorted({(r["features"], r["k"] or 0) for r in records})
    rows = []
    for kind, k in kinds:
        some = [r for r in records if r["features"] == kind and (r["k"] or 0) == k]
        middle = sorted(some, key=lambda r: r["auroc"])[len(some) // 2]
        added = [r["delta_auroc"] for r in some]
        clear = sum(r["delta_auroc_interval"][0] > 0 for r in some)
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
    low, high = record["auroc_interval"]
    return f"{record['auroc']:.3f} [{low:.3f}, {high:.3f}]"


def correlation(found: dict[str, Any]) -> str:
    if found["interval"] is None:
        return "-"
    low, high = found["interval"]
    return f"{found['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]"
