"""Edit single features at one thought, and see whether the model's answer goes with them.

    python edit_features.py --model demo/model --dataset test.jsonl --activations activations/ --results results/ \\
        --latent-dim 512 --k 5

*Ablate*: a feature is taken out where it fires. *Swap*: the feature of a question's value after a step gives way to
that of another value, and the answer that would follow is known where the data set says by which operations its
answers come about (columns `start`, `operations`, `values`). Both stand beside controls and ceilings, in `edits.json`
of the results folder. Which feature tells what is chosen on the training rows; the questions must be others. The file
is whole after every position; the same command resumes. Deliberately missing: edits at several positions at once.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.questions import read_questions
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import only_writer
from thought_saes.common.flags import MOST_THREADS, Selection, check_at_least, check_at_most, option, parse_config
from thought_saes.common.text import count, in_time
from thought_saes.downstream.edit_findings import EDITS_FILE
from thought_saes.downstream.edit_job import cells_left, forecast_seconds, make_plan, measure_position, why_no_swap
from thought_saes.downstream.edit_records import EditRecords
from thought_saes.downstream.job import (
    Plan,
    Settings,
    check_model,
    check_questions,
    check_saes,
    choose_grid,
    identity_of,
)
from thought_saes.models.reasoner import ModelSource, quiet_libraries


@dataclass(frozen=True)
class EditsConfig:
    model: str = option(help="the model that the activations are of: hub id, folder or .gguf file")
    base_model: str | None = option(None, help="the model a CODI checkpoint was trained on: hub id or folder")
    lora_alpha: float = option(32.0, help="LoRA alpha of a CODI checkpoint, which its file does not tell")
    dataset: str = option("gsm8k", help="a data set by name, of the hub, or a file of questions")
    split: str = option("test", help="split of a hub data set")
    question_column: str | None = option(None, help="the column that holds the questions (default: question)")
    answer_column: str | None = option(None, help="the column that holds the answers (default: answer)")
    limit: int | None = option(None, help="take the first so many questions only")
    results: Path = option(Path("results"), help="folder with the SAEs; edits.json is written there")
    activations: Path = option(
        Path("activations"), help="what the SAEs were trained on: what features tell comes of it"
    )
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="positions: all, 3, 0-5 or 0,2,4")
    latent_dim: int = option(1024, help="latent_dim of the SAEs")
    k: int = option(20, help="k of the SAEs")
    steps: Selection | None = option(None, help="steps whose values are swapped; by default p and p - 1 at position p")
    n_features: int = option(10, help="take out so many features told best, and as many of the busiest")
    batch_size: int = option(64, help="questions that run together, each under many edits")
    max_new_tokens: int = option(32, help="the longest answer")
    seed: int = option(0, help="seed of the values swapped in, of the random directions and of the resamples")
    allow_training_rows: bool = option(False, help="take questions that the SAEs were trained on, too")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    threads: int | None = option(None, help="cores for a model on the CPU; by default all")
    dry_run: bool = option(False, help="say what is left to measure and how long it would take, and stop")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "latent_dim", "k", "n_features", "batch_size", "max_new_tokens", "threads")
        check_at_most(self, MOST_THREADS, "threads")
        check_at_least(self, 0, "seed")


def main() -> int:
    config = parse_config(EditsConfig, __doc__ or "")
    quiet_libraries()
    cache = ActivationCache(config.activations)
    examples = read_questions(config.dataset, config.split, config.question_column, config.answer_column, config.limit)
    check_questions(cache, examples, config.dataset, config.split, config.allow_training_rows)
    source = ModelSource(
        config.model, config.base_model, config.lora_alpha, "float32", None, config.device, config.threads
    )
    reasoner = source.load()
    facts = reasoner.facts()
    check_model(cache, facts, config.model)
    grid = choose_grid(
        config.results,
        cache,
        facts,
        config.layers,
        config.positions,
        [config.latent_dim],
        [config.k],
        False,
        ("--latent-dim", "--k"),
    )
    check_saes(cache, config.results, grid)
    settings = Settings(config.seed, config.max_new_tokens, config.batch_size)
    plan = Plan(config.activations, config.results, examples, settings, grid)
    edits = make_plan(plan, cache, config.steps, config.n_features)
    if reason := why_no_swap(edits, config.dataset):
        print(reason)
    with only_writer(config.results):
        identity = identity_of(plan, facts, config.dataset, config.split) | {"n_features": config.n_features}
        records = EditRecords(config.results, identity)
        left = cells_left(edits, records)
        n_left = sum(map(len, left.values()))
        print(f"{count(n_left, 'cell')} of {len(examples):,} questions left, {count(len(records), 'record')} there")
        if config.dry_run:
            seconds = forecast_seconds(reasoner, edits, left) if left else 0.0
            print(f"time: about {in_time(seconds)} on {facts.device}")
            return 0
        started = time.monotonic()
        with tqdm(total=n_left * len(examples), unit="question", unit_scale=True, smoothing=0.05) as bar:
            for some in left.values():
                ablations, swaps = measure_position(reasoner, edits, some, bar.update)
                about = {"device": facts.device, "threads": facts.threads, "batch_size": config.batch_size}
                versions = package_versions("torch", "transformers", "numpy")
                taken = round(time.monotonic() - started, 1)
                records.write(ablations, swaps, about | {"versions": versions, "seconds_of_last_run": taken})
    print(f"{count(len(records), 'record')} in {config.results / EDITS_FILE}")
    return 0


if __name__ == "__main__":
    run(main)
