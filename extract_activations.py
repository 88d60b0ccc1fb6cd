"""Extract a model's activations at every layer x thought position, for every question of a data set.

    python extract_activations.py --model zen-E/CODI-llama3.2-1b-Instruct \\
        --base-model meta-llama/Llama-3.2-1B-Instruct --dataset openai/gsm8k --split train --activations activations/

Questions run in batches of similar length, longest first. What a batch yields goes to the disk at once, so the
memory does not grow with the number of questions; the same command goes on where a killed one was. Deliberately
missing: generating answers.
"""

import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pandas as pd
import torch
import transformers
from tqdm import tqdm

from activation_cache import CacheWriter
from command_line import InputError, Selection, check_at_least, one_line, option, package_versions, parse_config, run
from devices import choose_device
from files import only_writer
from latent_reasoning import CODI_THOUGHTS, LatentReasoner

GSM8K = "openai/gsm8k"
# Saving progress may take this share of the time.
SAVING_SHARE = 0.05


@dataclass(frozen=True)
class ExtractConfig:
    model: str = option(help="a CODI checkpoint or a causal LM: hub id, folder or .gguf file")
    base_model: str | None = option(None, help="the model a CODI checkpoint was trained on: hub id or folder")
    lora_alpha: float = option(32.0, help="LoRA alpha of a CODI checkpoint, which its file does not tell")
    dataset: str = option(GSM8K, help="a hub data set, or a .jsonl, .json or .parquet file")
    split: str = option("train", help="split of a hub data set")
    question_column: str = option("question", help="the column that holds the questions")
    answer_column: str = option("answer", help="the column that holds the answers")
    limit: int | None = option(None, help="take the first so many questions only")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(
        Selection("0-5", tuple(range(6))), help="thought positions: all (0-6), 3, 0-5 or 0,2,4"
    )
    batch_size: int = option(16, help="questions that run together")
    dtype: str = option("float32", choices=("float32", "float16"), help="how the activations are stored")
    activations: Path = option(Path("activations"), help="folder to write to")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "limit")


def read_questions(config: ExtractConfig) -> list[dict[str, Any]]:
    """The data set's rows as {id, question, answer}, in order. Raises InputError if it cannot be read."""
    path = Path(config.dataset)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise InputError(f"no file {path}")
        table = read_table(path)
    else:
        if path.suffix and path.is_file():
            raise InputError(f"{path} is not a .jsonl, .json or .parquet file")
        name = "main" if config.dataset == GSM8K else None
        try:
            table = datasets.load_dataset(config.dataset, name, split=config.split).to_pandas()
        except (OSError, ValueError) as problem:
            reason = one_line(problem)[:200]
            raise InputError(f"the data set {config.dataset} cannot be loaded ({reason})") from problem
    if not len(table):
        raise InputError(f"the data set {config.dataset} is empty")
    for column in (config.question_column, config.answer_column):
        if column not in table.columns:
            raise InputError(
                f"{config.dataset} has no column '{column}'; it has {', '.join(map(str, table.columns)) or 'none'}"
            )
    table = table.head(config.limit) if config.limit else table
    questions, answers = table[config.question_column], table[config.answer_column]
    examples = []
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if not isinstance(question, str):
            raise InputError(f"row {row} of {config.dataset} has no text in '{config.question_column}'")
        answer = None if pd.isna(answer) is True else str(answer)
        try:
            f"{question}{answer}".encode()
        except UnicodeEncodeError as problem:  # half of a surrogate pair, which JSON can write
            raise InputError(f"row {row} of {config.dataset} is no valid Unicode ({problem.reason})") from problem
        examples.append({"id": row, "question": question, "answer": answer})
    return examples


def read_table(path: Path) -> pd.DataFrame:
    """A local data set, its values as they stand in the file. Raises InputError if it is damaged."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(read_lines(path, text))
    except ValueError as problem:  # of json, Unicode and parquet alike
        raise InputError(f"{path} cannot be read as {path.suffix[1:]} ({one_line(problem)[:200]})") from problem
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of records")
    return pd.DataFrame(rows, dtype=object)


def read_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The record on each line of `text`. Raises InputError with the number of a line that holds none."""
    for number, line in enumerate(text.split("\n"), start=1):  # JSON strings may hold what splitlines splits at
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as problem:
                raise InputError(f"line {number} of {path} is not readable JSON ({problem})") from problem
            if not isinstance(record, dict):
                raise InputError(f"line {number} of {path} is no JSON object")
            yield record


def tokenize(reasoner: LatentReasoner, questions: list[str], n_thoughts: int) -> list[list[int]]:
    """Token ids of each question. Raises InputError if one is empty or too long for the model."""
    token_ids = [reasoner.tokenize(question) for question in questions]
    for row, tokens in enumerate(token_ids):
        if not tokens:
            raise InputError(f"question {row} is empty")
        if reasoner.max_tokens and len(tokens) + n_thoughts > reasoner.max_tokens:
            raise InputError(
                f"question {row} has {len(tokens)} tokens; with {n_thoughts} thoughts the model takes at most "
                f"{reasoner.max_tokens - n_thoughts}"
            )
    return token_ids


def extract(config: ExtractConfig, reasoner: LatentReasoner, examples: list[dict[str, Any]]) -> None:
    """Run every question through the model and write the cache, from where an earlier run left it."""
    layers = config.layers.resolve(range(reasoner.n_layers), f"layers of {config.model}")
    positions = config.positions.indices or tuple(range(CODI_THOUGHTS + 1))
    if reasoner.bot_token_id is not None and max(positions) > CODI_THOUGHTS:
        raise InputError(f"a CODI model has positions 0-{CODI_THOUGHTS}, not {max(positions)}")
    token_ids = tokenize(reasoner, [example["question"] for example in examples], max(positions))
    with only_writer(config.activations):
        writer = CacheWriter(
            config.activations,
            layers=layers,
            positions=positions,
            examples=examples,
            input_dim=reasoner.input_dim,
            dtype=config.dtype,
            description={
                "model": config.model,
                "base_model": config.base_model,
                "lora_alpha": config.lora_alpha if config.base_model else None,
                "model_fingerprint": reasoner.fingerprint(),
                "dataset": config.dataset,
                "dataset_split": config.split,
                "position_0": "last question token" if reasoner.bot_token_id is None else "bot token",
                "thought_projection": reasoner.projection is not None,
            },
            record={
                "batch_size": config.batch_size,
                "device": str(reasoner.model.device),
                "versions": package_versions("torch", "transformers", "numpy", "datasets"),
            },
        )
        if writer.rows_done:
            print(f"{config.activations} already has {writer.rows_done:,} of {len(examples):,} questions")
        run_batches(reasoner, token_ids, writer, config.batch_size)


def run_batches(reasoner: LatentReasoner, token_ids: list[list[int]], writer: CacheWriter, batch_size: int) -> None:
    """Raises InputError if a batch is too large for the device's memory."""
    # Longest first: if the memory is too small, that shows at once.
    order = sorted(range(len(token_ids)), key=lambda row: (-len(token_ids[row]), row))
    done, saved_at, saving_takes = writer.rows_done, time.monotonic(), 0.0
    with tqdm(total=len(order), initial=done, unit="question", smoothing=0.05, mininterval=0.5) as bar:
        while done < len(order):
            rows = order[done : done + batch_size]
            try:
                states = reasoner.hidden_states([token_ids[row] for row in rows], writer.layers, writer.positions)
            except torch.OutOfMemoryError as problem:
                raise InputError(f"out of memory with {len(rows)} questions: lower --batch-size") from problem
            writer.write(rows, states.numpy())
            done += len(rows)
            bar.update(len(rows))
            if time.monotonic() - saved_at > saving_takes / SAVING_SHARE or done == len(order):
                started = time.monotonic()
                writer.commit(done)
                saved_at = time.monotonic()
                saving_takes = saved_at - started


def main() -> int:
    config = parse_config(ExtractConfig, __doc__ or "")
    for quiet in (transformers.logging, datasets.logging, huggingface_hub.logging):
        quiet.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of itself to itself
    device = choose_device(config.device)
    examples = read_questions(config)
    reasoner = LatentReasoner.load(config.model, config.base_model, config.lora_alpha).to(device)
    extract(config, reasoner, examples)
    print(f"{len(examples):,} questions in {config.activations}")
    return 0


if __name__ == "__main__":
    run(main)
