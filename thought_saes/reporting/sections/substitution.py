"""Whether the model still answers as before when something else takes a thought's place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thought_saes.analysis.findings import Findings
from thought_saes.common.schema import read_checked
from thought_saes.common.text import count, percent, table
from thought_saes.downstream.formats import SubstitutionContent, nearly_always_wrong

FILE = "substitution.json"
ROWS = (
    ("sae", "SAE"),
    ("pca", "PCA of rank k"),
    ("untrained", "untrained SAE"),
    ("noise_isotropic", "noise, every direction alike"),
    ("noise_cell", "noise, the cell's covariance"),
)


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section, or None where no folder holds the file. Raises DamagedFile."""
    path = next((folder / FILE for folder in folders if (folder / FILE).exists()), None)
    return None if path is None else phrase(read_checked(path, SubstitutionContent, "measure it anew"))


def phrase(content: dict[str, Any]) -> str:
    """The section's Markdown: what was found, then a table for each regime and layer, then which thoughts matter."""
    records = content["records"]
    latent_dim = max(record["latent_dim"] or 0 for record in records)
    blocks, quality = [finding(records, latent_dim)], telling(records)
    for layer in sorted({record["layer"] for record in records if record["regime"] == "layer"}):
        chosen = [record for record in records if record["regime"] == "layer" and record["layer"] == layer]
        about = f"*Layer {layer}, every position replaced, {quality}:* {ends(chosen, quality)}"
        blocks += [about, by_k(chosen, latent_dim, quality)]
    cells = [record for record in records if record["regime"] == "cell"]
    if cells and quality == "accuracy":
        blocks += [
            "*Which thoughts matter:* the change in accuracy when one layer's state at one position becomes the mean "
            "of the training rows. In brackets where the interval of 95 % holds 0 or q > 0.05 (exact McNemar, "
            "Benjamini and Hochberg over cells).",
            by_cell(cells),
        ]
    return "\n\n".join(blocks)


def of(
    records: Sequence[dict[str, Any]], condition: str, latent_dim: int | None, k: int | None
) -> dict[str, Any] | None:
    return next(
        (r for r in records if (r["condition"], r["latent_dim"], r["k"]) == (condition, latent_dim, k)),
        None,
    )


def finding(records: Sequence[dict[str, Any]], latent_dim: int) -> str:
    """The first sentences: what the sparsest SAEs of the last layer keep, beside PCA."""
    whole = [record for record in records if record["regime"] == "layer"] or list(records)
    last = max(record["layer"] for record in whole)
    whole = [record for record in whole if record["layer"] == last]
    k = min((record["k"] for record in whole if record["condition"] == "sae"), default=None)
    own, sae, pca, mean = (
        of(whole, *key) for key in (("own", None, None), ("sae", latent_dim, k), ("pca", None, k), ("mean", None, None))
    )
    if not (own and sae and pca and mean):
        return "The unmodified model, its SAEs and their controls were not all measured."
    quality = telling(records)
    right = "right" if quality == "accuracy" else f"as they are ({share(own)} of these are right: accuracy says little)"
    started = of(whole, "untrained", latent_dim, k)
    before = f", the same SAE before training {share(started, quality)}" if started else ""
    replaced = f"every state of layer {last}" if own["regime"] == "layer" else f"one state of layer {last}"
    return (
        f"With {replaced} replaced, {k} features of {latent_dim} keep {share(sae, quality)} of "
        f"{count(own['n_questions'], 'answer')} {right}{before}, {k} principal components {share(pca, quality)}, the "
        f"mean of the training rows {share(mean, quality)}, the model's own thoughts {share(own, quality)}. Brackets "
        "hold intervals of 95 % over questions, the same resamples for every condition."
    )


def telling(records: Sequence[dict[str, Any]]) -> str:
    """Which quality to tell: accuracy, or agreement where the model is nearly always wrong."""
    return "agreement" if nearly_always_wrong(records) else "accuracy"


def share(record: dict[str, Any] | None, name: str = "accuracy") -> str:
    """`81.0% [77.5%, 84.2%]`."""
    if record is None or record[name] is None:
        return "-"
    low, high = record[f"{name}_interval"]
    return f"{percent(record[name])} [{percent(low)}, {percent(high)}]"


def ends(records: Sequence[dict[str, Any]], quality: str) -> str:
    named = (("own", "own thoughts"), ("mean", "mean"), ("other_question", "another question's"), ("zero", "zeros"))
    return ", ".join(f"{name} {share(of(records, condition, None, None), quality)}" for condition, name in named) + "."


def by_k(records: Sequence[dict[str, Any]], latent_dim: int, quality: str) -> str:
    """Accuracy or agreement of every condition by k, and the KL of the SAE."""
    k_values = sorted({record["k"] for record in records if record["k"]})
    rows = []
    for condition, name in ROWS:
        width = None if condition == "pca" else latent_dim
        rows.append([name, *(share(of(records, condition, width, k), quality) for k in k_values)])
        if condition in ("sae", "pca"):
            kls = (of(records, condition, width, k) for k in k_values)
            rows.append(
                [f"{name}: KL, nats", *("-" if r is None or r["kl"] is None else f"{r['kl']:.3g}" for r in kls)]
            )
    return table(["what takes their place", *(f"k {k}" for k in k_values)], rows)


def by_cell(records: Sequence[dict[str, Any]]) -> str:
    positions = sorted({record["position"] for record in records})
    rows = []
    for layer in sorted({record["layer"] for record in records}):
        line = [str(layer)]
        for position in positions:
            found = [r for r in records if (r["layer"], r["position"]) == (layer, position)]
            mean = of(found, "mean", None, None)
            if mean is None or mean["delta_accuracy"] is None:
                line.append("-")
                continue
            low, high = mean["delta_accuracy_interval"]
            text = f"{100 * mean['delta_accuracy']:+.1f}"
            line.append(text if mean["q_value"] <= 0.05 and not low <= 0 <= high else f"({text})")
        rows.append(line)
    return table(["layer, points", *(f"position {position}" for position in positions)], rows)
