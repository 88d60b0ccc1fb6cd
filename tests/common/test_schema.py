"""What a file says is checked against a model, and what is wrong with it is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, field

from thought_saes.common.errors import DamagedFile, InputError
from thought_saes.common.files import parse_json, read_json, write_json
from thought_saes.common.schema import Count, Counted, Number, Record, check, read_record


class Inner(Record):
    name: str
    sizes: Annotated[list[Count], Meta(description="sizes")] = field(default_factory=list)


class Outer(Record):
    rows: Annotated[Count, Meta(description="rows")]
    inner: Inner | None = None
    by_k: dict[Counted, Number] = field(default_factory=dict)
    done: bool | None = None


def said(read: Callable[[], object]) -> str:
    """What an InputError says; empty if there is none. Nothing else may be raised."""
    try:
        read()
    except InputError as problem:
        return str(problem)
    return ""


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**20, 10**30) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": -16}, "rows is -16, not a whole number of 0 or more"),
        ({"rows": "x"}, 'rows is "x", not a whole number'),
        ({"rows": [1, 2]}, "rows is a list of 2 values, not a whole number"),
        ({"rows": None}, "rows is null, not a whole number"),
        ({"rows": True}, "rows is true, not a whole number"),
        ({"rows": 2.5}, "rows is 2.5, not a whole number"),
        ({"rows": 10**25}, f"rows is {10**25}, not a whole number below 2^63"),
        ({}, "rows is missing"),
        ([], "it is a list of 0 values, not an object"),
        (None, "it is null, not an object"),
        ({"rows": 1, "inner": {}}, "inner.name is missing"),
        ({"rows": 1, "inner": {"name": "a", "sizes": [3, -1]}}, "inner.sizes.1 is -1, not a whole number of 0 or more"),
        ({"rows": 1, "by_k": {"5": "much"}}, 'by_k.* is "much", not a number'),
        ({"rows": 1, "by_k": {"5": float("inf")}}, "by_k.* is Infinity, not a finite number"),
        ({"rows": 1, "by_k": {"-5": 1}}, "a key of by_k is something else, not a whole number of 0 or more"),
        ({"rows": 1, "done": 1}, "done is 1, not true or false"),
        ({"rows": 1, "inner": {"name": "a" * 10**6, "sizes": 1}}, "inner.sizes is 1, not a list"),
    ],
)
def test_the_message_names_the_file_the_field_what_is_there_and_what_would_be_right(content: Any, message: str) -> None:
    with pytest.raises(DamagedFile) as problem:
        check(content, Outer, "a/file.json")
    assert str(problem.value) == f"a/file.json: {message}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0" * 512, "is empty"),
        (b'{"rows": 1', "is not readable JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deep"),
        (b'{"rows": Infinity}', "rows is Infinity, not a whole number"),
        (b'{"rows": ' + b"9" * 5000 + b"}", "is not readable JSON"),
        (b'{"rows": "\xff"}', "is not readable JSON"),
    ],
    ids=["empty", "zeros", "cut", "deep", "infinite", "5,000 digits", "no UTF-8"],
)
def test_a_file_that_is_no_json_is_named_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"file\.json.*{reason}") as problem:
        read_record(tmp_path / "file.json", Outer)
    assert len(str(problem.value)) < 300 + len(str(tmp_path))


def test_keys_that_a_model_does_not_name_are_ignored() -> None:
    assert check({"rows": 3, "of another program": [[]]}, Outer, "-") == Outer(rows=3)


def test_a_nan_is_read_as_no_value() -> None:
    assert parse_json('{"a": NaN, "b": [1.5, NaN]}', "-") == {"a": None, "b": [1.5, None]}


@given(VALUES | st.dictionaries(st.sampled_from(["rows", "inner", "by_k", "done"]), VALUES))
def test_any_json_value_is_a_record_or_an_input_error_of_one_short_line(content: Any) -> None:
    assert len(said(lambda: check(content, Outer, "file"))) < 400


@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_or_an_input_error(content: bytes) -> None:
    assert len(said(lambda: parse_json(content, "file"))) < 400


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: events.append("flush"))
    rename = Path.replace

    def noted(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    write_json(tmp_path / "file.json", {"a": 1})
    assert events == ["flush", "rename", "flush"]  # the content, then the folder that holds the name
    assert read_json(tmp_path / "file.json") == {"a": 1}
