"""Answers as numbers, and the tokens that say them."""

import pytest

from thought_saes.models.numbers import Span, gold_number, last_number, number_span, same_answer


@pytest.mark.parametrize(
    ("text", "number"),
    [("The answer is: 12", 12), ("1,234.50 dollars", 1234.5), ("5 - -3", -3), ("none", None), ("9" * 400, None)],
)
def test_the_last_number_counts_commas_left_out_and_infinity_is_none(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_the_gold_number_stands_behind_the_mark_where_there_is_one() -> None:
    assert gold_number("2 + 3 = 5\n#### 5") == 5
    assert gold_number("7.0") == 7
    assert gold_number(None) is None


def test_the_span_is_of_the_last_numbers_tokens_only() -> None:
    words = ["3", " and", " 1", "2", ",", "0", "0", "0", " eggs"]

    def decode(tokens: list[int]) -> str:
        return "".join(words[token] for token in tokens)

    assert number_span(range(9), decode) == Span(2, 8)  # type: ignore[arg-type]
    assert number_span([1, 8], decode) is None  # type: ignore[arg-type]
    assert number_span([0, 1], decode) == Span(0, 1)  # type: ignore[arg-type]


def test_without_numbers_the_texts_are_compared() -> None:
    assert same_answer(None, None, "a", "a")
    assert not same_answer(None, None, "a", "b")
    assert not same_answer(None, 3.0, "a", "3")
    assert same_answer(3.0, 3.0, "3", "is 3")
