"""Short arithmetic word problems in the manner of GSM8K, with the ground truth of every step.

    python demo/problems.py --split train --n-problems 7473 --output problems.jsonl

A problem is a start and a chain of operations, each on the value before it, told one month at a time. Doubling and
sharing between additions make the order count: no sum over the question gives the answer. Every value is a whole
number from 1 to 20.

Which split a problem belongs to is a matter of its arithmetic alone (start, operations and amounts): no two splits
share a problem, in whatever words, from whatever seed.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_bytes
from thought_saes.common.flags import check_at_least, option, parse_config

MAX_STEPS = 8
MAX_VALUE = 20
MAX_AMOUNT = 9
SPLITS = ("train", "validation", "test")
SPLIT_OF_TENTH = ("validation", "test") + ("train",) * 8

PEOPLE = (
    ("Ada", "she"), ("Ben", "he"), ("Carla", "she"), ("David", "he"), ("Emma", "she"), ("Farid", "he"),
    ("Grace", "she"), ("Hugo", "he"), ("Iris", "she"), ("Jamal", "he"), ("Kim", "she"), ("Leo", "he"),
)  # fmt: skip
THINGS = (
    "apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pencils", "plums", "shells", "stamps", "toys",
)  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August")
PHRASES = {
    "add": ("{they} buys {n} more", "{they} finds {n} more", "{they} is given {n}"),
    "subtract": ("{they} loses {n}", "{they} sells {n}", "{they} gives away {n}"),
    "double": ("{they} doubles them", "their number doubles", "{they} gets as many again"),
    "triple": ("{they} triples them", "their number triples"),
    "halve": ("{they} shares them with a friend", "{they} gives away half", "{they} loses half"),
}
# The same steps from the same vocabulary, in sentences that the demo model was not trained on.
OTHER_PHRASES = {
    "add": ("{name} gets {n} more", "a friend gives {n} more", "{name} has {n} more"),
    "subtract": ("a friend gets {n}", "{n} are given away", "a friend is given {n}"),
    "double": ("{name} has as many again", "now {name} doubles their number"),
    "triple": ("now {name} triples their number",),
    "halve": ("a friend gets half", "half are given away", "a friend is given half"),
}
OTHER_QUESTIONS = ("How many does {name} have now?", "How many {things} has {name} now?")
PHRASINGS = ("usual", "other")
QUESTIONS = ("How many {things} does {name} have now?", "How many {things} are left?")
SIGNS = {"add": "+", "subtract": "-", "double": "*", "triple": "*", "halve": "/"}
FACTORS = {"double": 2, "triple": 3, "halve": 2}


class Step(NamedTuple):
    operation: str  # a key of PHRASES
    amount: int  # what is added or subtracted, or the factor
    value: int  # after the step


class Problem(NamedTuple):
    """A word problem and its ground truth."""

    question: str
    start: int
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].value

    def worked_steps(self) -> list[str]:
        """'6 + 3 = 9', '9 * 2 = 18', …"""
        befores = (self.start, *(step.value for step in self.steps))
        return [
            f"{before} {SIGNS[step.operation]} {step.amount} = {step.value}"
            for before, step in zip(befores, self.steps, strict=False)
        ]

    def record(self) -> dict[str, object]:
        """As a line of a data set, the answer in GSM8K's form."""
        return {
            "question": self.question,
            "answer": "\n".join([*self.worked_steps(), f"#### {self.answer}"]),
            "start": self.start,
            "operations": [step.operation for step in self.steps],
            "values": [step.value for step in self.steps],
        }


def possible_steps(value: int) -> dict[str, list[Step]]:
    """Every step that `value` allows, by operation: results stay whole and within 1 and MAX_VALUE."""
    steps = {
        "add": [Step("add", n, value + n) for n in range(1, MAX_AMOUNT + 1) if value + n <= MAX_VALUE],
        "subtract": [Step("subtract", n, value - n) for n in range(1, MAX_AMOUNT + 1) if value - n >= 1],
        "double": [Step("double", 2, 2 * value)] if 2 * value <= MAX_VALUE else [],
        "triple": [Step("triple", 3, 3 * value)] if 3 * value <= MAX_VALUE else [],
        "halve": [Step("halve", 2, value // 2)] if value % 2 == 0 else [],
    }
    return {operation: choices for operation, choices in steps.items() if choices}


POSSIBLE_STEPS = {value: list(possible_steps(value).values()) for value in range(1, MAX_VALUE + 1)}


def split_of(start: int, steps: tuple[Step, ...]) -> str:
    """The split that a problem belongs to."""
    arithmetic = json.dumps([start, *((step.operation, step.amount) for step in steps)])
    return SPLIT_OF_TENTH[hashlib.sha256(arithmetic.encode()).digest()[0] % 10]


def make_problem(rng: random.Random, split: str, n_steps: int, phrasing: str = "usual") -> Problem:
    """A random problem of `split` with `n_steps` steps, the operation chosen first, then its amount."""
    while True:
        start = value = rng.randint(1, MAX_VALUE)
        chosen = []
        for _ in range(n_steps):
            step = rng.choice(rng.choice(POSSIBLE_STEPS[value]))
            chosen.append(step)
            value = step.value
        steps = tuple(chosen)
        if split_of(start, steps) == split:
            return Problem(tell(rng, start, steps, phrasing), start, steps)


def tell(rng: random.Random, start: int, steps: tuple[Step, ...], phrasing: str) -> str:
    """The problem in words."""
    phrases, questions = (PHRASES, QUESTIONS) if phrasing == "usual" else (OTHER_PHRASES, OTHER_QUESTIONS)
    (name, they), things = rng.choice(PEOPLE), rng.choice(THINGS)
    sentences = [f"{name} has {start} {things}."]
    for month, step in zip(MONTHS, steps, strict=False):
        sentences.append(
            f"In {month} {rng.choice(phrases[step.operation]).format(name=name, they=they, n=step.amount)}."
        )
    sentences.append(rng.choice(questions).format(name=name, things=things))
    return " ".join(sentences)


def problems(seed: int, split: str, n_steps: Sequence[int], phrasing: str = "usual") -> Iterator[Problem]:
    """Endless random problems of `split`, the number of steps drawn from `n_steps`."""
    rng = random.Random(f"{seed} {split}")
    while True:
        yield make_problem(rng, split, rng.choice(n_steps), phrasing)


def different_problems(
    seed: int, split: str, n_problems: int, max_steps: int, phrasing: str = "usual"
) -> list[Problem]:
    """The first `n_problems` of one step to `max_steps` in which no question comes twice."""
    found: dict[str, Problem] = {}
    for problem in problems(seed, split, range(1, max_steps + 1), phrasing):
        found.setdefault(problem.question, problem)
        if len(found) == n_problems:
            break
    return list(found.values())


def words() -> list[str]:
    """Every word, sign and number that a problem or its worked steps can hold, sorted."""
    texts = [name for name, _ in PEOPLE] + [*THINGS, *MONTHS, *QUESTIONS, "has In she he . ? ####", "+ - * / ="]
    texts += [phrase for phrases in PHRASES.values() for phrase in phrases]
    text = " ".join(texts).replace("{things}", "").replace("{name}", "").replace("{they}", "").replace("{n}", "")
    return sorted({*text.replace("?", " ? ").split()}) + [str(number) for number in range(MAX_VALUE + 1)]


def check_steps(max_steps: int) -> None:
    """Raises InputError if no problem has so many steps."""
    if not 1 <= max_steps <= MAX_STEPS:
        raise InputError(f"--max-steps must be from 1 to {MAX_STEPS}, not {max_steps}")


@dataclass(frozen=True)
class ProblemsConfig:
    split: str = option("train", choices=SPLITS, help="no two splits share a problem")
    n_problems: int = option(7473, help="how many problems, all different")
    max_steps: int = option(6, help=f"problems have one step to so many, at most {MAX_STEPS}, each number as often")
    seed: int = option(0, help="another seed gives other problems of the same split")
    phrasing: str = option("usual", choices=PHRASINGS, help="other: sentences the demo model was not trained on")
    output: Path = option(Path("problems.jsonl"), help="file to write, one problem per line")
    words: bool = option(False, help="print the words that the demo model knows, and write nothing")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_problems")
        check_steps(self.max_steps)


def main() -> int:
    config = parse_config(ProblemsConfig, __doc__ or "")
    if config.words:
        print("\n".join(words()))
        return 0
    lines = [
        json.dumps(problem.record()) + "\n"
        for problem in different_problems(
            config.seed, config.split, config.n_problems, config.max_steps, config.phrasing
        )
    ]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(config.output, "".join(lines).encode())
    print(f"{len(lines):,} problems in {config.output}")
    return 0


if __name__ == "__main__":
    run(main)
