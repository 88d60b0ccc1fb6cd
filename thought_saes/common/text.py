"""Numbers, bytes, times and tables as people read them; a value that is not there is a dash."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# By name: in a fixed-width font they pass for the letters x and y.
TIMES, GAMMA = "\N{MULTIPLICATION SIGN}", "\N{GREEK SMALL LETTER GAMMA}"


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, form: str = ".4f") -> str:
    return format(value, form) if value is not None and math.isfinite(value) else "-"


def percent(value: float | None) -> str:
    return number(value, ".1%")


def with_sd(mean: float | None, sd: float | None = None, form: str = ".4f") -> str:
    """`0.1234 ± 0.0012`, or the mean alone where there is no standard deviation."""
    return number(mean, form) + (f" ± {number(sd, form)}" if known(sd) else "")


def small(p: float | None) -> str:
    return "< 0.0001" if p is not None and p < 0.0001 else number(p)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """The first `words` columns are left-aligned, the others right; the source is aligned too."""
    widths = [max(3, *map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if place >= words else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * (width - 1) + ":" if place >= words else "-" * width for place, width in enumerate(widths)]
    return "\n".join([line(headers), line(rule), *map(line, rows)])


def count(number: int, thing: str) -> str:
    """`1 seed`, `1,152 SAEs`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def of(part: float, whole: int) -> str:
    """`27 of 324 (8.3%)`."""
    return f"{int(part):,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")


def section(heading: str, finding: str, *blocks: str) -> str:
    """A heading, what the section finds, then its tables and notes; empty blocks are left out."""
    return "\n\n".join([heading, finding, *(block for block in blocks if block)])


def compact(numbers: Sequence[int]) -> str:
    """Ascending numbers in the form that `flags.Selection` reads: [0, 1, 2, 7] is '0-2,7'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def in_bytes(n_bytes: float) -> str:
    """As people read it: 4.7 GB, of 10^9 bytes each."""
    units = iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while n_bytes >= 999.95 and unit != "TB":
        n_bytes, unit = n_bytes / 1000, next(units)
    return f"{n_bytes:,.{0 if unit == 'bytes' else 1}f} {unit}"


def in_time(seconds: float) -> str:
    """As people read it: 12 s, 26 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def without_path(value: Any) -> str | None:
    """The name of a model or a data set as it was typed, but of an absolute path the last name only."""
    if not value:
        return None
    text = str(value)
    return Path(text).name if text.startswith(("/", "~")) or Path(text).is_absolute() else text
