"""Measure what the demo model can do, and what its thoughts hold; write it into the model's folder.

    python demo/measure_demo_model.py [--model demo/model]

Accuracy on problems it has never seen, by number of steps: as it is, with its thoughts replaced by their mean over
other problems, and with those of another problem of as many steps. A linear probe of each layer x position for the
value after each step. Writes `measurements.json` and the model's `README.md`.
"""

import math
import random
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo.problems import MAX_VALUE, Problem, different_problems, problems
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import read_json, write_bytes, write_json
from thought_saes.common.flags import check_at_least, option, parse_config
from thought_saes.common.text import count, percent, table
from thought_saes.models.reasoner import CODI_THOUGHTS, LatentReasoner

TRAINING_FILE = "training.json"
MEASUREMENTS_FILE = "measurements.json"
NUMBER = re.compile(r"-?\d+\.?\d*")
RIDGE = 1e-2  # of the probe, per training row; the states are standardized


DEFAULT_MODEL = Path("demo/model")


@dataclass(frozen=True)
class MeasureConfig:
    model: Path = option(DEFAULT_MODEL, help="folder that train_demo_model.py wrote")
    n_problems: int = option(2000, help="test problems, all different; the numbers of steps occur about equally often")
    n_probe: int = option(4000, help="training problems of the largest number of steps that the probes are fitted on")
    batch_size: int = option(256, help="problems that run together")
    seed: int = option(0, help="seed of the problems and of who gets whose thoughts")

    def __post_init__(self) -> None:
        check_at_least(self, 2, "n_problems", "n_probe")
        check_at_least(self, 1, "batch_size")


def last_number(text: str) -> float:
    """The number that counts as the answer: the last one, commas removed; NaN if there is none."""
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else math.nan


def states_of(reasoner: LatentReasoner, some: list[Problem], batch_size: int) -> Tensor:
    """(n_problems, n_positions, n_layers, input_dim): bot token and thoughts, every layer."""
    layers, positions = range(reasoner.n_layers), range(CODI_THOUGHTS + 1)
    token_ids = [reasoner.tokenize(problem.question) for problem in some]
    return torch.cat(
        [
            reasoner.hidden_states(token_ids[start : start + batch_size], layers, positions)
            for start in tqdm(range(0, len(some), batch_size), desc="thinking", leave=False)
        ]
    )


def answers_of(
    reasoner: LatentReasoner, some: list[Problem], batch_size: int, thoughts: Tensor | None = None
) -> list[str]:
    """What the model says, with its own thoughts or with `thoughts` (n_problems, n_thoughts, input_dim)."""
    answers: list[str] = []
    for start in tqdm(range(0, len(some), batch_size), desc="answering", leave=False):
        batch = some[start : start + batch_size]
        token_ids = [reasoner.tokenize(problem.question) for problem in batch]
        answers += reasoner.answers(token_ids, None if thoughts is None else thoughts[start : start + batch_size])
    return answers


def swap_partners(n_steps: Tensor, seed: int) -> Tensor:
    """For each problem another one of as many steps: (n_problems,) indices. Nobody is its own partner."""
    rng = random.Random(seed)
    partners = torch.empty_like(n_steps)
    for steps in n_steps.unique():
        rows = (n_steps == steps).nonzero()[:, 0].tolist()
        rng.shuffle(rows)
        partners[torch.tensor(rows)] = torch.tensor(rows[1:] + rows[:1])
    return partners


def probe_accuracy(x: Tensor, values: Tensor, x_test: Tensor, values_test: Tensor) -> float:
    """How often a linear map of x (n, input_dim), fitted by ridge regression on which value it is, names it."""
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-6)
    design, design_test = ((rows - mean) / sd for rows in (x, x_test))
    targets = torch.nn.functional.one_hot(values, MAX_VALUE + 1).double()
    shift = targets.mean(0)
    design, design_test = design.double(), design_test.double()
    gram = design.T @ design + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, design.T @ (targets - shift))
    return float(((design_test @ weights + shift).argmax(-1) == values_test).double().mean())


def measure_accuracy(reasoner: LatentReasoner, config: MeasureConfig, max_steps: int) -> dict[str, Any]:
    """Accuracy by number of steps: own, mean and swapped thoughts, in a batch and one at a time."""
    some = different_problems(config.seed, "test", config.n_problems, max_steps)
    n_steps = torch.tensor([len(problem.steps) for problem in some])
    fed_back = states_of(reasoner, some, config.batch_size)[:, :-1, -1]  # of position p, for p + 1
    thoughts = reasoner.feed_back(fed_back)  # (n_problems, n_thoughts, input_dim)
    others_mean = (thoughts.sum(0) - thoughts) / (len(thoughts) - 1)
    partners = swap_partners(n_steps, config.seed)
    said = {
        "own": answers_of(reasoner, some, config.batch_size),
        "mean": answers_of(reasoner, some, config.batch_size, others_mean),
        "swapped": answers_of(reasoner, some, config.batch_size, thoughts[partners]),
    }
    alone = answers_of(reasoner, some, 1)
    answers = torch.tensor([problem.answer for problem in some])
    right = {name: torch.tensor(list(map(last_number, texts))) == answers for name, texts in said.items()}
    return {
        "n_problems": len(some),
        "batch_size": config.batch_size,
        "all": {name: float(rows.float().mean()) for name, rows in right.items()},
        "differ_one_at_a_time": sum(one != batched for one, batched in zip(alone, said["own"], strict=True)),
        "same_answer_when_swapped": float((answers == answers[partners]).float().mean()),
        "by_steps": {
            str(steps): {"n": int((n_steps == steps).sum())}
            | {name: float(rows[n_steps == steps].float().mean()) for name, rows in right.items()}
            for steps in range(1, max_steps + 1)
        },
    }


def measure_probes(reasoner: LatentReasoner, config: MeasureConfig, max_steps: int) -> dict[str, Any]:
    """Probes of every layer x position for the value after each step, on problems of `max_steps` steps."""
    fitted, tested = (
        list(islice(problems(config.seed + 1, split, (max_steps,)), config.n_probe)) for split in ("train", "test")
    )
    states, states_test = (states_of(reasoner, some, config.batch_size) for some in (fitted, tested))
    values, values_test = (
        torch.tensor([[problem.start, *(step.value for step in problem.steps)] for problem in some])
        for some in (fitted, tested)
    )
    accuracy = [
        [
            [
                probe_accuracy(
                    states[:, position, layer], values[:, step], states_test[:, position, layer], values_test[:, step]
                )
                for step in range(max_steps + 1)
            ]
            for position in range(CODI_THOUGHTS + 1)
        ]
        for layer in range(reasoner.n_layers)
    ]
    commonest = [
        float((values_test[:, step] == values[:, step].mode().values).float().mean()) for step in range(max_steps + 1)
    ]
    return {"n_fitted": len(fitted), "n_tested": len(tested), "accuracy": accuracy, "commonest_value": commonest}


def accuracy_table(accuracy: dict[str, Any]) -> str:
    """Accuracy by number of steps as Markdown."""
    names = ("own", "mean", "swapped")
    rows = [
        [steps, f"{row['n']:,}", *(percent(row[name]) for name in names)] for steps, row in accuracy["by_steps"].items()
    ]
    rows.append(["all", f"{accuracy['n_problems']:,}", *(percent(accuracy["all"][name]) for name in names)])
    return table(["steps", "problems", "its own thoughts", "mean thoughts", "another problem's thoughts"], rows)


def best_probe_table(probes: dict[str, Any]) -> str:
    """By layer x position, the value that is read best and how often, as Markdown."""
    rows = []
    for layer, by_position in enumerate(probes["accuracy"]):
        best = [max(range(len(row)), key=row.__getitem__) for row in by_position]
        cells = [f"v{step} {row[step]:.0%}" for step, row in zip(best, by_position, strict=True)]
        rows.append([str(layer), *cells])
    return table(["layer", *(f"position {position}" for position in range(CODI_THOUGHTS + 1))], rows)


def probe_table(probes: dict[str, Any], layer: int) -> str:
    """How often each value is read from each position of a layer, as Markdown."""
    columns = list(zip(*probes["accuracy"][layer], strict=True))
    rows = [
        [f"v{step}", *(f"{share:.0%}" for share in shares), f"{probes['commonest_value'][step]:.0%}"]
        for step, shares in enumerate(columns)
    ]
    positions = [f"position {position}" for position in range(CODI_THOUGHTS + 1)]
    return table(["value", *positions, "always the commonest"], rows)


def falls(accuracy: dict[str, Any], name: str) -> str:
    """By how many points the accuracy falls at the two largest numbers of steps: '71 and 80'."""
    rows = list(accuracy["by_steps"].values())[-2:]
    return " and ".join(f"{100 * (row['own'] - row[name]):.0f}" for row in rows)


def readme(
    training: dict[str, Any], accuracy: dict[str, Any], probes: dict[str, Any], model: Path = DEFAULT_MODEL
) -> str:
    """The model's README, in Markdown."""
    settings, longest = training["settings"], training["settings"]["max_steps"]
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    last = len(probes["accuracy"]) - 1
    where = "" if model == DEFAULT_MODEL else f" --model {model} --n-problems {accuracy['n_problems']}"
    paragraphs = [
        "# An early state of the demo model" if "stop_at" in settings else "# The demo model",
        f"A LLaMA of {settings['layers']} layers, width {settings['width']} and {training['parameters']:,} parameters, "
        "which solves short arithmetic word problems in six continuous thoughts.",
        f"**Data**: problems of one to {longest} steps that `demo/problems.py` makes, fresh ones in every batch. "
        "**Training**: from a random start as CODI trains (arXiv 2502.21074), with the value after every step "
        "supervised as in SIM-CoT (arXiv 2509.20317); `demo/train_demo_model.py` says how. The model has fewer layers "
        "than a long problem has steps: it cannot answer in one pass over the question, but needs its thoughts.",
        f"```sh\npython demo/train_demo_model.py {flags}\npython demo/measure_demo_model.py{where}\n```",
        f"The training took {training['seconds'] / 60:.0f} minutes, {count(training['threads'], 'CPU thread')} of a "
        "shared server. The second command measured what follows and wrote this file; the numbers are in "
        f"`{MEASUREMENTS_FILE}`. `extract_activations.py --model {model}` and "
        f"`LatentReasoner.load('{model}')` load the model.",
        "## What it can do",
        "Problems of the test split, which shares none with the training split, in whatever words:",
        accuracy_table(accuracy),
        "*Mean thoughts*: each of the six is replaced by its mean over the other problems. *Another problem's "
        "thoughts*: all six come from another problem of as many steps; "
        f"{percent(accuracy['same_answer_when_swapped'])} of the partners have the same answer. "
        f"At {longest - 1} and {longest} steps accuracy falls by "
        f"{falls(accuracy, 'mean')} points with mean thoughts, by {falls(accuracy, 'swapped')} with another problem's.",
        f"Answered one at a time instead of {accuracy['batch_size']} together, {accuracy['differ_one_at_a_time']:,} of "
        f"{accuracy['n_problems']:,} answers come out otherwise.",
        "## What its thoughts hold",
        f"A linear probe (ridge regression onto which of the {MAX_VALUE} values it is), fitted on "
        f"{probes['n_fitted']:,} training problems of {longest} steps and tested on {probes['n_tested']:,} test "
        f"problems, reads the value after each step: v0 is the start, v{longest} the answer. By layer and position, "
        "the value that is read best, and how often it is read right:",
        best_probe_table(probes),
        f"All values from layer {last}, the last:",
        probe_table(probes, last),
    ]
    return "\n\n".join(paragraphs) + "\n"


def main() -> int:
    config = parse_config(MeasureConfig, __doc__ or "")
    if not (config.model / TRAINING_FILE).exists():
        raise InputError(f"{config.model} has no {TRAINING_FILE}: is it a folder that train_demo_model.py wrote?")
    training = read_json(config.model / TRAINING_FILE)
    reasoner = LatentReasoner.load(str(config.model))
    max_steps = training["settings"]["max_steps"]
    accuracy = measure_accuracy(reasoner, config, max_steps)
    probes = measure_probes(reasoner, config, max_steps)
    write_json(config.model / MEASUREMENTS_FILE, {"accuracy": accuracy, "probes": probes})
    write_bytes(config.model / "README.md", readme(training, accuracy, probes, config.model).encode())
    print(accuracy_table(accuracy))
    print(best_probe_table(probes))
    return 0


if __name__ == "__main__":
    run(main)
