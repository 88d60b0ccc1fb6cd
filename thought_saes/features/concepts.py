"""Known concepts of every question: the value after a step, a step's operation, the start, the answer.

They come from the examples beside the activations: from the columns `start`, `operations` and `values` where the data
set has them, else from the worked answer, GSM8K's `<<48/2=24>>` marks or lines such as `6 + 3 = 9`. Every other column
can be named. A concept is one value of one family: `value after step 3 = 12` is of the family `value after step 3`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError

# A concept on fewer training rows is left out, and so is one that fewer training rows lack.
MIN_ROWS = 20

MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
LINE = re.compile(r"^\s*([\d.,()+\-*/ ]*[+\-*/][\d.,()+\-*/ ]*)=\s*(-?[\d.,]+)\s*$", re.MULTILINE)
# A sign between two operands, not the one of a negative number.
SIGN = re.compile(r"(?<=[\d.)%])\s*([+\-*/])")


class Labels(NamedTuple):
    """Which rows have which concept. A concept is defined on the rows that have any value of its family.

    What a problem of two steps has in the place of a third says nothing about step 3, for or against.
    """

    concepts: csr_array  # (n_rows, n_concepts) of 0 and 1
    defined: csr_array  # (n_rows, n_families) of 0 and 1
    family: np.ndarray  # (n_concepts,) the column of `defined`

    def take(self, rows: np.ndarray) -> "Labels":
        """Those of `rows` alone."""
        return Labels(self.concepts[rows], self.defined[rows], self.family)


class Concepts(NamedTuple):
    """What is known of the rows of a cache."""

    names: list[str]
    families: list[str]  # without repetition
    labels: Labels
    left_out: int  # concepts that too few training rows have, or lack, or no validation row has


def family_of(name: str) -> str:
    """`value after step 3` of `value after step 3 = 12`."""
    return name.partition(" = ")[0]


def normal(value: Any) -> str:
    """A value as concepts write it: numbers without commas, and 18.0 as 18."""
    text = str(value).strip()
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return text
    return f"{number:.12g}"


def worked_steps(answer: str) -> list[tuple[str, str]]:
    """(operation, value) of each step of a worked answer; of several signs in a step the operation is `mixed`."""
    found = MARK.findall(answer) or LINE.findall(answer)
    steps = []
    for expression, value in found:
        signs = set(SIGN.findall(expression))
        steps.append((signs.pop() if len(signs) == 1 else "mixed" if signs else "none", normal(value)))
    return steps


def final_answer(answer: str) -> str | None:
    """What follows `####`, or the whole text if it is a number; None if there is neither."""
    text = answer.rpartition("####")[2].strip()
    return normal(text) if re.fullmatch(r"-?[$]?[\d.,]*\d[\d.,]*", text) else None


def facts(example: Mapping[str, Any], columns: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(family, value) of everything known of one example."""
    answer = str(example.get("answer", ""))
    steps = worked_steps(answer)
    operations, values = (
        stated if isinstance(stated := example.get(name), list) and stated else list(told)
        for name, told in zip(("operations", "values"), zip(*steps, strict=True) if steps else ((), ()), strict=True)
    )
    if example.get("start") is not None:
        yield "start", normal(example["start"])
    for name, members in (("value after step", values), ("operation of step", operations)):
        for step, member in enumerate(members, start=1):
            yield f"{name} {step}", normal(member)
    if (final := final_answer(answer)) is not None:
        yield "answer", final
    for column in columns:
        value = example.get(column)
        if isinstance(value, list):
            yield from ((f"{column} {place}", normal(member)) for place, member in enumerate(value, start=1))
        elif value is not None:
            yield column, normal(value)


def find_concepts(
    examples: Sequence[Mapping[str, Any]], cache: ActivationCache, columns: Sequence[str] = ()
) -> Concepts:
    """The concepts of `examples`, a row of the cache each.

    Raises InputError if a named column is in no example, or if no concept is on enough rows.
    """
    for column in columns:
        if not any(column in example for example in examples):
            there = ", ".join(sorted({key for example in examples for key in example}))
            raise InputError(f"the examples have no column '{column}'; they have {there}")
    rows: dict[str, dict[str, list[int]]] = {}  # by family, then by value
    for row, example in enumerate(examples):
        for family, value in facts(example, columns):
            rows.setdefault(family, {}).setdefault(value, []).append(row)
    in_training, in_validation = np.zeros((2, len(examples)), dtype=bool)
    in_training[cache.split.train] = True
    in_validation[cache.split.validation] = True
    names, having, family_index, families, defined = [], [], [], [], []
    for family in sorted(rows, key=_natural):
        every = np.concatenate([np.asarray(members) for members in rows[family].values()])
        n_train = in_training[every].sum()
        kept = {
            value: members
            for value, members in rows[family].items()
            if MIN_ROWS <= in_training[members].sum() <= n_train - MIN_ROWS and in_validation[members].any()
        }
        if kept:
            families.append(family)
            defined.append(every)
        for value in sorted(kept, key=_natural):
            names.append(f"{family} = {value}")
            having.append(np.asarray(kept[value]))
            family_index.append(len(families) - 1)
    if not names:
        raise InputError(
            f"the examples in {cache.folder} hold no concept on {MIN_ROWS} training rows or more: the answers need "
            "worked steps, or name a column with --concept-column"
        )
    labels = Labels(_indicator(having, len(examples)), _indicator(defined, len(examples)), np.array(family_index))
    return Concepts(names, families, labels, sum(map(len, rows.values())) - len(names))


def _indicator(members: Sequence[np.ndarray], n_rows: int) -> csr_array:
    """(n_rows, len(members)) with a 1 where the row is a member."""
    columns = np.repeat(np.arange(len(members)), [len(rows) for rows in members])
    ones = np.ones(len(columns), dtype=np.float32)
    return csr_array((ones, (np.concatenate(members), columns)), shape=(n_rows, len(members)))


def _natural(name: str) -> list[tuple[int, float, str]]:
    """Sorts `= 2` before `= 10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]
