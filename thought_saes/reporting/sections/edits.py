"""What single features do to the answer, from edits.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thought_saes.analysis.findings import Findings
from thought_saes.common.schema import read_checked
from thought_saes.common.text import count, number, of, percent, table
from thought_saes.downstream.edit_findings import (
    EDITS_FILE,
    EFFECT,
    CellSwap,
    cell_swaps,
    clearest,
    numbers_of_features,
    that_matter,
)
from thought_saes.downstream.edit_formats import CEILING, EditsContent
from thought_saes.features.findings import place_in_words

SHOWN = 10  # features taken out that the table names
CONTROLS = (
    (("coactive", None), "other features as long"),
    (("random", None), "random, as long as one"),
    (("random_long", None), "random, as long as the means"),
    (("untrained", None), "untrained SAE"),
)


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section, or None where no folder holds the file. Raises DamagedFile."""
    path = next((folder / EDITS_FILE for folder in folders if (folder / EDITS_FILE).exists()), None)
    return None if path is None else phrase(read_checked(path, EditsContent, "measure it anew"))


def phrase(content: dict[str, Any]) -> str:
    """The section's Markdown: the finding, the swap by position with controls and ceilings, then features taken out."""
    swaps = cell_swaps(content["swaps"])
    blocks = [finding(content)]
    for layer, latent_dim, k in sorted({(swap.layer, swap.latent_dim, swap.k) for swap in swaps}):
        some = [swap for swap in swaps if (swap.layer, swap.latent_dim, swap.k) == (layer, latent_dim, k)]
        blocks += [
            f"*Swap at layer {layer}, latent_dim {latent_dim}, k {k}:* the share of answers that are what the other "
            "value leads to. Of a cell's steps the one is shown whose difference of class means swaps most.",
            by_position(some),
            "What the answers become, and the mean probability of both numbers before the number is said:",
            outcomes(some),
        ]
    if swaps:
        blocks.append(
            "*Mean* keeps what answers stay when the mean of the training rows takes the whole state's place: where "
            "nearly all stay, nothing that is done at the cell can be seen. *Whole*: the state of a training question "
            "with the other value. Brackets hold intervals of 95 % over questions."
        )
    if content["ablations"]:
        blocks += [ablation_finding(content["ablations"]), ablation_table(content["ablations"])]
    return "\n\n".join(blocks)


def finding(content: dict[str, Any]) -> str:
    """The first sentences."""
    swaps = cell_swaps(content["swaps"])
    clear = clearest(swaps)
    if clear is None:
        return "No value was swapped: the questions do not say by which operations their answers come about."
    f1 = clear.records["sae", None]["f1"]
    told = "" if f1 is None else f"; these tell the value with a mean F1 of {f1:.2f}"
    several = [n for n in numbers_of_features(swaps) if n != clear.latent_dim and ("several", n) in clear.records]
    beside = [
        (n, condition, name)
        for n in several[-1:]
        for condition, name in (("untrained", "of the SAE before training"), ("pca", "principal axes"))
        if (condition, n) in clear.records
    ]
    return (
        f"Where the value after step {clear.step} is swapped for another at "
        f"{place_in_words(clear.layer, clear.position)}, one feature for one makes {share(clear, 'sae')} of "
        f"{count(clear.n_questions, 'answer')} what follows from the other value"
        + "".join(f", {n} features {share(clear, 'several', n)}" for n in several)
        + "".join(f", {n} {name} {share(clear, condition, n)}" for n, condition, name in beside)
        + f", the difference of class means {share(clear, CEILING)}, a random direction as long as that "
        f"{share(clear, 'random_long')}. The features are of latent_dim {clear.latent_dim}, k {clear.k}{told}; one "
        f"made as long as the difference of means makes {share(clear, 'sae_long')} follow."
    )


def share(swap: CellSwap, condition: str, n_features: int | None = None, name: str = "counterfactual") -> str:
    """`81.0% [77.5%, 84.2%]`, or a dash."""
    record = swap.records.get((condition, n_features))
    if record is None or record[name] is None:
        return "-"
    low, high = record[f"{name}_interval"]
    return f"{percent(record[name])} [{percent(low)}, {percent(high)}]"


def by_position(swaps: Sequence[CellSwap]) -> str:
    """A row a condition, a column a position."""
    rows = [
        ["step, questions", *(f"{swap.step}, {swap.n_questions}" for swap in swaps)],
        ["one feature", *(share(swap, "sae") for swap in swaps)],
        ["one feature, as long as the means", *(share(swap, "sae_long") for swap in swaps)],
    ]
    for n in numbers_of_features(swaps):
        name = "all features" if n == swaps[0].latent_dim else f"{n} features"
        rows.append([name, *(share(swap, "several", n) for swap in swaps)])
        if any(("pca", n) in swap.records for swap in swaps):
            rows.append([f"{n} principal axes", *(share(swap, "pca", n) for swap in swaps)])
        if any(("untrained", n) in swap.records for swap in swaps):
            rows.append([f"{n} features, untrained", *(share(swap, "untrained", n) for swap in swaps)])
    rows += [[name, *(share(swap, *key) for swap in swaps)] for key, name in CONTROLS]
    rows += [
        ["difference of class means", *(share(swap, CEILING) for swap in swaps)],
        ["whole", *(share(swap, "whole") for swap in swaps)],
        ["mean: answers that stay", *(share(swap, "mean", name="original") for swap in swaps)],
    ]
    return table(["what is done", *(f"position {swap.position}" for swap in swaps)], rows)


def outcomes(swaps: Sequence[CellSwap]) -> str:
    """The answers' shares and both probabilities of one feature, of the most that are not all, and of the ceiling."""
    some = [n for n in numbers_of_features(swaps) if n != swaps[0].latent_dim]
    shown: list[tuple[str, int | None, str]] = [("sae", None, "one feature")]
    shown += [("several", n, f"{n} features") for n in some[-1:]] + [(CEILING, None, "class means")]
    rows = []
    for swap in swaps:
        for condition, n, name in shown:
            shares = [share(swap, condition, n, one) for one in ("counterfactual", "original", "other")]
            record = swap.records.get((condition, n), {})
            chances = [number(record.get(one), ".3f") for one in ("p_counterfactual", "p_original")]
            rows.append([f"{swap.position}", name, *shares, *chances])
    headers = ["position", "what is done", "counterfactual", "original", "other", "P(counterfactual)", "P(original)"]
    return table(headers, rows, words=2)


def ablation_finding(ablations: Sequence[dict[str, Any]]) -> str:
    """How many features matter when they are taken out."""
    fired = [one for one in ablations if one["n_questions"] and one["kl"] is not None]
    turned = [one for one in fired if one["q_value"] is not None and one["q_value"] < EFFECT]
    return (
        f"*Taken out* where they fire, the SAE's error kept: {of(len(that_matter(fired)), len(fired))} features shift "
        "the answer more than a random direction as long does (the interval of the difference in KL is above 0), "
        f"{of(len(turned), len(fired))} make right answers wrong more often than wrong ones right (q < {EFFECT:g}, "
        "exact McNemar, Benjamini and Hochberg). The largest, each on the questions on which it fires:"
    )


def ablation_table(ablations: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in sorted((a for a in ablations if a["kl"] is not None), key=lambda a: -a["kl"])[:SHOWN]:
        low, high = one["agreement_interval"]
        rows.append(
            [
                f"{one['half']} at layer {one['layer']}, position {one['position']}",
                one["concept"] or "(among the busiest)",
                number(one["f1"], ".2f"),
                f"{one['n_questions']:,}",
                f"{percent(one['agreement'])} [{percent(low)}, {percent(high)}]",
                number(one["kl"], ".3g"),
                number(one["random_kl"], ".2g"),
                percent(one["mean_agreement"]),
            ]
        )
    headers = ["feature", "tells", "F1", "questions", "answers that stay", "KL", "KL, random", "stay with the mean"]
    return table(headers, rows, words=2)
