"""The section on edits of single features says what edits.json holds."""

import json
from typing import Any

import pytest

from tests.helpers.edits import edits_content
from tests.helpers.json_damage import DAMAGE
from thought_saes.common.errors import InputError
from thought_saes.common.files import parse_json
from thought_saes.common.schema import check
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.reporting.sections.edits import phrase


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_first_sentences_name_the_clearest_cell_with_its_control() -> None:
    text = phrase(edits_content())
    first = text.split("\n\n")[0]
    assert first.startswith(
        "Where the value after step 3 is swapped for another at thought 3, layer 1, one feature for one makes "
        "12.5% [0.0%, 25.0%] of 40 answers what follows from the other value, 5 features 50.0%"
    )
    assert "the difference of class means 87.5% [75.0%, 100.0%], a random direction as long as that 0.0%" in first
    assert "64 features" not in first
    assert "latent_dim 64, k 5; these tell the value with a mean F1 of 0.50" in first
    assert first.endswith("one made as long as the difference of means makes 37.5% [25.0%, 50.0%] follow.")


def test_the_table_has_a_column_a_position_and_dashes_for_what_was_not_measured() -> None:
    text = phrase(edits_content())
    assert row(text, "what is done") == ["position 3", "position 4"]
    assert row(text, "step, questions") == ["3, 40", "3, 40"]
    assert row(text, "one feature") == ["12.5% [0.0%, 25.0%]", "25.0% [12.5%, 37.5%]"]
    assert row(text, "all features")[1] == "-"
    assert row(text, "5 principal axes")[0].startswith("62.5%")
    assert row(text, "whole") == ["-", "-"]
    assert row(text, "mean: answers that stay") == ["37.5% [25.0%, 50.0%]", "-"]
    [line] = [line for line in text.splitlines() if line.startswith("| 3        | one feature")]
    shares = ["12.5% [0.0%, 25.0%]", "43.8% [31.2%, 56.2%]", "43.8% [31.2%, 56.2%]"]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [*shares, "0.125", "0.438"]


def test_features_taken_out_are_counted_and_listed_by_their_effect() -> None:
    text = phrase(edits_content())
    assert "2 of 3 (66.7%) features shift the answer more than a random direction" in text
    assert "1 of 3 (33.3%) make right answers wrong" in text
    places = [text.index(f"{half} at layer 1, position 3") for half in ("9-", "4+", "3+")]
    assert places == sorted(places)
    assert row(text, "3+ at layer 1, position 3")[:3] == ["value after step 3 = 7", "0.75", "20"]


def test_without_swaps_or_without_ablations_the_section_says_what_is_there() -> None:
    content: dict[str, Any] = edits_content() | {"swaps": []}
    text = phrase(content)
    assert text.startswith("No value was swapped: the questions do not say")
    assert "position 4" not in text
    assert "Taken out" in text
    assert "Taken out" not in phrase(edits_content() | {"ablations": []})


def told_or_refused(text: str) -> str:
    """What is said of a file with this text: the section, or why it is refused."""
    try:
        content = parse_json(text, "edits.json")
        check(content, EditsContent, "edits.json")
    except InputError as problem:
        return str(problem)
    return phrase(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_and_one_that_passes_the_model_can_be_told(damage: str) -> None:
    said = [told_or_refused(text) for text in DAMAGE[damage](json.dumps(edits_content()))]
    assert all("\n" not in line or "Taken out" in line for line in said)
    assert any(line.startswith("edits.json") for line in said)
