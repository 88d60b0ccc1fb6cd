"""What a condition of a substitution costs, against the plain forward passes of the same shapes.

    python -m benchmarks.substitution_cost [--questions 64] [--position 3]      LLaMA-3.2-1B's shape, random weights
    python -m benchmarks.substitution_cost --model demo/model --dataset demo/run/test.jsonl

One cell, the last layer but one. Each condition is measured as `substitute_thoughts.py` does; every call of the model
is noted, and then repeated bare: the same numbers of rows and tokens, behind keys and values as many, and the same
products with the head. The ratio of the two is what substituting costs beyond the passes it needs. Bare passes and
conditions take turns, the best of `--rounds` counts.

Deliberately missing: the extraction of the activations, which here are random, and what the conditions score.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.gpu_sizes import PUBLISHED as LLAMA_1B
from benchmarks.gpu_sizes import wait_for
from benchmarks.random_model import random_questions, random_reasoner
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.activations.questions import read_questions
from thought_saes.activations.writer import CacheWriter
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_json
from thought_saes.common.flags import check_at_least, option, parse_config
from thought_saes.common.machine import choose_device
from thought_saes.common.text import table
from thought_saes.downstream.substitutes import Condition, Substitutes
from thought_saes.downstream.substitution import Batch, Own, run_conditions, unmodified
from thought_saes.models.hub import quiet_libraries
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.training.start import seeded_sae

N_ROWS = 400  # of the random activations


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    model: str | None = option(None, help="a model's folder; by default LLaMA-3.2-1B's shape with random weights")
    dataset: str | None = option(None, help="its questions; those of the random model are random")
    questions: int = option(64, help="questions, one batch")
    position: int = option(3, help="the thought that is replaced")
    latent_dim: int = option(512, help="features of the SAE")
    k_values: tuple[int, ...] = option((20,), help="k of the SAEs, and rank of the PCA")
    max_new_tokens: int = option(8, help="the longest answer")
    rounds: int = option(2, help="times that everything is measured")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    output: Path | None = option(None, help="JSON file for what is measured")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "questions", "latent_dim", "k_values", "max_new_tokens", "rounds")
        check_at_least(self, 0, "position")
        if (self.model is None) != (self.dataset is None):
            raise InputError("--model needs --dataset, and --dataset --model")


class Call(NamedTuple):
    """A pass through the backbone, or (`n_before` None) through the head alone."""

    n_rows: int
    n_tokens: int
    n_before: int | None  # keys and values that are there already


@contextmanager
def noted(reasoner: LatentReasoner) -> Iterator[list[Call]]:
    """Within, every call of the model is noted."""
    calls: list[Call] = []
    forward, logits = reasoner.forward, reasoner.logits

    def noting_forward(cache: DynamicCache, mask: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        before = cache.get_seq_length()
        calls.append(Call(len(mask), mask.shape[1] - before, before))
        return forward(cache, mask, position_ids, **inputs)

    def noting_logits(states: Tensor) -> Tensor:
        calls.append(Call(len(states), states.numel() // states.shape[-1] // len(states), None))
        return logits(states)

    reasoner.forward, reasoner.logits = noting_forward, noting_logits  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del reasoner.forward, reasoner.logits


@torch.no_grad()
def bare_seconds(reasoner: LatentReasoner, calls: list[Call]) -> float:
    """The time of the same passes with nothing around them; what they read is made before the clock starts."""
    model, seconds = reasoner.model, 0.0
    n_heads, width = reasoner.key_value_heads
    for call in calls:
        inputs = torch.randn(call.n_rows, call.n_tokens, reasoner.input_dim, device=model.device)
        if call.n_before is None:
            seconds += timed(model, partial(reasoner.logits, inputs))
            continue
        cache = DynamicCache(config=model.config)
        if call.n_before:
            for layer in range(reasoner.n_layers):
                held = torch.randn(call.n_rows, n_heads, call.n_before, width, device=model.device)
                cache.update(held, held.clone(), layer)
        mask = torch.ones(call.n_rows, call.n_before + call.n_tokens, dtype=torch.long, device=model.device)
        places = torch.arange(call.n_before, call.n_before + call.n_tokens, device=model.device)
        places = places.expand(call.n_rows, -1)
        seconds += timed(model, partial(reasoner.forward, cache, mask, places, inputs_embeds=inputs))
    return seconds


def timed(model: Any, work: Callable[[], object]) -> float:
    wait_for(model.device.type)
    started = time.perf_counter()
    work()
    wait_for(model.device.type)
    return time.perf_counter() - started


def make_cell(folder: Path, reasoner: LatentReasoner, cell: Cell, config: CostConfig) -> Substitutes:
    """Random activations of one cell, and SAEs of it that have seen nothing."""
    (folder / "activations").mkdir()
    writer = CacheWriter(
        folder / "activations",
        layers=[cell.layer],
        positions=[cell.position],
        examples=[{"id": row, "question": f"{row}", "answer": "0"} for row in range(N_ROWS)],
        input_dim=reasoner.input_dim,
        dtype="float32",
        description={},
        record={},
    )
    rows = np.random.default_rng(0).standard_normal((N_ROWS, 1, 1, reasoner.input_dim), dtype=np.float32)
    writer.write(range(N_ROWS), rows)
    writer.commit(N_ROWS)
    cache = ActivationCache(folder / "activations")
    (folder / "results").mkdir()
    for k in config.k_values:
        key = SaeKey(cell, config.latent_dim, k)
        sae = seeded_sae(reasoner.input_dim, key, seed=0)
        sae.config |= {"activations": cache.fingerprint(cell), "seed": 0}
        sae.save(checkpoint_path(folder / "results", key))
    return Substitutes(cache, folder / "results", cell, 0, reasoner.model.device)


def open_model(config: CostConfig) -> tuple[LatentReasoner, list[list[int]]]:
    """The model and the tokens of its questions. Raises InputError if there are too few."""
    device = choose_device(config.device)
    if config.model is None or config.dataset is None:
        shape = (LLAMA_1B.input_dim, LLAMA_1B.layers, LLAMA_1B.heads, LLAMA_1B.vocabulary)
        reasoner = random_reasoner(*shape, torch.float32, str(device))
        return reasoner, random_questions(LLAMA_1B.vocabulary, config.questions)
    reasoner = LatentReasoner.load(config.model).to(device)
    examples = read_questions(config.dataset, None, None, None, config.questions)
    if len(examples) < config.questions:
        raise InputError(f"{config.dataset} holds {len(examples)} questions, not {config.questions}")
    return reasoner, [reasoner.tokenize(example["question"]) for example in examples]


def measure(
    reasoner: LatentReasoner, batch: Batch, own: Own, made: Substitutes, some: list[Condition], config: CostConfig
) -> dict[str, Any]:
    """Conditions that run as one batch: seconds as they are and bare, and the tokens that were passed."""

    def conditions() -> None:
        run_conditions(reasoner, batch, own, {made.cell.position: made}, some, config.max_new_tokens)

    conditions()  # SAEs are read and principal components found once a cell, before the first
    with noted(reasoner) as calls:
        conditions()
    rounds = [(timed(reasoner.model, conditions), bare_seconds(reasoner, calls)) for _ in range(config.rounds)]
    seconds, bare = (min(times) for times in zip(*rounds, strict=True))
    n_tokens = sum(call.n_rows * call.n_tokens for call in calls if call.n_before is not None)
    return {
        "conditions": "all" if len(some) > 1 else some[0].name,
        "n_conditions": len(some),
        "passes": sum(call.n_before is not None for call in calls),
        "tokens": n_tokens,
        "seconds": seconds,
        "bare_seconds": bare,
        "ratio": seconds / bare,
        "tokens_per_second": n_tokens / seconds,
        "bare_tokens_per_second": n_tokens / bare,
    }


def main() -> int:
    config = parse_config(CostConfig, __doc__ or "")
    quiet_libraries()
    reasoner, token_ids = open_model(config)
    if config.position > reasoner.n_thoughts:
        raise InputError(f"--position {config.position}: the model has thoughts up to {reasoner.n_thoughts}")
    cell = Cell(max(0, reasoner.n_layers - 2), config.position)
    rows = list(range(len(token_ids)))
    batch = Batch(rows, token_ids, [None] * len(rows), [(row + 1) % N_ROWS for row in rows])
    each = [Condition("identity"), Condition("mean"), *(Condition("pca", None, k) for k in config.k_values)]
    each += [Condition("sae", config.latent_dim, k) for k in config.k_values]
    with TemporaryDirectory() as folder:
        made = make_cell(Path(folder), reasoner, cell, config)
        own = unmodified(reasoner, batch, config.position, config.max_new_tokens)
        groups = [[condition] for condition in each] + [each]
        measured = [measure(reasoner, batch, own, made, some, config) for some in groups]
    names = ("conditions", "passes", "tokens", "seconds", "bare_seconds", "ratio", "tokens_per_second")
    formats = ("s", "d", ",d", ".2f", ".2f", ".2f", ",.0f")
    shown = [[format(one[name], form) for name, form in zip(names, formats, strict=True)] for one in measured]
    print(table(list(names), shown))
    if config.output:
        facts = {name: value for name, value in asdict(config).items() if name != "output"}
        about: dict[str, Any] = {"config": facts, "versions": package_versions("torch", "transformers")}
        about |= {"threads": torch.get_num_threads(), "layer": cell.layer, "n_layers": reasoner.n_layers}
        write_json(config.output, about | {"measured": measured})
    return 0


if __name__ == "__main__":
    run(main)
