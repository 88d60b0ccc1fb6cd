"""What is concluded from edits.json, and what the file may hold."""

from typing import Any

import pytest

from tests.helpers.edits import edits_content, empty_swap, swap_record
from tests.helpers.paths import ROOT
from thought_saes.common.errors import DamagedFile
from thought_saes.common.files import read_json
from thought_saes.common.schema import check
from thought_saes.downstream.edit_findings import cell_swaps, clearest, numbers_of_features, that_matter
from thought_saes.downstream.edit_formats import EditsContent


def test_the_ceiling_chooses_a_cells_step_whatever_the_features_do() -> None:
    first, second = cell_swaps(edits_content()["swaps"])
    assert (first.position, first.step, first.share("sae")) == (3, 3, 0.125)  # not step 2, where features do more
    assert (second.position, second.step) == (4, 3)  # step 5 has no question
    assert first.n_questions == 40
    assert first.share("whole") is None


def test_the_clearest_cell_is_that_of_the_highest_ceiling() -> None:
    swaps = cell_swaps(edits_content()["swaps"])
    clear = clearest(swaps)
    assert clear is not None
    assert clear.position == 3
    assert numbers_of_features(swaps) == [5, 64]
    assert clearest([]) is None
    assert clearest(cell_swaps([swap_record("class_means", 0.9)])) is None
    assert cell_swaps([empty_swap("sae")]) == []


def test_features_matter_where_a_random_direction_as_long_shifts_less() -> None:
    assert [one["half"] for one in that_matter(edits_content()["ablations"])] == ["4+", "3+"]
    assert that_matter([edits_content()["ablations"][0] | {"kl_over_random_interval": None}]) == []


def test_a_file_is_read_and_the_committed_one_too() -> None:
    check(edits_content(), EditsContent, "made")
    path = ROOT / "results/demo/edits.json"
    check(read_json(path), EditsContent, str(path))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("swaps", {"condition": "wish"}, "condition"),
        ("swaps", {"counterfactual": None}, "counterfactual and counterfactual_interval"),
        ("swaps", {"n_questions": 0}, "null exactly where n_questions is 0"),
        ("swaps", {"condition": "pca", "n_features": None}, "pca has n_features"),
        ("swaps", {"original": 1.5}, "original"),
        ("ablations", {"kl": None}, "kl and kl_interval"),
        ("ablations", {"random_kl": None}, "kl_over_random_interval needs"),
        ("ablations", {"half": 3}, "half"),
    ],
)
def test_what_does_not_go_together_is_damage(kind: str, change: dict[str, Any], message: str) -> None:
    content = edits_content()
    content[kind][0] |= change
    with pytest.raises(DamagedFile, match=message):
        check(content, EditsContent, "made")
