"""Measure SAEs of one data set on the thoughts of another, beside those that were trained on the other.

    python evaluate_transfer.py --results results/ --from-activations activations/ \\
        --activations activations_svamp/ --against results_svamp/

Every metric of the SAEs in --results on the rows of --activations, the validation rows for all but `fvu_train` and
what counts dead features; the gap to the SAEs of --against; the mean and PCA of both data sets. Writes
`transfer.json`, or `transfer_NAME.json` with --name: the report sets several side by side. Deliberately missing:
several seeds at once (run it for each, with a name).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer, write_json
from thought_saes.common.flags import MOST_THREADS, Selection, check_at_least, check_at_most, option, parse_config
from thought_saes.common.schema import shown
from thought_saes.common.text import without_path
from thought_saes.downstream.transfer import TRANSFER_FILE, Transfer, measure_transfer


@dataclass(frozen=True)
class TransferConfig:
    activations: Path = option(help="thoughts of the other data set")
    results: Path = option(Path("results"), help="folder with the SAEs that are measured on them")
    against: Path | None = option(None, help="folder with SAEs of the other data set, for the gap")
    from_activations: Path | None = option(None, help="what the SAEs of --results were trained on: its mean and PCA")
    output: Path | None = option(None, help="folder where transfer.json is written; by default --results")
    name: str | None = option(None, help="write transfer_NAME.json: for several data sets or seeds")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="positions: all, 3, 0-5 or 0,2,4")
    k_values: tuple[int, ...] | None = option(None, help="k of the SAEs; by default all that are there")
    latent_dims: tuple[int, ...] | None = option(None, help="latent_dim of the SAEs; by default all that are there")
    seed: int = option(0, help="seed of the resamples of cells")
    threads: int | None = option(None, help="cores to compute on; by default all")

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch("[A-Za-z0-9-]+", self.name):
            raise InputError(f"--name is letters, digits and '-', not {shown(self.name)}")
        check_at_least(self, 0, "seed")
        check_at_least(self, 1, "threads")
        check_at_most(self, MOST_THREADS, "threads")


def main() -> int:
    config = parse_config(TransferConfig, __doc__ or "")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    training = ActivationCache(config.from_activations) if config.from_activations else None
    cache = ActivationCache(config.activations)
    transfer = Transfer(config.results, cache, config.against, training)
    keys = transfer.choose(config.layers, config.positions, config.latent_dims, config.k_values)
    if training is None:
        print("without --from-activations there is no mean and no PCA of the SAEs' own data set")
    output = config.output or config.results
    path = output / (f"transfer_{config.name}.json" if config.name else TRANSFER_FILE)
    with only_writer(output):
        with tqdm(total=len({key.cell for key in keys}), unit="cell") as bar:
            found = measure_transfer(transfer, keys, config.seed, bar.update)
        metadata = {
            "results": without_path(config.results),
            "activations": without_path(config.activations),
            "against": without_path(config.against),
            "from_activations": without_path(config.from_activations),
            "dataset": without_path(cache.metadata.get("dataset")),
            "model_fingerprint": cache.metadata.get("model_fingerprint"),
            "n_train_of_a": len(training.split.train) if training else None,
            "n_train_of_b": len(cache.split.train),
            "n_validation": len(cache.split.validation),
            "seed": config.seed,
            "versions": package_versions("torch", "numpy"),
        }
        write_json(path, {"metadata": metadata} | found)
    print(f"{len(keys)} SAEs measured on {cache.folder}: {path}")
    if found["gaps"]:
        whole = found["gaps"][0]
        low, high = whole["gap_interval"] or (float("nan"), float("nan"))
        print(
            f"fvu {whole['fvu']:.4f}, of its own SAEs {whole['fvu_own']:.4f}; "
            f"gap {whole['gap']:+.4f} ({low:+.4f} to {high:+.4f} over {whole['n_cells']} cells)"
        )
    return 0


if __name__ == "__main__":
    run(main)
