"""Ask whether thoughts foretell a wrong answer, and whether SAEs that reconstruct better foretell it better.

    python predict_errors.py --activations activations_test/ --training activations/ --results results/

Reads `answers.jsonl` beside the test activations, which `extract_activations.py --answers` writes. Probes on raw
activations, PCA, reconstructions, untrained and trained SAEs are judged out of fold against what the model's own
sureness tells. Writes `error_prediction.json` into the results folder. Deliberately missing: probes other than
logistic regression.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from thought_saes.activations.answers import read_answers
from thought_saes.activations.cache import ActivationCache
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer, write_json
from thought_saes.common.flags import MOST_THREADS, Selection, check_at_least, check_at_most, option, parse_config
from thought_saes.common.text import without_path
from thought_saes.downstream.error_prediction import evaluate, read_rows
from thought_saes.downstream.job import saes_there
from thought_saes.downstream.substitutes import Substitutes

ERRORS_FILE = "error_prediction.json"


@dataclass(frozen=True)
class ErrorsConfig:
    activations: Path = option(Path("activations_test"), help="activations of questions the SAEs were not trained on")
    training: Path = option(Path("activations"), help="what the SAEs were trained on: PCA is fitted there")
    results: Path = option(Path("results"), help="folder with the SAEs; error_prediction.json is written there")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="positions: all, 3, 0-5 or 0,2,4")
    k_values: tuple[int, ...] | None = option(None, help="k of the SAEs; by default all that are there")
    latent_dims: tuple[int, ...] | None = option(None, help="latent_dim of the SAEs; by default all that are there")
    repeats: int = option(5, help="divisions of the questions into five folds")
    seed: int = option(0, help="seed of the folds and of the resamples")
    workers: int = option(os.cpu_count() or 1, help="cells that are judged at a time, each on one core")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "repeats", "workers")
        check_at_most(self, MOST_THREADS, "workers")
        check_at_least(self, 0, "seed")


def main() -> int:
    config = parse_config(ErrorsConfig, __doc__ or "")
    cache, training = ActivationCache(config.activations), ActivationCache(config.training)
    if cache.input_dim != training.input_dim:
        raise InputError(f"{cache.folder} has {cache.input_dim} columns, {training.folder} {training.input_dim}")
    if cache.metadata.get("model_fingerprint") != training.metadata.get("model_fingerprint"):
        raise InputError(f"{cache.folder} and {training.folder} are of different models")
    saes = [key for key in saes_there(config.results) if key.cell in cache.cells]
    layers = config.layers.resolve(sorted({key.cell.layer for key in saes}), "layers of the SAEs")
    positions = config.positions.resolve(sorted({key.cell.position for key in saes}), "positions of the SAEs")
    saes = [
        key
        for key in saes
        if key.cell.layer in layers
        and key.cell.position in positions
        and key.k in (config.k_values or [key.k])
        and key.latent_dim in (config.latent_dims or [key.latent_dim])
    ]
    if len(saes) < 3:
        raise InputError(f"{len(saes)} SAEs are chosen: their rank correlation needs three at least")
    examples = cache.examples()
    rows = read_rows(examples, read_answers(cache.folder, cache.n_examples))
    n_cells = len({key.cell for key in saes})
    with only_writer(config.results), tqdm(total=n_cells, unit="cell") as bar:
        found = evaluate(
            cache,
            rows,
            lambda cell: Substitutes(training, config.results, cell, config.seed, torch.device("cpu")),
            saes,
            config.repeats,
            config.seed,
            config.workers,
            bar.update,
        )
        metadata = {
            "activations": without_path(config.activations),
            "model_fingerprint": cache.metadata.get("model_fingerprint"),
            "dataset": without_path(cache.metadata.get("dataset")),
            "repeats": config.repeats,
            "seed": config.seed,
            "versions": package_versions("scikit-learn", "torch", "numpy"),
        }
        write_json(config.results / ERRORS_FILE, {"metadata": metadata} | found)
    question = found["published_question"]["fvu_overall"]
    print(f"AUROC of the baselines {found['baselines']['auroc']:.3f}; of fvu with AUROC over SAEs: {question}")
    return 0


if __name__ == "__main__":
    run(main)
