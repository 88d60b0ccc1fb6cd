"""What the evaluations wrote, damaged in every field: it is refused in one line, or the section is told."""

import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz_files import edit_json
from tests.helpers.concept_scores import make_scores
from tests.helpers.evaluations import edits, error_prediction, substitution, transfer
from tests.helpers.json_damage import DAMAGE
from thought_saes.common.errors import InputError
from thought_saes.common.files import parse_json
from thought_saes.common.schema import Record, check
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.downstream.formats import ErrorPredictionContent, SubstitutionContent, TransferContent
from thought_saes.features.findings import coverage_in_words
from thought_saes.features.formats import ConceptScores
from thought_saes.features.summary import coverage_table
from thought_saes.reporting.formats import FILES
from thought_saes.reporting.sections import edits as edits_section
from thought_saes.reporting.sections import error_prediction as errors_section
from thought_saes.reporting.sections import substitution as substitution_section
from thought_saes.reporting.sections import transfer as transfer_section


def scores() -> dict[str, Any]:
    saes = {(0, position, 64, k): 0.5 + 0.1 * position for position in (1, 2) for k in (4, 8)}
    return make_scores(saes, {sae: 0.2 for sae in saes})


def tell_scores(content: dict[str, Any]) -> str:
    return coverage_in_words(content) + str(coverage_table(content))


Case = tuple[Callable[[], dict[str, Any]], type[Record], Callable[[dict[str, Any]], str]]
CASES: dict[str, Case] = {
    "substitution": (substitution, SubstitutionContent, substitution_section.phrase),
    "edits": (edits, EditsContent, edits_section.phrase),
    "error_prediction": (error_prediction, ErrorPredictionContent, errors_section.phrase),
    "transfer": (transfer, TransferContent, transfer_section.phrase),
    "concept_scores": (scores, ConceptScores, tell_scores),
}


def refused(text: str, name: str) -> str:
    """What is said against the file; empty if its section is told."""
    _, model, tell = CASES[name]
    try:
        content = parse_json(text, name)
        check(content, model, name)
    except InputError as problem:
        return str(problem)
    assert tell(content)
    return ""


@pytest.mark.parametrize("name", CASES)
def test_whole_files_are_told(name: str) -> None:
    assert not refused(json.dumps(CASES[name][0]()), name)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CASES)
def test_every_field_damaged_is_refused_in_one_line_or_told(name: str, damage: str) -> None:
    said = [refused(text, name) for text in DAMAGE[damage](json.dumps(CASES[name][0]()))]
    assert all(line.startswith(name) and "\n" not in line and len(line) < 300 for line in said if line)
    assert any(said)


@pytest.mark.parametrize("name", CASES)
def test_several_edits_at_random_are_refused_or_told(name: str) -> None:
    chance, whole = random.Random(name), json.dumps(CASES[name][0]())
    for _ in range(60):
        refused(edit_json(chance, edit_json(chance, whole)), name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("model", FILES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_the_values_a_model_reads_or_refuses_them(model: type[Record], data: st.DataObject) -> None:
    content = data.draw(VALUES | st.dictionaries(st.sampled_from(model.__struct_fields__), VALUES, max_size=5))
    with contextlib.suppress(InputError):
        check(content, model, "-")
