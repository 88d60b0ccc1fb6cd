"""What the answer would be had the value after one step been another: from `start`, `operations` and `values`.

These columns say how a question's answer comes about. A set without them has no counterfactual answers.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from thought_saes.common.errors import InputError

COLUMNS = ("start", "operations", "values")
SHIFTS = ("add", "subtract")  # by what the question says: it stays the same from another value
FACTORS = {"double": 2.0, "triple": 3.0, "halve": 0.5}


class Target(NamedTuple):
    """What a question's value after a step is changed into."""

    value: float  # that it has
    other: float  # that it is given
    answer: float  # that follows from the other


def tell_operations(examples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the questions say by which operations their answers come about."""
    return all(column in example for example in examples for column in COLUMNS)


def check_operations(examples: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError with the first question whose columns do not make sense."""
    known = (*SHIFTS, *FACTORS)
    for example in examples:
        where, operations, values = f"question {example['id']}", example["operations"], example["values"]
        numbers = [example["start"], *(values if isinstance(values, list) else [None])]
        if not all(isinstance(value, int | float) for value in numbers):
            raise InputError(f"{where}: start and values must be numbers, not {numbers}")
        if not isinstance(operations, list) or len(operations) != len(values):
            raise InputError(f"{where}: it has {len(values)} values, so operations must be a list of as many")
        if unknown := [operation for operation in operations if operation not in known]:
            raise InputError(f"{where}: '{unknown[0]}' is none of the known operations {', '.join(known)}")


def values_from(example: Mapping[str, Any], step: int, value: float) -> list[float]:
    """The values from `step` (1 is the first) to the end, the answer, if the one after `step` were `value`."""
    values = [example["start"], *example["values"]]
    found = [float(value)]
    for place, operation in enumerate(example["operations"][step:], start=step):
        if operation in FACTORS:
            found.append(found[-1] * FACTORS[operation])
        else:
            found.append(found[-1] + values[place + 1] - values[place])
    return found


def draw_target(
    example: Mapping[str, Any], step: int, others: Sequence[float], possible: Set[float], seed: int
) -> Target | None:
    """Another of the values `others` for a question's value after `step`, drawn by the question's id.

    None if the question has no such step, if its value is none of `others`, or if from none of them another answer
    follows by values that are all `possible`.
    """
    values = example["values"]
    if len(values) < step or values[step - 1] not in others:
        return None
    found = []
    for other in others:
        following = values_from(example, step, other)
        if following[-1] != values[-1] and all(value in possible for value in following):
            found.append(Target(float(values[step - 1]), float(other), following[-1]))
    if not found:
        return None
    return found[np.random.default_rng([seed, 7, example["id"], step]).integers(len(found))]
