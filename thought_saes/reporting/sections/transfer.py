"""What the SAEs keep of other data sets' thoughts, from transfer.json and every transfer_NAME.json."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thought_saes.analysis.findings import Findings
from thought_saes.common.schema import read_checked
from thought_saes.common.text import count, known, number, percent, table
from thought_saes.downstream.formats import TransferContent

FILES = "transfer*.json"


def tell(folders: Sequence[Path], findings: Findings) -> str | None:
    """The section, or None where no folder holds the file. Raises DamagedFile."""
    paths = sorted(path for folder in folders for path in folder.glob(FILES))
    contents = [read_checked(path, TransferContent, "evaluate_transfer.py writes it anew") for path in paths]
    if len(contents) == 1:
        return phrase(contents[0])
    names = [path.stem.removeprefix("transfer").removeprefix("_") or "-" for path in paths]
    return side_by_side(dict(zip(names, contents, strict=True))) if contents else None


def side_by_side(contents: dict[str, dict[str, Any]]) -> str:
    """Several data sets, or seeds, a row each: means over every SAE that was measured on it."""
    rows = []
    for name, content in contents.items():
        records, beside = content["records"], content["baselines"]
        k_values = sorted({str(record["k"]) for record in records}, key=int)
        rows.append(
            [
                name,
                f"{content['metadata']['n_validation']:,}",
                str(len(records)),
                mean(record["fvu_at_home"] for record in records),
                mean(record["fvu"] for record in records),
                mean(record["own"] and record["own"]["fvu"] for record in records),
                gap_in_words(whole_gap(content)),
                mean(one["pca_of_a"] and one["pca_of_a"][k]["fvu"] for one in beside for k in k_values),
                mean(one["pca_of_b"][k]["fvu"] for one in beside for k in k_values),
                mean(one["mean_of_a"] and one["mean_of_a"]["fvu"] for one in beside),
                percent(average(record["feature_death_rate"] for record in records)),
            ]
        )
    headers = ["data", "rows", "SAEs", "fvu at home", "fvu there", "its own", "gap", "PCA", "its own PCA"]
    clear, turned = (
        [name for name, content in contents.items() if side(content) == which] for which in ("above", "below")
    )
    said = f"SAEs that were trained on the data reconstruct it better in {len(clear)} of {len(rows)} comparisons"
    return "\n\n".join(
        [
            f"{said}, the interval of the gap above 0."
            + (f" These: {', '.join(clear)}." if clear else "")
            + (f" Below 0, they reconstruct it worse: {', '.join(turned)}." if turned else "")
            + unequal(contents.values()),
            table([*headers, "mean", "dead there"], rows, 1),
            "fvu on the other data set's validation rows, around their own mean; means over cells and configurations. "
            "At home: on the validation rows of the SAEs' own data set. *Its own*: the SAEs, and PCA of the same k, "
            "that were fitted on its training rows. Mean: that of the rows the SAEs were trained on. Brackets hold "
            "intervals of 95 %, cells resampled.",
        ]
    )


def whole_gap(content: dict[str, Any]) -> dict[str, Any] | None:
    """The gap over every SAE; None where no SAEs of that data set were measured beside them."""
    return next((gap for gap in content["gaps"] if gap["latent_dim"] is None and gap["k"] is None), None)


def side(content: dict[str, Any]) -> str | None:
    """`above` or `below`: where the interval of the gap over every SAE lies, if it does not hold 0."""
    whole = whole_gap(content)
    low, high = (whole and whole["gap_interval"]) or (0, 0)
    return "above" if low > 0 else "below" if high < 0 else None


def unequal(contents: Iterable[dict[str, Any]]) -> str:
    """A warning where the two sides were trained on different numbers of rows."""
    sizes = [(one["metadata"]["n_train_of_a"], one["metadata"]["n_train_of_b"]) for one in contents]
    other = sorted({theirs for ours, theirs in sizes if ours and theirs != ours})
    if not other:
        return ""
    return (
        f" Their training rows were {', '.join(f'{n:,}' for n in other)} against {sizes[0][0]:,}: part of a gap is "
        "that difference, not the data."
    )


def phrase(content: dict[str, Any]) -> str:
    """The section's Markdown: the gap, then a table by configuration."""
    records, about = content["records"], content["metadata"]
    beside = {(one["layer"], one["position"]): one for one in content["baselines"]}
    of_configuration = {(gap["latent_dim"], gap["k"]): gap for gap in content["gaps"]}
    rows = []
    for latent_dim, k in sorted({(record["latent_dim"], record["k"]) for record in records}):
        some = [record for record in records if (record["latent_dim"], record["k"]) == (latent_dim, k)]
        cells = [beside[record["layer"], record["position"]] for record in some]
        rows.append(
            [
                f"{latent_dim}",
                f"{k}",
                mean(record["fvu_at_home"] for record in some),
                mean(record["fvu"] for record in some),
                mean(record["own"] and record["own"]["fvu"] for record in some),
                gap_in_words(of_configuration.get((latent_dim, k))),
                mean(one["pca_of_a"] and one["pca_of_a"][str(k)]["fvu"] for one in cells),
                mean(one["pca_of_b"][str(k)]["fvu"] for one in cells),
                mean((record["l0_mean"] for record in some), ".1f"),
                percent(average(record["feature_death_rate"] for record in some)),
                percent(average(record["own"] and record["own"]["feature_death_rate"] for record in some)),
            ]
        )
    headers = [
        "latent_dim",
        "k",
        "fvu at home",
        "fvu",
        "its own",
        "gap",
        "PCA",
        "its own PCA",
        "L0",
        "dead there",
        "its own dead",
    ]
    means = mean(one["mean_of_a"] and one["mean_of_a"]["fvu"] for one in beside.values())
    notes = (
        "Means over cells, fvu on the other data set's validation rows, around their own mean. At home: on "
        "the validation rows of the SAEs' own data set. *Its own*: the SAEs and the PCA of rank k that were fitted on "
        "its training rows. Dead there: zero on every row of it. The mean of the "
        f"training rows that the SAEs saw has an fvu of {means}. Brackets hold intervals of 95 %, cells resampled."
    )
    return "\n\n".join([finding(of_configuration.get((None, None)), records, about), table(headers, rows, 0), notes])


def finding(whole: dict[str, Any] | None, records: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The first sentences: whether the SAEs carry over."""
    on = f"On {count(about['n_validation'], 'row')} of `{about['activations']}`"
    if whole is None:
        fvu = mean(record["fvu"] for record in records)
        return f"{on} the SAEs leave an fvu of {fvu}; SAEs of that data set were not measured beside them."
    low, high = whole["gap_interval"] or (None, None)
    if low is None or high is None:
        verdict = "one cell does not say how sure that is"
    elif low > 0:
        verdict = "SAEs that were trained on it reconstruct it better"
    elif high < 0:
        verdict = "they reconstruct it better than its own do"
    else:
        verdict = "the interval holds 0"
    return (
        f"{on} the SAEs leave an fvu of {number(whole['fvu'])}, its own SAEs {number(whole['fvu_own'])}: a gap of "
        f"{gap_in_words(whole)} over {count(whole['n_saes'], 'SAE')} of {count(whole['n_cells'], 'cell')}; {verdict}."
    )


def gap_in_words(gap: dict[str, Any] | None) -> str:
    """`+0.1234 [+0.1000, +0.1500]`."""
    if gap is None:
        return "-"
    interval = gap["gap_interval"]
    ends = f" [{number(interval[0], '+.4f')}, {number(interval[1], '+.4f')}]" if interval else ""
    return number(gap["gap"], "+.4f") + ends


def average(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None if none is."""
    there = [value for value in values if value is not None and known(value)]
    return float(np.mean(there)) if there else None


def mean(values: Iterable[float | None], form: str = ".4f") -> str:
    return number(average(values), form)
