"""The flags of the scripts that edit a model's loop, and what they load and refuse before they measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.questions import read_questions
from thought_saes.common.flags import Selection, check_at_least, option
from thought_saes.downstream.job import (
    Plan,
    Settings,
    check_model,
    check_questions,
    check_saes,
    choose_grid,
)
from thought_saes.models.config import ModelConfig
from thought_saes.models.hub import quiet_libraries
from thought_saes.models.reasoner import LatentReasoner, ModelFacts
from thought_saes.models.source import ModelSource


class Loaded(NamedTuple):
    """What a script measures with."""

    source: ModelSource
    reasoner: LatentReasoner
    facts: ModelFacts
    cache: ActivationCache
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class LoopConfig(ModelConfig):
    """What `substitute_thoughts.py` and `edit_features.py` both take. The model is that of the activations."""

    dataset: str = option("gsm8k", help="a data set by name, of the hub, or a file of questions")
    split: str = option("test", help="split of a hub data set")
    question_column: str | None = option(None, help="the column that holds the questions (default: question)")
    answer_column: str | None = option(None, help="the column that holds the answers (default: answer)")
    limit: int | None = option(None, help="take the first so many questions only")
    results: Path = option(Path("results"), help="folder with the SAEs; what is measured is written there")
    activations: Path = option(Path("activations"), help="what the SAEs were trained on")
    layers: Selection = option(Selection("all", None), help="layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(Selection("all", None), help="positions: all, 3, 0-5 or 0,2,4")
    batch_size: int = option(64, help="questions that run together, each under many conditions")
    max_new_tokens: int = option(32, help="the longest answer")
    seed: int = option(0, help="seed of everything random, the resamples of questions included")
    allow_training_rows: bool = option(False, help="take questions that the SAEs were trained on, too")
    dry_run: bool = option(False, help="say what is left to measure and how long it would take, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "limit", "batch_size", "max_new_tokens")
        check_at_least(self, 0, "seed")

    def load(
        self,
        latent_dims: Sequence[int] | None,
        k_values: Sequence[int] | None,
        whole_layers: bool,
        flags: tuple[str, str] = ("--latent-dims", "--k-values"),
    ) -> Loaded:
        """The model and the plan; `flags` chose latent_dim and k, and None takes all that are there.

        Raises InputError if questions, model, activations and SAEs do not belong together, or some are missing.
        """
        quiet_libraries()
        cache = ActivationCache(self.activations)
        examples = read_questions(self.dataset, self.split, self.question_column, self.answer_column, self.limit)
        check_questions(cache, examples, self.dataset, self.split, self.allow_training_rows)
        source = self.source()
        if self.thoughts is None:
            source = source._replace(n_thoughts=cache.metadata.get("n_thoughts"))
        reasoner = source.load()
        facts = reasoner.facts()
        check_model(cache, facts, self.model)
        grid = choose_grid(
            self.results, cache, facts, self.layers, self.positions, latent_dims, k_values, whole_layers, flags
        )
        check_saes(cache, self.results, grid)
        settings = Settings(self.seed, self.max_new_tokens, self.batch_size)
        return Loaded(source, reasoner, facts, cache, Plan(self.activations, self.results, examples, settings, grid))
