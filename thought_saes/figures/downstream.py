"""Figures of what the model does with the SAEs' reconstructions, from the files of the results folders."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thought_saes.analysis.study import Study
from thought_saes.common.schema import Record, read_checked
from thought_saes.common.text import known
from thought_saes.downstream.formats import ErrorPredictionContent, SubstitutionContent, nearly_always_wrong
from thought_saes.figures.style import COLORS, MARKERS, SMALL, TEXT, NotRun, NotThere, k_axis, new_figure, plain_axes

GREY = "0.75"


def read(study: Study, file: str, model: type[Record]) -> dict[str, Any]:
    """Raises NotRun if no folder holds the file, DamagedFile if it is not what its model says."""
    for folder in study.folders:
        if (folder / file).exists():
            return read_checked(folder / file, model)
    raise NotRun(f"no folder holds {file}")


def of_regime(study: Study, regime: str) -> list[dict[str, Any]]:
    """The records of one regime that have an accuracy. Raises NotThere if there are none, or if it says nothing."""
    records = [r for r in read(study, "substitution.json", SubstitutionContent)["records"] if r["regime"] == regime]
    if not any(r["accuracy"] is not None for r in records):
        raise NotThere(f"substitution.json holds no accuracies of regime '{regime}'")
    if nearly_always_wrong(records):
        raise NotThere("the model's own answers are nearly always wrong: agreement and KL tell more than accuracy")
    return [r for r in records if r["accuracy"] is not None]


def accuracy_by_position(study: Study) -> Figure:
    """Accuracy when one position is replaced, by position: a row for each layer, a column for each k."""
    records = of_regime(study, "cell")
    layers = sorted({r["layer"] for r in records})
    k_values = sorted({r["k"] for r in records if r["k"]})
    if not k_values:
        raise NotThere("substitution.json holds no SAEs of regime 'cell'")
    width = max(r["latent_dim"] or 0 for r in records)
    figure = new_figure(
        0.9 + 1.6 * len(layers),
        "Accuracy with one thought replaced",
        f"by position; SAEs of latent_dim {width}; bars are intervals of 95 % over questions",
    )
    panels = figure.subplots(len(layers), len(k_values), sharex=True, sharey=True, squeeze=False)
    for row, layer in enumerate(layers):
        for axes, k in zip(panels[row], k_values, strict=True):
            some = [r for r in records if r["layer"] == layer]
            for place, (condition, latent_dim, its_k) in enumerate(
                (("sae", width, k), ("pca", None, k), ("mean", None, None))
            ):
                chosen = [
                    r for r in some if (r["condition"], r["latent_dim"], r["k"]) == (condition, latent_dim, its_k)
                ]
                with_bars(axes, "position", chosen, condition, place)
            plain_axes(axes, "position" if row == len(layers) - 1 else "", f"layer {layer}" if k == k_values[0] else "")
            if row == 0:
                axes.set_title(f"k {k}", fontsize=TEXT)
    panels[0][0].legend(fontsize=SMALL)
    return figure


def with_bars(axes: Axes, over: str, records: list[dict[str, Any]], name: str, place: int) -> None:
    """A line of accuracies with their intervals."""
    records = sorted(records, key=lambda r: r[over])
    middle = [r["accuracy"] for r in records]
    below = [max(0.0, r["accuracy"] - r["accuracy_interval"][0]) for r in records]
    above = [max(0.0, r["accuracy_interval"][1] - r["accuracy"]) for r in records]
    axes.errorbar(
        [r[over] for r in records],
        middle,
        [below, above],
        color=COLORS[place % len(COLORS)],
        marker=MARKERS[place],
        markersize=4,
        linewidth=1,
        label={"sae": "SAE", "pca": "PCA", "untrained": "untrained SAE"}.get(name, name.replace("_", " ")),
    )


def accuracy_by_k(study: Study) -> Figure:
    """Accuracy when a whole layer is replaced, against k, for SAEs and every control."""
    records = of_regime(study, "layer")
    layers = sorted({r["layer"] for r in records})
    width = max(r["latent_dim"] or 0 for r in records)
    figure = new_figure(
        3.6, "Accuracy with every thought replaced", f"SAEs of latent_dim {width}; intervals of 95 % over questions"
    )
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    names = ("sae", "pca", "untrained", "noise_isotropic", "noise_cell")
    for axes, layer in zip(panels, layers, strict=True):
        some = [r for r in records if r["layer"] == layer]
        for place, name in enumerate(names):
            chosen = [r for r in some if r["condition"] == name and r["latent_dim"] in (None, width)]
            with_bars(axes, "k", chosen, name, place)
        for name, style in (("own", "-"), ("mean", ":"), ("other_question", "--")):
            for level in [r["accuracy"] for r in some if r["condition"] == name][:1]:
                axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=name.replace("_", " "))
        plain_axes(axes, "k", "accuracy" if layer == layers[0] else "")
        if k_values := sorted({r["k"] for r in some if r["k"]}):
            k_axis(axes, k_values)
        axes.set_title(f"layer {layer}", fontsize=TEXT)
    panels[-1].legend(fontsize=SMALL)
    return figure


def accuracy_against_fvu(study: Study) -> Figure:
    """Does reconstruction predict use? Accuracy of every substitute of a cell against its fvu on the same questions."""
    records = of_regime(study, "cell")
    figure = new_figure(3.6, "Does reconstruction predict use?", "a point for each cell and substitute")
    axes = figure.subplots()
    for place, name in enumerate(("sae", "pca", "untrained", "noise_isotropic", "noise_cell", "mean")):
        some = [r for r in records if r["condition"] == name and r["fvu"] > 0]
        axes.scatter(
            [r["fvu"] for r in some],
            [r["accuracy"] for r in some],
            s=12,
            color=COLORS[place],
            marker=MARKERS[place],
            alpha=0.6,
            linewidths=0,
            label={"sae": "SAE", "pca": "PCA"}.get(name, name.replace("_", " ")),
        )
    axes.set_xscale("log")
    plain_axes(axes, "fvu on the questions (low is good)", "accuracy")
    axes.legend(fontsize=SMALL)
    return figure


def accuracy_change_by_position(study: Study) -> Figure:
    """Which thoughts matter: the change in accuracy when a cell's state becomes the mean; grey where it may be none."""
    records = [r for r in of_regime(study, "cell") if r["condition"] == "mean" and r["delta_accuracy"] is not None]
    if not records:
        raise NotThere("substitution.json holds no mean thoughts of regime 'cell'")
    layers = sorted({r["layer"] for r in records})
    figure = new_figure(
        3.2,
        "Which thoughts matter",
        "change in accuracy with the mean in a thought's place; grey: interval holds 0",
    )
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=True):
        some = sorted((r for r in records if r["layer"] == layer), key=lambda r: r["position"])
        for r in some:
            low, high = r["delta_accuracy_interval"]
            middle = r["delta_accuracy"]
            axes.bar(
                r["position"],
                100 * middle,
                yerr=[[100 * max(0.0, middle - low)], [100 * max(0.0, high - middle)]],
                color=GREY if low <= 0 <= high else COLORS[0],
                error_kw={"linewidth": 1},
            )
        plain_axes(axes, "position", "points" if layer == layers[0] else "")
        axes.set_title(f"layer {layer}", fontsize=TEXT)
    return figure


def auroc_against_fvu(study: Study) -> Figure:
    """Do SAEs that reconstruct better foretell errors better?"""
    content = read(study, "error_prediction.json", ErrorPredictionContent)
    records = [r for r in content["records"] if r["features"] == "sae" and known(r.get("fvu")) and r["auroc_interval"]]
    if not records:
        raise NotThere("error_prediction.json holds no SAEs")
    figure = new_figure(3.6, "Does fvu tell who foretells errors?", "a point for each SAE; bars: 95 % over questions")
    axes = figure.subplots()
    for place, k in enumerate(sorted({r["k"] for r in records})):
        some = [r for r in records if r["k"] == k]
        axes.errorbar(
            [r["fvu"] for r in some],
            [r["auroc"] for r in some],
            [
                [max(0.0, r["auroc"] - r["auroc_interval"][0]) for r in some],
                [max(0.0, r["auroc_interval"][1] - r["auroc"]) for r in some],
            ],
            color=COLORS[place % len(COLORS)],
            marker=MARKERS[place],
            markersize=4,
            linestyle="none",
            elinewidth=0.6,
            label=f"k {k}",
        )
    axes.axhline(
        content["baselines"]["auroc"], color="0.4", linestyle="--", linewidth=1, label="the model's own sureness"
    )
    axes.set_xscale("log")
    plain_axes(axes, "fvu on the test questions (low is good)", "AUROC of an error")
    figure.legend(loc="outside lower center", ncols=5, fontsize=SMALL)
    return figure


DOWNSTREAM = {
    "accuracy_by_position.png": accuracy_by_position,
    "accuracy_by_k.png": accuracy_by_k,
    "accuracy_against_fvu.png": accuracy_against_fvu,
    "accuracy_change_by_position.png": accuracy_change_by_position,
    "auroc_against_fvu.png": auroc_against_fvu,
}
