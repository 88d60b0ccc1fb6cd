"""Look at the features of a grid of SAEs: which known concepts they tell, and pages to see each one.

    python interpret_features.py --activations activations/ --results results/ --layers 7-14 --positions 0-5
    python interpret_features.py --results results/seed0 results/seed1 --all-configurations

For every (feature, sign) half of the chosen SAEs: how often it fires and on which questions, and the best F1 for the
concepts known of the questions (the value and the operation of each step, the answer, any --concept-column), beside
the activation's dimensions, PCA, untrained SAEs, shuffled concepts and a linear probe. Writes features.parquet,
concepts.parquet and concept_scores.json, and index.html with a page a cell, which open from the disk without a server.
The pages also hold what is there of the model's answers, of substitution and of edits; with --model, lenses.
The same command resumes. Deliberately missing: names for features that no known concept fits.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from thought_saes.activations.cache import ActivationCache
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.common.flags import MOST_THREADS, Selection, check_at_least, check_at_most, option, parse_config
from thought_saes.downstream.beside import read_beside
from thought_saes.features.concepts import find_concepts
from thought_saes.features.explorer import write_explorer
from thought_saes.features.findings import best_finding, coverage_in_words
from thought_saes.features.interpret import choose_saes, join_parts, match_cells, score_cells
from thought_saes.models.config import LoadConfig
from thought_saes.results.names import SLICE_K, SLICE_LATENT_DIM
from thought_saes.results.store import Results


@dataclass(frozen=True, kw_only=True)
class InterpretConfig(LoadConfig):
    activations: Path = option(Path("activations"), help="folder with the activations that the SAEs were trained on")
    results: tuple[Path, ...] = option(
        (Path("results"),), help="folder with the checkpoints; further ones are other seeds, for matches alone"
    )
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="thought positions: all, 3, 0-5 or 0,2,4")
    k: int = option(SLICE_K, help="k of the SAEs that get a page")
    latent_dim: int = option(SLICE_LATENT_DIM, help="latent_dim of the SAEs that get a page")
    all_configurations: bool = option(False, help="score every latent_dim and k of a cell, not the page's alone")
    concept_column: tuple[str, ...] = option((), help="further columns of examples.jsonl whose values are concepts")
    model: str | None = option(None, help="the model of the activations, to look at directions through its lenses")
    seed: int = option(0, help="seed of the untrained SAEs where a checkpoint names none")
    workers: int = option(os.cpu_count() or 1, help="cells that are scored at a time, each on one core")
    output: Path | None = option(None, help="folder to write to; if not given, features/ in the results")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "k", "latent_dim", "workers")
        check_at_most(self, MOST_THREADS, "workers")


def main() -> int:
    config = parse_config(InterpretConfig, __doc__ or "")
    results, output = config.results[0], config.output or config.results[0] / "features"
    for folder in config.results:
        if not folder.is_dir():
            raise InputError(f"no results at {folder}: train_all_layers_positions.py writes them")
    cache = ActivationCache(config.activations)
    examples = cache.examples()
    concepts = find_concepts(examples, cache, config.concept_column)
    cells = cache.choose(config.layers, config.positions)
    beside = read_beside(results, cache)
    chosen = choose_saes(results, cells, config.latent_dim, config.k, config.all_configurations)
    lenses = None
    if config.model is not None:  # what these import takes longer than everything else
        from thought_saes.downstream.job import check_model
        from thought_saes.features.lenses import Lenses

        reasoner = config.source_of(config.model).load()
        check_model(cache, reasoner.facts(), config.model)
        lenses = Lenses(reasoner, cache, Results(results), chosen.latent_dim, chosen.k)
    with only_writer(output):
        parts = score_cells(cache, results, output, chosen, concepts, config.seed, config.workers)
        matches = match_cells(cache, config.results, chosen)
        facts = {
            "config": {name: str(value) for name, value in vars(config).items()},
            "versions": package_versions("numpy", "scipy", "pandas", "torch"),
            "page": {"latent_dim": chosen.latent_dim, "k": chosen.k},
            "concepts": len(concepts.names),
            "concepts_left_out": concepts.left_out,
            "families": concepts.families,
            "n_train": len(cache.split.train),
            "n_validation": len(cache.split.validation),
            "position_0": cache.position_0,
        }
        features, scores = join_parts(parts, matches, lenses, chosen, output, facts)
        index = write_explorer(output, features, scores, examples, beside)
    print(f"{coverage_in_words(scores)}\n{best_finding(features, scores, beside)}\nOpen {index} in a browser.")
    return 0


if __name__ == "__main__":
    run(main)
