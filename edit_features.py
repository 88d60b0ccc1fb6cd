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

from tqdm import tqdm

from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import only_writer
from thought_saes.common.flags import Selection, check_at_least, option, parse_config
from thought_saes.common.text import count, in_time
from thought_saes.downstream.config import LoopConfig
from thought_saes.downstream.edit_findings import EDITS_FILE
from thought_saes.downstream.edit_job import cells_left, forecast_seconds, make_plan, measure_position, why_no_swap
from thought_saes.downstream.edit_records import EditRecords
from thought_saes.downstream.job import (
    identity_of,
)


@dataclass(frozen=True, kw_only=True)
class EditsConfig(LoopConfig):
    latent_dim: int = option(1024, help="latent_dim of the SAEs")
    k: int = option(20, help="k of the SAEs")
    steps: Selection | None = option(None, help="steps whose values are swapped; by default p and p - 1 at position p")
    n_features: int = option(10, help="take out so many features told best, and as many of the busiest")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "latent_dim", "k", "n_features")


def main() -> int:
    config = parse_config(EditsConfig, __doc__ or "")
    _, reasoner, facts, cache, plan = config.load([config.latent_dim], [config.k], False, ("--latent-dim", "--k"))
    examples = plan.examples
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
