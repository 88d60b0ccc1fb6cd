"""Bytes and times as people read them."""

import pytest

from thought_saes.common.text import in_bytes, in_time


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (999_960, "1.0 MB"),
        (4.7e9, "4.7 GB"),
        (2.5e16, "25,000.0 TB"),
    ],
)
def test_bytes_as_people_read_them(n_bytes: float, text: str) -> None:
    assert in_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (150, "2 min"), (1539, "26 min"), (12_000, "3 h 20 min")]
)
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
