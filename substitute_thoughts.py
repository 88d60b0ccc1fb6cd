"""Put an SAE's reconstruction back into the loop, and see whether the model still answers as before.

    python substitute_thoughts.py --model demo/model --dataset test.jsonl --activations activations/ --results results/

For every SAE of the chosen grid and for every control: accuracy, agreement with the unmodified answer, KL and
log-probability at the number, in `substitution.json` of the results folder, one record a condition. Regime `cell`
edits one layer at one position, `layer` one layer at every position of the activations. The file is whole after every
position; the same command resumes. `--engine ray` gives the positions to processes of a cluster. Deliberately missing:
sampling; questions that the SAEs were trained on, unless asked for.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.questions import read_questions
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import only_writer
from thought_saes.common.flags import (
    MOST_THREADS,
    Selection,
    check_at_least,
    check_at_most,
    check_ray_address,
    keep_once,
    option,
    parse_config,
)
from thought_saes.common.text import count, in_time
from thought_saes.downstream.engines import here, on_ray
from thought_saes.downstream.job import (
    Plan,
    Settings,
    check_model,
    check_questions,
    check_saes,
    choose_grid,
    forecast_seconds,
    identity_of,
    keys_left,
    units_of,
)
from thought_saes.downstream.records import SUBSTITUTION_FILE, Records
from thought_saes.models.reasoner import ModelSource, quiet_libraries


@dataclass(frozen=True)
class SubstitutionConfig:
    model: str = option(help="the model that the activations are of: hub id, folder or .gguf file")
    base_model: str | None = option(None, help="the model a CODI checkpoint was trained on: hub id or folder")
    lora_alpha: float = option(32.0, help="LoRA alpha of a CODI checkpoint, which its file does not tell")
    dataset: str = option("gsm8k", help="a data set by name, of the hub, or a file of questions")
    split: str = option("test", help="split of a hub data set")
    question_column: str | None = option(None, help="the column that holds the questions (default: question)")
    answer_column: str | None = option(None, help="the column that holds the answers (default: answer)")
    limit: int | None = option(None, help="take the first so many questions only")
    results: Path = option(Path("results"), help="folder with the SAEs; substitution.json is written there")
    activations: Path = option(Path("activations"), help="what the SAEs were trained on: mean and PCA come from it")
    regime: str = option("both", choices=("cell", "layer", "both"), help="edit one position, or all of a layer")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="positions of regime cell: all, 3, 0-5 or 0,2,4")
    k_values: tuple[int, ...] | None = option(None, help="k of the SAEs; by default all that are there")
    latent_dims: tuple[int, ...] | None = option(None, help="latent_dim of the SAEs; by default all that are there")
    batch_size: int = option(64, help="questions that run together, each under many conditions")
    max_new_tokens: int = option(32, help="the longest answer")
    seed: int = option(0, help="seed of the noise, of the other questions and of the resamples")
    allow_training_rows: bool = option(False, help="take questions that the SAEs were trained on, too")
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    threads: int | None = option(None, help="cores for a model on the CPU; by default all")
    engine: str = option("local", choices=("local", "ray"), help="local: this process; ray: processes of a cluster")
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")
    dry_run: bool = option(False, help="say what is left to measure and how long it would take, and stop")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "batch_size", "max_new_tokens", "threads")
        check_at_most(self, MOST_THREADS, "threads")
        check_at_least(self, 0, "seed")
        check_ray_address(self)
        keep_once(self, *(name for name in ("k_values", "latent_dims") if getattr(self, name) is not None))


def main() -> int:
    config = parse_config(SubstitutionConfig, __doc__ or "")
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
        config.latent_dims,
        config.k_values,
        config.regime != "cell",
    )
    check_saes(cache, config.results, grid)
    settings = Settings(config.seed, config.max_new_tokens, config.batch_size)
    plan = Plan(config.activations, config.results, examples, settings, grid)
    with only_writer(config.results):
        records = Records(config.results, identity_of(plan, facts, config.dataset, config.split))
        left = [(unit, keys) for unit in units_of(grid, config.regime) if (keys := keys_left(unit, plan, records))]
        n_left = sum(len(keys) for _, keys in left)
        print(f"{count(n_left, 'record')} of {len(examples):,} questions left, {len(records.records):,} there")
        if config.dry_run:
            print(f"time: about {in_time(forecast_seconds(reasoner, plan, left)) if left else '0 s'} on {facts.device}")
            return 0
        started = time.monotonic()
        with tqdm(total=n_left * len(examples), unit="answer", unit_scale=True, smoothing=0.05) as bar:
            if config.engine == "ray":
                measured = on_ray(config.ray_address, source, plan, left, bar.update)
            else:
                measured = here(reasoner, plan, left, bar.update)
            for fresh in measured:
                about = {"device": facts.device, "threads": facts.threads, "batch_size": config.batch_size}
                versions = package_versions("torch", "transformers", "numpy")
                seconds = round(time.monotonic() - started, 1)
                records.write(fresh, about | {"versions": versions, "seconds_of_last_run": seconds})
    print(f"{count(len(records.records), 'record')} in {config.results / SUBSTITUTION_FILE}")
    return 0


if __name__ == "__main__":
    run(main)
