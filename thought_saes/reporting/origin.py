"""Where a results folder's SAEs come from, as far as its files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thought_saes.common.text import without_path
from thought_saes.results.recipe import RECIPES, Recipe
from thought_saes.results.store import Results


class Origin(NamedTuple):
    """Where the SAEs come from, as far as the files say."""

    folders: list[str]
    model: str | None
    dataset: str | None
    thought_projection: bool | None  # whether a projection stands between a hidden state and the next input
    runs: dict[str, Any]  # by folder, the last_run.json of each that has one
    files: dict[str, int]  # how many of each kind the folders hold


IN_WORDS = {
    "published": "AbsTopK, rows as they are, PyTorch's own start, no revival of dead features",
    "improved": "AbsTopK, rows centred and scaled, a start from principal components and residual rows, "
    "a learning rate that falls to zero",
}
SAID_APART = ("epochs", "batch_size", "lr")  # beside the recipe, in every report
FILE_KINDS = {
    "pos{position}_layer{layer}_d{latent_dim}_k{k}.pt": "pos*_layer*_d*_k*.pt",
    "grid_metrics_pos{position}_layer{layer}_latent{latent_dim}.json": "grid_metrics_pos*_layer*_latent*.json",
    "baselines_pos{position}_layer{layer}.json": "baselines_pos*_layer*.json",
}


def read_origin(folders: Sequence[Path], names: Sequence[str]) -> Origin:
    """Raises InputError if what a run wrote about itself is damaged."""
    stores = [Results(folder) for folder in folders]
    about = next((plan for store in stores if (plan := store.plan())), None)
    if about is None:  # a cell alone plans no grid, and says in its own files what it is of
        about = next((dict(file.metadata) for store in stores for file in store.metrics_files()), {})
    runs = {name: run for name, store in zip(names, stores, strict=True) if (run := store.last_run()) is not None}
    files = {name: sum(len(list(folder.glob(glob))) for folder in folders) for name, glob in FILE_KINDS.items()}
    dataset = without_path(about.get("dataset"))
    split = about.get("dataset_split")
    return Origin(
        folders=list(names),
        model=without_path(about.get("model")),
        dataset=f"{dataset} ({split})" if dataset and split else dataset,
        thought_projection=about.get("thought_projection"),
        runs=runs,
        files=files,
    )


def setting(metadata: pd.DataFrame, name: str, form: str = "") -> str:
    """The values of one key of the metrics files' metadata."""
    if name not in metadata or metadata[name].isna().all():
        return "not recorded"
    return ", ".join(format(value, form) for value in sorted(metadata[name].dropna().unique()))


def recipe(metadata: pd.DataFrame) -> str:
    """The recipe in words: the named one that is nearest, and what differs from it. A folder holds one recipe."""
    said = Recipe.of(metadata.iloc[0].to_dict())
    differing = {
        name: [field for field in said.differences(known) if field not in SAID_APART] for name, known in RECIPES.items()
    }
    name = min(differing, key=lambda name: len(differing[name]))
    but = ", ".join(f"{field} {getattr(said, field)}" for field in differing[name])
    return f"{name} ({IN_WORDS[name]})" + (f", but {but}" if but else "")


def hardware(origin: Origin, metadata: pd.DataFrame) -> str:
    """What the last run into each folder ran on, or else what the metrics files say; 'not recorded' without either."""
    said = []
    for run in origin.runs.values():
        workers = f"{run['workers']} worker{'' if run['workers'] == 1 else 's'}" if "workers" in run else ""
        parts = [run.get("device_name") or run.get("device"), workers, run.get("backend")]
        said.append(", ".join(str(part) for part in parts if part))
    if not any(said):
        said = [setting(metadata, name) for name in ("device", "backend")]
        said = [", ".join(value for value in said if value != "not recorded")]
    return "; ".join(dict.fromkeys(filter(None, said))) or "not recorded"
