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

from tqdm import tqdm

from thought_saes.common.command_line import package_versions, run
from thought_saes.common.files import only_writer
from thought_saes.common.flags import (
    Selection,
    check_ray_address,
    keep_once,
    option,
    parse_config,
)
from thought_saes.common.text import count, in_time
from thought_saes.downstream.config import LoopConfig
from thought_saes.downstream.engines import here, on_ray
from thought_saes.downstream.job import (
    forecast_seconds,
    identity_of,
    keys_left,
    units_of,
)
from thought_saes.downstream.records import SUBSTITUTION_FILE, Records


@dataclass(frozen=True, kw_only=True)
class SubstitutionConfig(LoopConfig):
    regime: str = option("both", choices=("cell", "layer", "both"), help="edit one position, or all of a layer")
    positions: Selection = option(Selection("all", None), help="positions of regime cell: all, 3, 0-5 or 0,2,4")
    k_values: tuple[int, ...] | None = option(None, help="k of the SAEs; by default all that are there")
    latent_dims: tuple[int, ...] | None = option(None, help="latent_dim of the SAEs; by default all that are there")
    engine: str = option("local", choices=("local", "ray"), help="local: this process; ray: processes of a cluster")
    ray_address: str = option("local", help="local: Ray on this machine only; auto, or host:port: a cluster's")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ray_address(self)
        keep_once(self, *(name for name in ("k_values", "latent_dims") if getattr(self, name) is not None))


def main() -> int:
    config = parse_config(SubstitutionConfig, __doc__ or "")
    source, reasoner, facts, _, plan = config.load(config.latent_dims, config.k_values, config.regime != "cell")
    examples = plan.examples
    with only_writer(config.results):
        records = Records(config.results, identity_of(plan, facts, config.dataset, config.split))
        left = [(unit, keys) for unit in units_of(plan.grid, config.regime) if (keys := keys_left(unit, plan, records))]
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
