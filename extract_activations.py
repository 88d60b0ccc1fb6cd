"""Extract a model's activations at every layer x thought position, for every question of a data set.

    python extract_activations.py --model zen-E/CODI-llama3.2-1b-Instruct \\
        --base-model meta-llama/Llama-3.2-1B-Instruct --dataset openai/gsm8k --split train --activations activations/

Questions run in batches of similar length, longest first. What a batch yields goes to the disk at once, so the
memory does not grow with the number of questions; the same command goes on where a killed one was. `--engine ray`
runs the same batches in replicas of the model, one for each GPU or node, and writes the same files. With
`--answers` the model also answers every question. Deliberately missing: sampling.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets

from thought_saes.activations.extraction import check_room, decide, dry_run, extract
from thought_saes.activations.published import PUBLISHED_SETS
from thought_saes.activations.questions import read_questions
from thought_saes.common.command_line import run
from thought_saes.common.flags import (
    Selection,
    check_at_least,
    check_positive,
    check_ray_address,
    option,
    parse_config,
)
from thought_saes.common.machine import choose_device
from thought_saes.engines.extraction_models import open_model
from thought_saes.models.config import ModelConfig
from thought_saes.models.hub import quiet_libraries


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ModelConfig):
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
    answers: bool = option(False, help="write what the model answers to answers.jsonl, too")
    max_new_tokens: int = option(32, help="longest answer, in tokens")
    dtype: str = option("float32", choices=("float32", "float16"), help="how the activations are stored")
    activations: Path = option(Path("activations"), help="folder to write to")
    engine: str = option("local", choices=("local", "ray"), help="local: one model in this process; ray: replicas")
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")
    gpus_per_replica: float = option(1.0, help="GPUs of each replica on Ray; below 1 replicas share one")
    dry_run: bool = option(False, help="say what would be written and how long it would take, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "batch_size", "limit", "max_new_tokens")
        check_positive(self, "gpus_per_replica")
        check_ray_address(self)


def main() -> int:
    config = parse_config(ExtractConfig, __doc__ or "")
    quiet_libraries()
    datasets.logging.set_verbosity_error()
    if config.engine == "local":
        choose_device(config.device)  # refused before anything is read
    examples = read_questions(
        config.dataset, config.split, config.question_column, config.answer_column, config.limit, config.subset
    )
    with open_model(config.source(), config.engine, config.ray_address, config.gpus_per_replica) as model:
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
