"""Pages to look at features: index.html with the grid, and a page a cell; without a server, from the disk.

A page holds its texts once, and the rows and activations of its examples packed as 16-bit numbers. All that comes from
data is escaped: by Jinja2 in the page, and within its JSON; the scripts write text alone. A content security policy
lets nothing run but our script, and nothing load.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from thought_saes.activations.cell import Cell
from thought_saes.activations.formats import AnswerLine
from thought_saes.common.files import write_bytes
from thought_saes.features.beside import NOTHING, Beside, Effect
from thought_saes.features.findings import coverage_in_words, place_in_words
from thought_saes.features.interpret import page_name
from thought_saes.features.lenses import Lens
from thought_saes.results.names import SaeKey

PAGES = Path(__file__).parent / "pages"
LARGEST_PAGE = 5_000_000  # bytes
# Examples of each kind and characters of a text, the first pair that keeps a page below LARGEST_PAGE.
SIZES = ((20, 1000), (20, 500), (12, 400), (8, 300), (5, 200), (3, 120))
BEST_HALVES = 25
FULL = 65535


def write_explorer(
    output: Path,
    features: pd.DataFrame,
    scores: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    beside: Beside = NOTHING,
) -> Path:
    """Write a page for every cell, then the index; returns its path.

    `features` and `scores` are what the files hold; `examples` the questions, a row each. Pages of the SAEs of the
    latent_dim and k in the scores' metadata alone.
    """
    page = scores["metadata"]["page"]
    shown = features[(features["latent_dim"] == page["latent_dim"]) & (features["k"] == page["k"])]
    for (layer, position), halves in shown.groupby(["layer", "position"]):
        cell = Cell(int(layer), int(position))
        write_bytes(output / f"{page_name(cell)}.html", cell_page(cell, halves, scores, examples, beside))
    index = output / "index.html"
    write_bytes(index, index_page(shown, scores, beside))
    return index


def cell_page(
    cell: Cell,
    halves: pd.DataFrame,
    scores: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    beside: Beside = NOTHING,
) -> bytes:
    """The page of one cell, with as many and as long examples as keep it below LARGEST_PAGE."""
    alive = halves[halves["density"] > 0].sort_values(["f1", "density"], ascending=False, kind="stable")
    sae = next(sae for sae in _page_saes(scores) if (sae["layer"], sae["position"]) == tuple(cell))
    key = SaeKey(cell, sae["latent_dim"], sae["k"])
    effects = {half: effect for (of, half), effect in beside.effects.items() if of == key}
    where = place_in_words(*cell, scores["metadata"]["position_0"])
    for n_examples, n_characters in SIZES:
        data = pack(alive, examples, n_examples, n_characters, effects, beside.answers)
        data["facts"] = _facts(sae, len(alive), 2 * sae["latent_dim"], beside.accuracy.get(key))
        content = _render("cell.html", "cell.js", data, title=where[0].upper() + where[1:], sae=sae)
        if len(content) <= LARGEST_PAGE:
            break
    return content


def pack(
    halves: pd.DataFrame,
    examples: Sequence[Mapping[str, Any]],
    n_examples: int,
    n_characters: int,
    effects: Mapping[str, Effect],
    answers: Sequence[AnswerLine],
) -> dict[str, Any]:
    """What a cell's page shows of its halves that fire, for cell.js to unpack.

    `packed`, for each half: counts of bins, top, quantile and silent rows, then the bins, the rows (places in `rows`)
    and the activations of top and quantile rows in 65535ths of the largest.
    """
    rows: dict[int, int] = {}
    concepts: dict[str, int] = {}
    places: dict[str, int] = {}
    words: list[int] = []
    listed = []
    with_lenses = "lens_up" in halves
    for half in halves.to_dict("records"):
        top, quantile = list(half["top_rows"])[:n_examples], list(half["quantile_rows"])[:n_examples]
        silent, bins = list(half["silent_rows"])[:n_examples], list(half["histogram"])
        activations = [*list(half["top_activations"])[:n_examples], *list(half["quantile_activations"])[:n_examples]]
        words += [len(bins), len(top), len(quantile), len(silent)]
        words += [min(count, FULL) for count in bins]
        words += [rows.setdefault(row, len(rows)) for row in (*top, *quantile, *silent)]
        words += [round(value / half["max_activation"] * FULL) for value in activations]
        told = zip(half["concepts"], half["concepts_f1"], strict=True)
        matches = [
            (*match.rsplit(" ", 1), value)
            for match, value in zip(half["matches"], half["match_correlations"], strict=True)
        ]
        listed.append(
            [
                half["half"],
                _rounded(half["density"]),
                _rounded(half["max_activation"]),
                _rounded(half["mean_activation"]),
                _rounded(half["precision"]),
                _rounded(half["recall"]),
                _rounded(half["threshold"]),
                [[concepts.setdefault(concept, len(concepts)), _rounded(f1)] for concept, f1 in told],
                [[places.setdefault(place, len(places)), other, _rounded(value)] for place, other, value in matches],
                effects.get(half["half"]),
                [list(half[f"lens_{name}"]) for name in Lens._fields] if with_lenses else None,
            ]
        )
    return {
        "halves": listed,
        "concepts": list(concepts),
        "places": list(places),
        "rows": [_texts(examples[row], answers[row] if answers else None, n_characters) for row in rows],
        "packed": base64.b64encode(np.minimum(words, FULL).astype("<u2").tobytes()).decode(),
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _texts(example: Mapping[str, Any], said: AnswerLine | None, n_characters: int) -> list[str]:
    """[question, worked steps, split, the model's answer and whether it is right, where that is known]."""
    texts = (
        example.get("question", ""),
        re.sub(r"<<[^<>]*>>", "", str(example.get("answer") or "")),
        example.get("split", ""),
        "" if said is None else said.text,
        "" if said is None or said.correct is None else "right" if said.correct else "wrong",
    )
    return [text if len(text) <= n_characters else text[: n_characters - 1] + "…" for text in map(str, texts)]


def _page_saes(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    page = scores["metadata"]["page"]
    return [sae for sae in scores["saes"] if (sae["latent_dim"], sae["k"]) == (page["latent_dim"], page["k"])]


def _facts(sae: Mapping[str, Any], alive: int, halves: int, accuracy: float | None) -> list[list[str]]:
    """What stands at the head of a cell's page: names and values."""

    def share(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None or not math.isfinite(value) else format(value, form)

    ours = sae["sae"]
    return [
        ["halves that fire", f"{alive:,} of {halves:,}"],
        ["fvu", share(sae["fvu"], ".3f")],
        ["coverage", f"{share(ours['coverage'])} ({share(ours['low'])} to {share(ours['high'])})"],
        ["best found", sae["best_family"]],
        ["monosemantic", share(sae["monosemantic_share"], ".1%")],
        *([] if accuracy is None else [["answers right with its reconstruction", share(accuracy, ".1%")]]),
    ]


def index_page(shown: pd.DataFrame, scores: Mapping[str, Any], beside: Beside) -> bytes:
    """The grid of cells by every measure the scores hold, and the halves of highest F1."""
    cells = {(cell["layer"], cell["position"]): cell for cell in scores["cells"]}
    measures: list[tuple[str, str, Any]] = [
        ("coverage", "coverage: mean best F1 of the concepts (high is good)", lambda s, c: s["sae"]["coverage"]),
        ("over_raw", "coverage beyond raw dimensions", lambda s, c: s["over_raw"]["difference"]),
        ("probe", "coverage of a linear probe, the ceiling", lambda s, c: c["probe"]["coverage"]),
        ("monosemantic", "share of monosemantic halves", lambda s, c: s["monosemantic_share"]),
        ("splitting", "halves with F1 above 0.5 a concept", lambda s, c: s["splitting"]),
        ("fvu", "fraction of variance unexplained (low is good)", lambda s, c: s["fvu"]),
        ("death", "dead features (low is good)", lambda s, c: s["feature_death_rate"]),
    ]
    saes = _page_saes(scores)
    key_of = {id(sae): SaeKey(Cell(sae["layer"], sae["position"]), sae["latent_dim"], sae["k"]) for sae in saes}
    if any(key in beside.accuracy for key in key_of.values()):
        title = "answers right with the reconstruction in the thought's place (high is good)"
        measures.append(("accuracy", title, lambda s, c: beside.accuracy.get(key_of[id(s)])))
    data = {
        "layers": sorted({sae["layer"] for sae in saes}),
        "positions": sorted({sae["position"] for sae in saes}),
        "measures": [[name, title] for name, title, _ in measures],
        "cells": [
            {
                "layer": sae["layer"],
                "position": sae["position"],
                "page": f"{page_name(Cell(sae['layer'], sae['position']))}.html",
                "best": sae["best_family"],
                "values": [
                    None if value is None else _rounded(value)
                    for value in (read(sae, cells[sae["layer"], sae["position"]]) for _, _, read in measures)
                ],
            }
            for sae in saes
        ],
    }
    best = shown[shown["f1"].notna()].sort_values(["f1", "density"], ascending=False, kind="stable")
    halves = [
        {
            "page": f"{page_name(Cell(half['layer'], half['position']))}.html",
            "half": half["half"],
            "where": place_in_words(half["layer"], half["position"], scores["metadata"]["position_0"]),
            "concept": half["concept"],
            "f1": f"{half['f1']:.2f}",
            "fires": f"{half['density']:.1%}",
        }
        for half in best.drop_duplicates("concept").head(BEST_HALVES).to_dict("records")
    ]
    return _render(
        "index.html", "index.js", data, scores=scores["metadata"], best=halves, finding=coverage_in_words(scores)
    )


def _render(template: str, script: str, data: Mapping[str, Any], **values: Any) -> bytes:
    """A self-contained page."""
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css, js = ((PAGES / name).read_text(encoding="utf-8") for name in ("style.css", script))
    allowed = {
        name: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for name, text in (("style", css), ("script", js))
    }
    return (
        environment.get_template(template)
        .render(css=Markup(css), js=Markup(js), data=for_script(data), allowed=allowed, **values)
        .encode()
    )


def for_script(data: Any) -> Markup:
    """JSON that can stand within a <script>: no text in it can end or open a tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
