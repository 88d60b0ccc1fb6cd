"""Extract a model's activations at every layer x thought position, for every question of a data set.

    python extract_activations.py --model zen-E/CODI-llama3.2-1b-Instruct \\
        --base-model meta-llama/Llama-3.2-1B-Instruct --dataset openai/gsm8k --split train --activations activations/

Questions run in batches of similar length, longest first. What a batch yields goes to the disk at once, so the
memory does not grow with the number of questions; the same command goes on where a killed one was. `--engine ray`
runs the same batches in replicas of the model, one for each GPU or node, and writes the same files. Deliberately
missing: generating answers.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datasets
import numpy as np
from tqdm import tqdm

from thought_saes.activations.cell import Cell, cell_path
from thought_saes.activations.published import PUBLISHED_SETS, default_split
from thought_saes.activations.questions import read_questions
from thought_saes.activations.writer import CacheWriter, activation_bytes
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.common.flags import (
    MOST_THREADS,
    Selection,
    check_at_least,
    check_at_most,
    check_positive,
    check_ray_address,
    option,
    parse_config,
    require_package,
)
from thought_saes.common.machine import check_disk, choose_device, free_bytes, peak_bytes, there_already
from thought_saes.common.text import in_bytes, in_time
from thought_saes.models.reasoner import CODI_THOUGHTS, Batch, ModelFacts, ModelSource, quiet_libraries

# Saving progress may take this share of the time.
SAVING_SHARE = 0.05
# A dry run times this many batches, from evenly spaced lengths, and the longest one.
CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class ExtractConfig:
    model: str = option(help="a CODI checkpoint or a causal LM: hub id, folder or .gguf file")
    base_model: str | None = option(None, help="the model a CODI checkpoint was trained on: hub id or folder")
    lora_alpha: float = option(32.0, help="LoRA alpha of a CODI checkpoint, which its file does not tell")
    dataset: str = option(
        "openai/gsm8k",
        help=f"{', '.join(PUBLISHED_SETS)}, any hub data set, or a .jsonl, .json, .parquet, .csv or .txt file",
    )
    subset: str | None = option(None, help="subset ('config') of a hub data set; a named set has its own")
    split: str | None = option(None, help="split of a hub data set; by default train, of multiarith test")
    question_column: str | None = option(None, help="the questions' column; by default 'question', or the named set's")
    answer_column: str | None = option(None, help="the answers' column; by default 'answer', or the named set's")
    limit: int | None = option(None, help="take the first so many questions only")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(
        Selection("0-5", tuple(range(6))), help="thought positions: all (0-6), 3, 0-5 or 0,2,4"
    )
    batch_size: int = option(16, help="questions that run together")
    dtype: str = option("float32", choices=("float32", "float16"), help="how the activations are stored")
    activations: Path = option(Path("activations"), help="folder to write to")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    model_dtype: str = option(
        "float32", choices=("float32", "bfloat16"), help="dtype of the weights; hidden states are float32 with either"
    )
    device_map: str | None = option(None, choices=("auto",), help="auto: spread the model over all GPUs")
    threads: int | None = option(None, help="cores for a model on the CPU; by default all. Rounding depends on it")
    engine: str = option("local", choices=("local", "ray"), help="local: one model in this process; ray: replicas")
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")
    gpus_per_replica: float = option(1.0, help="GPUs of each replica on Ray; below 1 replicas share one")
    dry_run: bool = option(False, help="say what would be written and how long it would take, and stop")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "limit", "threads")
        check_at_most(self, MOST_THREADS, "threads")
        check_positive(self, "gpus_per_replica")
        check_ray_address(self)
        if self.device_map and self.device != "auto":
            raise InputError("--device-map chooses the devices itself: leave --device out")

    def source(self) -> ModelSource:
        return ModelSource(
            self.model,
            self.base_model,
            self.lora_alpha,
            self.model_dtype,
            self.device_map,
            self.device,
            self.threads,
        )


class Model(Protocol):
    """What runs the batches: the model in this process, or replicas of it on Ray."""

    @property
    def replicas(self) -> int: ...

    def facts(self) -> ModelFacts: ...

    def tokenize(self, questions: list[str]) -> list[list[int]]: ...

    def states(self, batches: Sequence[Batch], layers: Sequence[int], positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Of each batch, in their order: (batch, n_positions, n_layers, input_dim) in float32."""

    def peak_bytes(self) -> int:
        """The most memory that one model with its batch has taken."""


class ThisProcess:
    """The model in this process."""

    replicas = 1

    def __init__(self, source: ModelSource) -> None:
        self.reasoner = source.load()

    def facts(self) -> ModelFacts:
        return self.reasoner.facts()

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        return [self.reasoner.tokenize(question) for question in questions]

    def states(self, batches: Sequence[Batch], layers: Sequence[int], positions: Sequence[int]) -> Iterator[np.ndarray]:
        return (self.reasoner.states_of_batch(batch, layers, positions) for batch in batches)

    def peak_bytes(self) -> int:
        return peak_bytes(self.reasoner.model.device)


@contextmanager
def open_model(config: ExtractConfig) -> Iterator[Model]:
    """The model, in this process or on Ray. Raises InputError if it cannot be had."""
    if config.engine == "local":
        yield ThisProcess(config.source())
        return
    require_package("ray", "--engine ray")
    from thought_saes.engines.ray_cluster import cluster
    from thought_saes.engines.ray_extraction import Replicas

    with cluster(config.ray_address):
        yield Replicas(config.source(), config.gpus_per_replica)


def check_lengths(token_ids: list[list[int]], max_tokens: int | None, n_thoughts: int) -> None:
    """Raises InputError if a question is empty, or too long for the model."""
    for row, tokens in enumerate(token_ids):
        if not tokens:
            raise InputError(f"question {row} is empty")
        if max_tokens and len(tokens) + n_thoughts > max_tokens:
            raise InputError(
                f"question {row} has {len(tokens)} tokens; with {n_thoughts} thoughts the model takes at most "
                f"{max_tokens - n_thoughts}"
            )


class Job(NamedTuple):
    """An extraction, decided on."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: list[list[int]]  # of each question, in data-set order
    order: list[int]  # rows, in the order of extraction

    def batches(self, batch_size: int, done: int = 0) -> list[list[int]]:
        """The rows of each batch that is left when the first `done` rows of the order are written."""
        return [self.order[start : start + batch_size] for start in range(done, len(self.order), batch_size)]

    def tokens(self, rows: Sequence[int]) -> Batch:
        return [self.token_ids[row] for row in rows]


def decide(config: ExtractConfig, model: Model, facts: ModelFacts, examples: list[dict[str, Any]]) -> Job:
    """Raises InputError if the model has no such layers or positions, or cannot take a question."""
    layers = config.layers.resolve(range(facts.n_layers), f"layers of {config.model}")
    positions = config.positions.indices or tuple(range(CODI_THOUGHTS + 1))
    if facts.has_bot_token and max(positions) > CODI_THOUGHTS:
        raise InputError(f"a CODI model has positions 0-{CODI_THOUGHTS}, not {max(positions)}")
    token_ids = model.tokenize([example["question"] for example in examples])
    check_lengths(token_ids, facts.max_tokens, max(positions))
    # Longest first: if the memory is too small, that shows at once.
    order = sorted(range(len(token_ids)), key=lambda row: (-len(token_ids[row]), row))
    return Job(layers, positions, token_ids, order)


def bytes_left(config: ExtractConfig, job: Job, input_dim: int) -> int:
    """What the arrays still need of the disk; those of an unfinished run have all they need."""
    n_cells = len(job.layers) * len(job.positions)
    paths = (cell_path(config.activations, Cell(layer, position)) for position in job.positions for layer in job.layers)
    return activation_bytes(len(job.order), input_dim, n_cells, config.dtype) - there_already(paths)


def check_room(config: ExtractConfig, job: Job, input_dim: int) -> None:
    """Raises InputError if the disk is too small for the activations."""
    way_out = "take fewer --layers" if config.dtype == "float16" else "--dtype float16"
    check_disk(config.activations, bytes_left(config, job, input_dim), way_out)


def dry_run(config: ExtractConfig, model: Model, facts: ModelFacts, job: Job) -> None:
    """Say what the extraction would write and take, from a few of its batches."""
    batches = job.batches(config.batch_size)
    longest, n_sampled = batches[0], CALIBRATION_BATCHES * model.replicas
    # Of every replica the first batch is slow.
    list(model.states([job.tokens(longest)] * model.replicas, job.layers, job.positions))
    sample = [batches[(2 * number + 1) * len(batches) // (2 * n_sampled)] for number in range(n_sampled)]
    started = time.perf_counter()
    list(model.states([job.tokens(rows) for rows in sample], job.layers, job.positions))
    seconds = (time.perf_counter() - started) * len(batches) / len(sample)
    n_rows, cells = len(job.order), len(job.layers) * len(job.positions)
    shortest, longest_length = (len(job.token_ids[job.order[end]]) for end in (-1, 0))
    print(
        f"rows: {n_rows:,} questions of {shortest} to {longest_length} tokens\n"
        f"cells: {cells:,} ({len(job.layers)} layers x {len(job.positions)} positions), each "
        f"{n_rows:,} x {facts.input_dim:,} {config.dtype}\n"
        f"disk: {in_bytes(activation_bytes(n_rows, facts.input_dim, cells, config.dtype))} in {config.activations}, "
        f"of which {in_bytes(bytes_left(config, job, facts.input_dim))} are not there yet; "
        f"{in_bytes(free_bytes(config.activations))} free\n"
        f"memory: {in_bytes(facts.n_bytes)} of weights; {in_bytes(model.peak_bytes())} at the longest batch, "
        f"on {facts.device}\n"
        f"time: about {in_time(seconds)} for {len(batches):,} batches of {config.batch_size}"
        + (f", on {model.replicas} replicas" if model.replicas > 1 else "")
    )


def extract(config: ExtractConfig, model: Model, facts: ModelFacts, job: Job, examples: list[dict[str, Any]]) -> None:
    """Run every question through the model and write the cache, from where an earlier run left it."""
    with only_writer(config.activations):
        writer = CacheWriter(
            config.activations,
            layers=job.layers,
            positions=job.positions,
            examples=examples,
            input_dim=facts.input_dim,
            dtype=config.dtype,
            description={
                "model": config.model,
                "base_model": config.base_model,
                "lora_alpha": config.lora_alpha if config.base_model else None,
                # float32 is left out, as before there was a choice.
                **({"model_dtype": config.model_dtype} if config.model_dtype != "float32" else {}),
                "model_fingerprint": facts.fingerprint,
                "dataset": config.dataset,
                "dataset_split": config.split or default_split(config.dataset),
                "position_0": "bot token" if facts.has_bot_token else "last question token",
                "thought_projection": facts.has_projection,
            },
            record={
                "batch_size": config.batch_size,
                "device": facts.device,
                "threads": facts.threads,
                "versions": package_versions("torch", "transformers", "numpy", "datasets"),
            },
        )
        if writer.rows_done:
            print(f"{config.activations} already has {writer.rows_done:,} of {len(examples):,} questions")
        run_batches(model, job, writer, config.batch_size)


def run_batches(model: Model, job: Job, writer: CacheWriter, batch_size: int) -> None:
    done, saved_at, saving_takes = writer.rows_done, time.monotonic(), 0.0
    batches = job.batches(batch_size, done)
    states = model.states([job.tokens(rows) for rows in batches], job.layers, job.positions)
    with tqdm(total=len(job.order), initial=done, unit="question", smoothing=0.05, mininterval=0.5) as bar:
        for rows, activations in zip(batches, states, strict=True):
            writer.write(rows, activations)
            done += len(rows)
            bar.update(len(rows))
            if time.monotonic() - saved_at > saving_takes / SAVING_SHARE or done == len(job.order):
                started = time.monotonic()
                writer.commit(done)
                saved_at = time.monotonic()
                saving_takes = saved_at - started


def main() -> int:
    config = parse_config(ExtractConfig, __doc__ or "")
    quiet_libraries()
    datasets.logging.set_verbosity_error()
    if config.engine == "local":
        choose_device(config.device)  # refused before anything is read
    examples = read_questions(
        config.dataset, config.split, config.question_column, config.answer_column, config.limit, config.subset
    )
    with open_model(config) as model:
        facts = model.facts()
        job = decide(config, model, facts, examples)
        if config.dry_run:
            dry_run(config, model, facts, job)
            check_room(config, job, facts.input_dim)
            return 0
        check_room(config, job, facts.input_dim)
        extract(config, model, facts, job, examples)
    print(f"{len(examples):,} questions in {config.activations}")
    return 0


if __name__ == "__main__":
    run(main)
