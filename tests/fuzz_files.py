"""Damage the files of a real run at random, and run the commands on them, for as long as asked.

    python -m tests.fuzz_files --minutes 5 [--seed 0] [--model demo/model --questions demo/run/problems.jsonl]

Each round copies a tiny run (activations and results with what the evaluations and interpret_features.py write beside
them; with --model also the model's folder and its questions), edits
one file of it, and runs a command in this process. A command may succeed, or end with exit code 2 and one line that
begins with "error:". Anything else is a finding: an exception, another exit code, or a success that the next command
contradicts (training that succeeds leaves results that can be analysed). A finding is printed with the number of its
round; `--seed N --rounds R` runs round R alone. Exit code 1 if there was a finding.

Left out: the weights' values, which nothing can check, and the Ray engine.
"""

import contextlib
import importlib
import io
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tests.helpers.evaluations import edits, error_prediction, substitution
from tests.helpers.results import correlated_rows
from thought_saes.activations.writer import CacheWriter
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.flags import check_at_least, check_positive, option, parse_config

N_ROWS, INPUT_DIM = 120, 6
EDITED = (".json", ".jsonl", ".npy", ".pt", ".safetensors", ".parquet")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -16, 3.7, 10**25, -(10**25), 2**63, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\0", "5", "-5", "é", "../../x", "9" * 5000, [], {}, [[]], [None], {"": None}, {"x": {"x": []}}),
)


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    minutes: float = option(5.0, help="how long to go on")
    seed: int = option(0, help="what is edited, and how, follows from it")
    rounds: int | None = option(None, help="run this round alone")
    model: Path | None = option(None, help="a model's folder: its files are edited too")
    questions: Path | None = option(None, help="a .jsonl file of questions that the model knows the words of")

    def __post_init__(self) -> None:
        check_positive(self, "minutes")
        if (self.model is None) != (self.questions is None):
            raise InputError("--model needs --questions, and --questions --model")
        check_at_least(self, 0, "seed", "rounds")


class Ended(NamedTuple):
    code: int | None  # None: an exception came out
    out: str
    err: str


def call(script: str, *words: object) -> Ended:
    """Run a script of the project in this process, as its command line would."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [f"{script}.py", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run(importlib.import_module(script).main)
    except SystemExit as ended:
        return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        return Ended(None, out.getvalue(), "".join(traceback.format_exception(problem)))
    finally:
        sys.argv = argv
    raise AssertionError("run always exits")


def train_words(folder: Path) -> tuple[object, ...]:
    """A tiny grid of one cell."""
    files = ("--activations", folder / "activations", "--results", folder / "results")
    sizes = ("--latent-dim", 8, 12, "--k-values", 2, 3, "--epochs", 2, "--batch-size", 16, "--device", "cpu")
    return (*files, "--layer", 0, "--position", 1, *sizes)


COMMANDS: dict[str, Callable[[Path], Ended]] = {
    "train": lambda folder: call("train_grid", *train_words(folder)),
    "forecast": lambda folder: call("train_grid", *train_words(folder), "--dry-run"),
    "analyse": lambda folder: call("analyze_all_layers", "--results", folder / "results", "--allow-partial"),
    "draw": lambda folder: call("visualize_all_layers", "--results", folder / "results", "--allow-partial"),
    "interpret": lambda folder: call(
        "interpret_features",
        *("--activations", folder / "activations", "--results", folder / "results", "--positions", 1),
        *("--latent-dim", 12, "--k", 3, "--concept-column", "colour", "--workers", 1),
    ),
    "transfer": lambda folder: call(
        "evaluate_transfer", "--activations", folder / "activations", "--results", folder / "results", "--threads", 1
    ),
    "export": lambda folder: call(
        "export_saes", "--format", "saelens", "--results", folder / "results", "--output", folder / "exported"
    ),
    "extract": lambda folder: call(
        "extract_activations",
        *("--model", folder / "model", "--dataset", folder / "questions.jsonl", "--positions", "0-1"),
        *("--activations", folder / "extracted", "--device", "cpu", "--threads", 1),
    ),
}
READERS = {
    "activations": ("train", "forecast", "interpret", "transfer"),
    "results": ("analyse", "train", "forecast", "analyse", "draw", "interpret", "transfer", "export"),
}
# By the part of their path: read by these alone.
ONLY = {
    "examples.jsonl": ("interpret",),
    "concept_scores.json": ("analyse", "interpret", "analyse", "draw"),
    "substitution.json": ("analyse", "analyse", "analyse", "draw"),
    "edits.json": ("analyse", "analyse", "analyse", "draw"),
    "error_prediction.json": ("analyse", "analyse", "analyse", "draw"),
    "transfer.json": ("analyse",),
    ".parquet": ("interpret",),
    ".pt": ("interpret", "transfer", "export", "train"),
}


def make_run(folder: Path, model: Path | None = None, questions: Path | None = None) -> None:
    """A run to damage. Raises InputError if the project cannot make it."""
    (folder / "activations").mkdir()
    examples = [
        {"id": row, "question": f"{row}?", "answer": f"<<{row % 2}+1={row % 2 + 1}>> #### {row % 2 + 1}"}
        | {"colour": ("red", "blue")[row % 2], "operations": ["+"], "start": row % 3}
        for row in range(N_ROWS)
    ]
    writer = CacheWriter(
        folder / "activations",
        layers=[0],
        positions=[0, 1],
        examples=examples,
        input_dim=INPUT_DIM,
        dtype="float32",
        description={"model": "m", "dataset": "d", "dataset_split": "train", "thought_projection": False},
        record={"versions": {"python": "3"}},
    )
    rows = [correlated_rows(N_ROWS, INPUT_DIM, seed) for seed in (0, 1)]
    writer.write(range(N_ROWS), np.stack(rows, axis=1)[:, :, None])
    writer.commit(N_ROWS)
    commands = ["train", "analyse", "interpret", "transfer"]
    if model and questions:
        shutil.copytree(model, folder / "model")
        with open(questions) as lines:
            (folder / "questions.jsonl").write_text("".join(itertools.islice(lines, 4)))
        commands.append("extract")
    for command in commands:
        ended = COMMANDS[command](folder)
        if ended.code != 0:
            raise InputError(
                f"the run to damage cannot be made: {command} ended with {ended.code} ({ended.err[-300:]})"
            )
    for make in (substitution, edits, error_prediction):
        (folder / "results" / f"{make.__name__}.json").write_text(json.dumps(make()))
    # A plan and a record of the run, which train_all_layers_positions.py writes.
    plan = {"layer": [0], "position": [1], "latent_dim": [8, 12], "k": [2, 3], "model": "m", "dataset": "d"}
    (folder / "results" / "grid_plan.json").write_text(json.dumps(plan))
    last = {
        "n_trained": 4,
        "failures": [],
        "busy_seconds": 1.0,
        "wall_seconds": 2.0,
        "overhead": 0.1,
        "engine": "local",
    }
    (folder / "results" / "last_run.json").write_text(json.dumps(last | {"workers": 1, "device": "cpu"}))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within `value`, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def edit_json(chance: random.Random, text: str) -> str:
    """Change, remove, add or wrap one value."""
    content = json.loads(text)
    everywhere = places(content)
    if not everywhere or chance.random() < 0.05:
        return json.dumps(chance.choice(VALUES))
    container, key = chance.choice(everywhere)
    match chance.randrange(6):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[chance.choice(["x", "", "-1", "9" * 30, "0"])] = container.pop(key)
        case 2:
            container[key] = [container[key]]
        case 3:
            container[key] = chance.choice(everywhere)[0]  # of another kind, most likely
            with contextlib.suppress(ValueError):
                return json.dumps(content)
            container[key] = None
        case _:
            container[key] = chance.choice(VALUES)
    return json.dumps(content)


def edit_bytes(chance: random.Random, content: bytes) -> bytes:
    """Cut it, empty it, repeat it, or change some of its bytes."""
    match chance.randrange(8):
        case 0:
            return b""
        case 1:
            return bytes(len(content))
        case 2:
            return content[: chance.randrange(len(content) + 1)]
        case 3:
            return content + content[: chance.randrange(len(content) + 1)]
        case 4:
            return b"[" * 100_000 + content
    changed = bytearray(content)
    head = min(len(changed), chance.choice([128, len(changed)]))  # headers more often than values
    for _ in range(chance.choice([1, 1, 4])):
        if head:
            changed[chance.randrange(head)] = chance.randrange(256)
    return bytes(changed)


def edit(chance: random.Random, path: Path) -> str:
    """Damage a file; what was done, in words."""
    content = path.read_bytes()
    if chance.random() < 0.03:
        path.unlink()
        return "removed"
    if path.suffix == ".json" and chance.random() < 0.75:
        changed = edit_json(chance, content.decode())
        path.write_text(changed)
        return "one value"
    if path.suffix == ".jsonl" and chance.random() < 0.75:
        lines = content.decode().split("\n")
        number = chance.randrange(len(lines))
        lines[number] = edit_json(chance, lines[number] or "{}")
        path.write_text("\n".join(lines))
        return f"one value of line {number + 1}"
    path.write_bytes(edit_bytes(chance, content))
    return "its bytes"


def problem_of(command: str, ended: Ended, folder: Path) -> str | None:
    """What is wrong with how a command ended; None if nothing is."""
    if ended.code is None:
        return f"an exception\n{ended.err}"
    if "Traceback" in ended.err + ended.out:
        return f"a traceback\n{ended.err}"
    if ended.code not in (0, 2):
        # Training reports what failed and ends with 1: in these runs nothing should.
        return f"exit code {ended.code}\n{ended.out}\n{ended.err}"
    last = (ended.err.rstrip().splitlines() or [""])[-1]
    if ended.code == 2 and not last.split("\r")[-1].startswith("error: "):
        return f"exit code 2 without a reason\n{ended.err}"
    if ended.code == 0 and command == "train":
        after = COMMANDS["analyse"](folder)
        if after.code != 0 and not any(name in after.err for name in ("grid_plan", "last_run", "SAEs are missing")):
            return f"training succeeded, and the analysis after it did not\n{after.err}"
    return None


def fuzz_round(base: Path, work: Path, seed: int, number: int) -> tuple[str, str | None]:
    """One round: the class of what was done and how it ended, and the finding if there is one."""
    chance = random.Random(f"{seed} {number}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name[0] != ".")
    files = [path for path in files if path.suffix in EDITED]
    path = chance.choice(files)
    what = edit(chance, path)
    part = path.relative_to(work).parts[0]
    only = [commands for name, commands in ONLY.items() if part in READERS and path.name.endswith(name)]
    command = chance.choice(only[0] if only else READERS.get(part, ("extract",)))
    ended = COMMANDS[command](work)
    problem = problem_of(command, ended, work)
    kind = f"{part} {path.suffix or path.name}, {command}: exit {ended.code}"
    return kind, problem and f"round {number}: {path.relative_to(work)}, {what}; {command} ends with {problem}"


def main() -> int:
    config = parse_config(FuzzConfig, __doc__ or "")
    torch.set_num_threads(1)
    findings, kinds = [], Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        base, work = Path(temporary) / "base", Path(temporary) / "work"
        work.mkdir()
        make_run(work, config.model, config.questions)
        shutil.copytree(work, base)  # a resumed extraction compares the model's path: rounds run where it was made
        if config.rounds is not None:
            kind, finding = fuzz_round(base, work, config.seed, config.rounds)
            print(finding or f"nothing found; {kind}")
            return 1 if finding else 0
        until = time.monotonic() + 60 * config.minutes
        with tqdm(unit="round") as bar:
            while time.monotonic() < until:
                kind, finding = fuzz_round(base, work, config.seed, bar.n)
                kinds[kind] += 1
                if finding:
                    findings.append(finding)
                    bar.write(finding, file=sys.stdout)
                bar.update()
    for kind, count in sorted(kinds.items()):
        print(f"{count:6,}  {kind}")
    print(f"{sum(kinds.values()):,} rounds, {len(findings):,} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    run(main)
