"""An extraction: what is to run, what it takes, and the run, which resumes where an earlier one was left."""

import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from thought_saes.activations.answers import AnswerWriter
from thought_saes.activations.cell import Cell, cell_path
from thought_saes.activations.published import default_split
from thought_saes.activations.writer import CacheWriter, activation_bytes
from thought_saes.common.command_line import package_versions
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.common.flags import Selection
from thought_saes.common.machine import check_disk, free_bytes, there_already
from thought_saes.common.text import in_bytes, in_time
from thought_saes.models.reasoner import Batch, BatchResult, ModelFacts, Request

# Saving progress may take this share of the time.
SAVING_SHARE = 0.05
# A dry run times this many batches, from evenly spaced lengths, and the longest one.
CALIBRATION_BATCHES = 4
TOKENIZED_TOGETHER = 1000  # questions


class Extraction(Protocol):
    """What an extraction asks of its settings, as the flags of extract_activations.py name them."""

    @property
    def model(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def model_dtype(self) -> str: ...
    @property
    def thoughts(self) -> int | None: ...
    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def layers(self) -> Selection: ...
    @property
    def positions(self) -> Selection: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def activations(self) -> Path: ...
    @property
    def answers(self) -> bool: ...
    @property
    def max_new_tokens(self) -> int: ...


class Model(Protocol):
    """What runs the batches: the model in this process, or replicas of it on Ray."""

    @property
    def replicas(self) -> int: ...

    def facts(self) -> ModelFacts: ...

    def tokenize(self, questions: list[str]) -> list[list[int]]: ...

    def run(self, batches: Sequence[Batch], request: Request) -> Iterator[BatchResult]:
        """Of each batch, in their order."""

    def peak_bytes(self) -> int:
        """The most memory that one model with its batch has taken."""


def check_lengths(token_ids: Sequence["array[int]"], max_tokens: int | None, n_thoughts: int) -> None:
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

    request: Request
    token_ids: list["array[int]"]  # of each question, in data-set order
    order: list[int]  # rows, in the order of extraction

    def batches(self, batch_size: int, done: int = 0) -> list[list[int]]:
        """The rows of each batch that is left when the first `done` rows of the order are written."""
        return [self.order[start : start + batch_size] for start in range(done, len(self.order), batch_size)]

    def tokens(self, rows: Sequence[int]) -> Batch:
        return [self.token_ids[row].tolist() for row in rows]


def decide(config: Extraction, model: Model, facts: ModelFacts, examples: list[dict[str, Any]]) -> Job:
    """Raises InputError if the model has no such layers or positions, or cannot take a question."""
    layers = config.layers.resolve(range(facts.n_layers), f"layers of {config.model}")
    positions = config.positions.indices or tuple(range(facts.n_thoughts + 1))
    if facts.has_bot_token and max(positions) > facts.n_thoughts:
        kind = "a CODI model has" if config.thoughts is None else f"with --thoughts {config.thoughts} there are"
        raise InputError(f"{kind} positions 0-{facts.n_thoughts}, not {max(positions)}")
    token_ids = [
        array("i", tokens)
        for start in range(0, len(examples), TOKENIZED_TOGETHER)
        for tokens in model.tokenize([example["question"] for example in examples[start : start + TOKENIZED_TOGETHER]])
    ]
    check_lengths(token_ids, facts.max_tokens, max(positions))
    # Longest first: if the memory is too small, that shows at once.
    order = sorted(range(len(token_ids)), key=lambda row: (-len(token_ids[row]), row))
    return Job(Request(layers, positions, config.max_new_tokens if config.answers else None), token_ids, order)


def bytes_left(config: Extraction, job: Job, input_dim: int) -> int:
    """What the arrays still need of the disk; those of an unfinished run have all they need."""
    n_cells = len(job.request.layers) * len(job.request.positions)
    paths = (
        cell_path(config.activations, Cell(layer, position))
        for position in job.request.positions
        for layer in job.request.layers
    )
    return activation_bytes(len(job.order), input_dim, n_cells, config.dtype) - there_already(paths)


def check_room(config: Extraction, job: Job, input_dim: int) -> None:
    """Raises InputError if the disk is too small for the activations."""
    way_out = "take fewer --layers" if config.dtype == "float16" else "--dtype float16"
    check_disk(config.activations, bytes_left(config, job, input_dim), way_out)


def dry_run(config: Extraction, model: Model, facts: ModelFacts, job: Job) -> None:
    """Say what the extraction would write and take, from a few of its batches."""
    batches = job.batches(config.batch_size)
    longest, n_sampled = batches[0], CALIBRATION_BATCHES * model.replicas
    # Of every replica the first batch is slow.
    list(model.run([job.tokens(longest)] * model.replicas, job.request))
    sample = [batches[(2 * number + 1) * len(batches) // (2 * n_sampled)] for number in range(n_sampled)]
    started = time.perf_counter()
    list(model.run([job.tokens(rows) for rows in sample], job.request))
    seconds = (time.perf_counter() - started) * len(batches) / len(sample)
    n_rows, cells = len(job.order), len(job.request.layers) * len(job.request.positions)
    shortest, longest_length = (len(job.token_ids[job.order[end]]) for end in (-1, 0))
    print(
        f"rows: {n_rows:,} questions of {shortest} to {longest_length} tokens\n"
        f"cells: {cells:,} ({len(job.request.layers)} layers x {len(job.request.positions)} positions), each "
        f"{n_rows:,} x {facts.input_dim:,} {config.dtype}\n"
        f"disk: {in_bytes(activation_bytes(n_rows, facts.input_dim, cells, config.dtype))} in {config.activations}, "
        f"of which {in_bytes(bytes_left(config, job, facts.input_dim))} are not there yet; "
        f"{in_bytes(free_bytes(config.activations))} free\n"
        f"memory: {in_bytes(facts.n_bytes)} of weights; {in_bytes(model.peak_bytes())} at the longest batch, "
        f"on {facts.device}\n"
        f"time: about {in_time(seconds)} for {len(batches):,} batches of {config.batch_size}"
        + (f", on {model.replicas} replicas" if model.replicas > 1 else "")
    )


def extract(config: Extraction, model: Model, facts: ModelFacts, job: Job, examples: list[dict[str, Any]]) -> None:
    """Run every question through the model and write the cache, from where an earlier run left it."""
    with only_writer(config.activations):
        writer = CacheWriter(
            config.activations,
            layers=job.request.layers,
            positions=job.request.positions,
            examples=examples,
            input_dim=facts.input_dim,
            dtype=config.dtype,
            description={
                "model": config.model,
                "base_model": config.base_model,
                "lora_alpha": config.lora_alpha if config.base_model else None,
                # float32 is left out, as before there was a choice.
                **({"model_dtype": config.model_dtype} if config.model_dtype != "float32" else {}),
                # So is the model's own number of thoughts.
                **({"n_thoughts": config.thoughts} if config.thoughts is not None else {}),
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
        answers = None
        if config.answers:
            settings = {"max_new_tokens": config.max_new_tokens}
            if writer.metadata.setdefault("answers", settings) != settings:
                raise InputError(
                    f"{config.activations} holds answers of {writer.metadata['answers']}, not of {settings}: "
                    "choose another --activations"
                )
            answers = AnswerWriter(config.activations, job.order, writer.rows_done)
            if answers.rows_done:
                print(f"{config.activations} already has {answers.rows_done:,} of {len(examples):,} answers")
        run_batches(model, job, writer, answers, examples, config.batch_size)


def run_batches(
    model: Model,
    job: Job,
    writer: CacheWriter,
    answers: AnswerWriter | None,
    examples: list[dict[str, Any]],
    batch_size: int,
) -> None:
    """Run what is left. Answers that an earlier run did not ask for are caught up with first."""
    done, saved_at, saving_takes = writer.rows_done, time.monotonic(), 0.0
    if answers is not None:
        done = min(done, answers.rows_done)
    batches = job.batches(batch_size, done)
    with tqdm(total=len(job.order), initial=done, unit="question", smoothing=0.05, mininterval=0.5) as bar:
        for rows, result in zip(batches, model.run([job.tokens(rows) for rows in batches], job.request), strict=True):
            done += len(rows)
            if answers is not None and result.answers is not None and done > answers.rows_done:
                new = len(rows) - (done - answers.rows_done)
                answers.write(rows[new:], result.answers[new:], examples)
            if done > writer.rows_done:
                writer.write(rows, result.states)
            bar.update(len(rows))
            if time.monotonic() - saved_at > saving_takes / SAVING_SHARE or done == len(job.order):
                started = time.monotonic()
                writer.commit(max(done, writer.rows_done))
                saved_at = time.monotonic()
                saving_takes = saved_at - started
    if answers is not None:
        answers.finish()
