"""The report of a run as Markdown, every number computed, in the section numbers of the published report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thought_saes.analysis.findings import conclude
from thought_saes.analysis.grid import describe_missing
from thought_saes.analysis.study import ERROR, EV, Study, best, better_than_pca, error_metric, has, rank_correlation
from thought_saes.common.files import read_json
from thought_saes.common.text import TIMES, compact, count, number, of, section, table, with_sd, without_path
from thought_saes.reporting.effects import analysis
from thought_saes.reporting.recommendations import recommended
from thought_saes.reporting.results import in_words, results
from thought_saes.reporting.sections import told
from thought_saes.results.names import AXES, plan_path


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
        if (path := folder / "last_run.json").exists()
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


def summary(study: Study, origin: Origin) -> str:
    """The first page."""
    saes, configs = study.saes, study.configs
    low = best(configs[configs["eligible"]])
    lines = []
    if study.has_fvu:
        lines.append(
            f"{of((saes[ERROR] >= 1).sum(), len(saes))} SAEs are no better than predicting the mean (fvu >= 1)."
        )
    else:
        lines.append(
            "These files hold no fvu: every 'best' below falls back to explained_variance, which predicting the mean "
            "alone can bring close to 1."
        )
    lines.append(f"{of(saes['collapsed'].sum(), len(saes))} SAEs have collapsed (fewer than 2k features ever fire).")
    if beat_pca := better_than_pca(saes):
        lines.append(f"{of(*beat_pca)} SAEs beat PCA of rank k by fvu.")
    if len(low):
        row = low.iloc[0]
        lines.append(
            f"Best configuration: {in_words(row)}, {study.error} {with_sd(row[ERROR], row[f'{ERROR}_sd'])}"
            + (" over seeds." if study.n_seeds > 1 else " (one seed: no error bar).")
        )
    else:
        lines.append("No configuration can be recommended.")
    if study.has_fvu:
        correlation = rank_correlation(configs[EV], -configs[ERROR])
        lines.append(
            f"The published ranking by {EV} agrees with that by fvu with a rank correlation of "
            f"{number(correlation, '.3f')}."
        )
    decomposition = study.variance[error_metric(saes)]
    if decomposition is not None:
        shares = decomposition.terms["share"]
        lines.append(
            f"Shares of the variance of {decomposition.metric}: "
            + ", ".join(f"{axis} {number(shares[axis], '.1%')}" for axis in AXES if axis in shares)
            + f", all else {number(1 - shares[[axis for axis in AXES if axis in shares]].sum(), '.1%')}."
        )
    return "\n".join(["## Summary", "", *(f"- {line}" for line in lines)])


def design(study: Study, origin: Origin) -> str:
    grid, metadata = study.grid, study.grid.metadata
    full = len(grid.table) + len(grid.missing)
    values = {axis: grid.values(axis) for axis in AXES}
    sizes = f" {TIMES} ".join(str(len(values[axis])) for axis in AXES)
    seeds = ", ".join(map(str, grid.seeds)) or "not recorded"
    rows = [
        ["model", origin.model or "not recorded in the results"],
        ["data set", origin.dataset or "not recorded in the results"],
        ["rows, training / validation", f"{setting(metadata, 'n_train', ',')} / {setting(metadata, 'n_val', ',')}"],
        ["input_dim", setting(metadata, "input_dim")],
        ["layers", compact(values["layer"])],
        ["positions", f"{compact(values['position'])} (0 is the {grid.position_0}, p the p-th continuous thought)"],
        ["latent_dim", ", ".join(map(str, values["latent_dim"]))],
        ["k", ", ".join(map(str, values["k"]))],
        ["seeds", seeds],
        ["SAEs", f"{sizes} {TIMES} {count(study.n_seeds, 'seed')} = {full:,}, of which {len(grid.table):,} are there"],
        [
            "training",
            f"{setting(metadata, 'epochs')} epochs, batch size {setting(metadata, 'batch_size')}, Adam, "
            f"lr {setting(metadata, 'lr')}",
        ],
    ]
    missing = f"Missing: {describe_missing(grid.missing)}. Means are over what is there." if grid.missing else ""
    motivation = section(
        "### 1.1 Motivation",
        "Which layer and position can be taken apart by a TopK SAE, at what k and latent_dim, and does one "
        "configuration do for all?",
    )
    scope = section(
        "### 1.2 Grid",
        f"The grid is {'in' if grid.missing else ''}complete: {of(len(grid.table), full)} SAEs.",
        table(["", ""], rows, words=2),
        missing,
    )
    error_bars = (
        f"± is the standard deviation over {study.n_seeds} seeds. Two quantities are *told apart* if they differ by "
        "more than the spread between seeds: the root of the sum of their squared standard deviations."
        if study.n_seeds > 1
        else "One seed: there are no error bars, and no difference can be judged against chance."
    )
    measure = (
        "`fvu` is the fraction of variance unexplained, 1 for predicting the mean: low is good. "
        if study.has_fvu
        else "These files hold no `fvu`; what needs it is left out, and 1 - explained_variance stands in for it. "
    )
    reading = section(
        "### 1.4 How to Read the Numbers",
        f"{measure}Every 'best' is by {study.error}, mean over seeds, of configurations that have not collapsed in any "
        "seed. `explained_variance` (EV) is the published metric; it counts offsets between dimensions as variance. "
        + error_bars,
    )
    return "\n\n".join(["## 1. Experiment Design", motivation, scope, cost(study, origin), reading])


def cost(study: Study, origin: Origin) -> str:
    seconds = study.saes["train_time_sec"].dropna()
    heading = "### 1.3 Computational Efficiency"
    if seconds.empty:
        return section(heading, "The files do not say how long training took.")
    finding = (
        f"Training took {number(seconds.sum() / 60, ',.1f')} minutes summed over {count(len(seconds), 'SAE')}, "
        f"{number(seconds.mean(), '.2f')} s each on average ({number(seconds.min(), '.2f')} to "
        f"{number(seconds.max(), '.2f')})."
    )
    by_size = [
        [str(size), str(len(group)), number(group.mean(), ".2f"), number(group.sum() / 60, ".1f")]
        for size, group in seconds.groupby(study.saes["latent_dim"])
    ]
    for folder, run in origin.runs.items():
        if "wall_seconds" in run:
            finding += (
                f" The last run into `{folder}` trained {count(run.get('n_trained', 0), 'SAE')} in "
                f"{number(run['wall_seconds'] / 60, '.1f')} minutes, "
                f"{count(run.get('workers', 1), 'worker')} on {run.get('device', 'an unrecorded device')}."
            )
    return section(heading, finding, table(["latent_dim", "SAEs", "seconds each", "minutes in all"], by_size))


def limitations(study: Study, origin: Origin) -> str:
    saes, metadata = study.saes, study.grid.metadata
    points = [
        f"**One data set**: {origin.dataset or 'its name is not recorded'}, "
        f"{setting(metadata, 'n_train', ',')} training rows.",
        f"**One model**: {origin.model or 'its name is not recorded'}.",
    ]
    if origin.thought_projection is False or study.grid.position_0 == "last question token":
        points.append(
            "**Untrained thoughts**, as far as is recorded: the last hidden state is fed back as it is. Unless the "
            "model was trained for that (as Coconut trains), what later positions hold says nothing about reasoning."
        )
    if study.n_seeds < 2:
        points.append("**One seed**: no error bars; no difference here is known to be larger than chance.")
    else:
        points.append(
            f"**{study.n_seeds} seeds** vary the initial weights and the order of the batches only, and a standard "
            f"deviation from {study.n_seeds} values is itself rough; the split of the data, the questions and the "
            "model are the same."
        )
    points.append(
        f"**The best of many**: the lowest of {len(study.configs):,} configurations is the lowest by some luck; it was "
        "chosen and measured on the same validation rows."
    )
    if (collapsed := int(saes["collapsed"].sum())) > 0:
        points.append(
            f"**Collapse**: {of(collapsed, len(saes))} SAEs fire nearly the same features on every row; "
            "means over all SAEs mix them in."
        )
    if (saes["latent_dim"] < 2 * saes["k"]).any():
        points.append("**Small latent_dim**: where latent_dim < 2k an SAE counts as collapsed whatever it does.")
    if not study.has_fvu:
        points.append(f"**No fvu**: {EV} cannot tell a good SAE from a constant prediction.")
    if not has(saes, "mean_explained_variance"):
        points.append("**No baselines**: the floor of EV, PCA and untrained SAEs are not compared.")
    if study.grid.missing:
        points.append(f"**Incomplete**: {len(study.grid.missing):,} SAEs are missing.")
    unknown = int(saes[ERROR].isna().sum())
    if unknown:
        points.append(f"**Not finite**: {count(unknown, 'SAE')} without a finite {study.error} are in no mean of it.")
    points += [
        "**One recipe**: AbsTopK SAEs, one learning rate and number of epochs, no handling of dead features.",
        "**Reconstruction only**: no downstream task, no look at what single features mean.",
        "**The last layer of a model is taken after its final norm**; its loss is on another scale, its fvu is not.",
    ]
    return section(
        "## 5. Limitations",
        f"{len(points)} limits follow from how this run was made:",
        "\n".join(f"{place}. {point}" for place, point in enumerate(points, start=1)),
    )


def future_work(study: Study) -> str:
    points = [
        "**Downstream use**: whether a lower fvu makes features better for a task was not measured.",
        "**What features mean**: no feature of a recommended configuration was looked at.",
        "**Other data and models**: nothing here says what carries over.",
        "**Other recipes**: "
        + (
            f"{of(study.saes['collapsed'].sum(), len(study.saes))} SAEs collapsed under this one; "
            if study.saes["collapsed"].any()
            else ""
        )
        + "subtracting the mean, revival of dead features and other learning rates were not tried.",
    ]
    return section(
        "## 6. Future Work",
        "Not measured in this run:",
        "\n".join(f"{n}. {point}" for n, point in enumerate(points, 1)),
    )


def appendix(study: Study, origin: Origin, written: Sequence[str], versions: dict[str, str]) -> str:
    folders = ", ".join(f"`{name}`" for name in origin.folders)
    rows = [[f"`{name}`", f"{number_there:,}"] for name, number_there in origin.files.items()]
    rows += [[f"`{name}`", "1"] for name in written]
    finding = (
        f"Read from {folders}; {count(len(study.grid.metadata), 'metrics file')} hold {count(len(study.saes), 'SAE')}."
    )
    made = "Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    return section("## Appendix: Files", finding, table(["file", "number"], rows), made)


def write_report(study: Study, origin: Origin, written: Sequence[str], versions: dict[str, str]) -> str:
    """The whole report. `written` names the files that the analysis writes."""
    parts = [
        "# TopK SAE Multi-Layer Experiment Report",
        summary(study, origin),
        design(study, origin),
        results(study),
        *(
            f"### {evaluation.number} {evaluation.title}\n\n{text}"
            for evaluation, text in told(study.folders, conclude(study))
        ),
        analysis(study),
        recommended(study),
        limitations(study, origin),
        future_work(study),
        appendix(study, origin, written, versions),
    ]
    return "\n\n---\n\n".join(parts) + "\n"
