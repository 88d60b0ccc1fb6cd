"""Where a results folder's SAEs come from, as far as its files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thought_saes.common.files import read_json
from thought_saes.common.text import without_path
from thought_saes.results.names import last_run_path, plan_path


class Origin(NamedTuple):
    """Where the SAEs come from, as far as the files say."""

    folders: list[str]
    model: str | None
    dataset: str | None
    thought_projection: bool | None  # whether a projection stands between a hidden state and the next input
    runs: dict[str, Any]  # by folder, the last_run.json of each that has one
    files: dict[str, int]  # how many of each kind the folders hold


FILE_KINDS = {
    "pos{position}_layer{layer}_d{latent_dim}_k{k}.pt": "pos*_layer*_d*_k*.pt",
    "grid_metrics_pos{position}_layer{layer}_latent{latent_dim}.json": "grid_metrics_pos*_layer*_latent*.json",
    "baselines_pos{position}_layer{layer}.json": "baselines_pos*_layer*.json",
}


def read_origin(folders: Sequence[Path], names: Sequence[str]) -> Origin:
    """Raises InputError if what a run wrote about itself is damaged."""
    plans = [read_json(plan_path(folder)) for folder in folders if plan_path(folder).exists()]
    about = plans[0] if plans else {}
    runs = {
        name: read_json(path)
        for name, folder in zip(names, folders, strict=True)
        if (path := last_run_path(folder)).exists()
    }
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


# What every metrics file says about itself beside the recipe.
NOT_RECIPE = {
    *("position", "layer", "n_train", "n_val", "input_dim", "position_0", "device", "versions", "backend", "epochs"),
    *("batch_size", "lr", "seed", "activations", "file", "device_name", "commit", "when"),
}


def recipe(metadata: pd.DataFrame) -> str:
    """The settings of the training that the metrics files record beyond those of the published recipe."""
    more = [name for name in sorted(set(metadata) - NOT_RECIPE) if metadata[name].notna().any()]
    named = [f"{name} {', '.join(sorted({str(value) for value in metadata[name].dropna()}))}" for name in more]
    return "; ".join(named) or "published (AbsTopK, rows as they are, PyTorch's own start, no revival of dead features)"


def hardware(origin: Origin) -> str:
    """What the last run into each folder ran on; 'not recorded' where no folder says."""
    said = []
    for run in origin.runs.values():
        workers = f"{run['workers']} worker{'' if run['workers'] == 1 else 's'}" if "workers" in run else ""
        parts = [run.get("device_name") or run.get("device"), workers, run.get("backend")]
        said.append(", ".join(str(part) for part in parts if part))
    return "; ".join(dict.fromkeys(filter(None, said))) or "not recorded"
