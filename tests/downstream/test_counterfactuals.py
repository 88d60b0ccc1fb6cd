"""Counterfactual answers, worked by hand."""

from typing import Any

import pytest

from demo.problems import problems
from thought_saes.common.errors import InputError
from thought_saes.downstream.counterfactuals import check_operations, draw_target, tell_operations, values_from

# 6 + 3 = 9, 9 * 2 = 18, 18 - 4 = 14, 14 / 2 = 7
EXAMPLE: dict[str, Any] = {
    "id": 0,
    "start": 6,
    "operations": ["add", "double", "subtract", "halve"],
    "values": [9, 18, 14, 7],
}
WHOLE = set(map(float, range(1, 21)))


def test_the_steps_behind_a_changed_value_are_done_again() -> None:
    assert values_from(EXAMPLE, 1, 5) == [5, 10, 6, 3]  # 5 * 2 = 10, 10 - 4 = 6, 6 / 2 = 3
    assert values_from(EXAMPLE, 2, 12) == [12, 8, 4]  # 12 - 4 = 8, 8 / 2 = 4
    assert values_from(EXAMPLE, 3, 5) == [5, 2.5]
    assert values_from(EXAMPLE, 4, 11) == [11]
    tripled = {"id": 1, "start": 2, "operations": ["subtract", "triple"], "values": [1, 3]}
    assert values_from(tripled, 1, 4) == [4, 12]


def test_the_value_that_a_question_has_leads_to_its_own_answer() -> None:
    for problem, _ in zip(problems(0, "test", range(1, 9)), range(200), strict=False):
        record = problem.record()
        for step, value in enumerate(record["values"], start=1):  # type: ignore[arg-type, var-annotated]
            assert values_from(record, step, value) == record["values"][step - 1 :]  # type: ignore[index]


def test_a_target_is_another_value_that_leads_to_another_answer_by_possible_values() -> None:
    # After step 3 only even values can be halved, and 14 itself is no change: 2 or 16.
    drawn = {draw_target(EXAMPLE | {"id": n}, 3, [14.0, 2.0, 5.0, 16.0], WHOLE, 0) for n in range(30)}
    assert {(target.other, target.answer) for target in drawn if target} == {(2.0, 1.0), (16.0, 8.0)}
    assert all(target and target.value == 14 for target in drawn)
    # 14 * 2 = 28 after step 2 is more than any value that is known.
    assert draw_target(EXAMPLE, 1, [9.0, 14.0], WHOLE, 0) is None
    assert draw_target(EXAMPLE, 5, [7.0, 8.0], WHOLE, 0) is None, "there is no such step"
    assert draw_target(EXAMPLE, 4, [8.0, 9.0], WHOLE, 0) is None, "nothing is known of the value it has"


def test_another_value_with_the_same_answer_is_no_target() -> None:
    undone = {"id": 3, "start": 5, "operations": ["add", "add"], "values": [7, 9]}
    assert draw_target(undone, 2, [9.0], WHOLE, 0) is None


def test_a_set_without_the_columns_is_left_out_and_one_with_nonsense_in_them_refused() -> None:
    assert tell_operations([EXAMPLE])
    assert not tell_operations([EXAMPLE, {"id": 1, "question": "?", "answer": "3"}])
    check_operations([EXAMPLE])
    for changed, message in (
        ({"operations": ["add", "square", "add", "add"]}, "question 0: 'square' is none of the known operations"),
        ({"operations": ["add"]}, "question 0: it has 4 values, so operations must be a list of as many"),
        ({"start": "six"}, "question 0: start and values must be numbers"),
        ({"values": 3}, "question 0: start and values must be numbers"),
    ):
        with pytest.raises(InputError, match=message):
            check_operations([EXAMPLE | changed])
