"""What the JSON files of a results folder hold."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta, defstruct, field

from thought_saes.common.schema import Count, Counted, Number, Record, Whole
from thought_saes.saes.formats import Measured
from thought_saes.saes.measures import FIGURES, Figure


class MetricsMetadata(Record):
    """Of which rows, and how trained. The original experiment wrote the first seven keys; ours adds its recipe."""

    position: Annotated[Count, Meta(description="thought position; 0 is the bot token")]
    layer: Annotated[Count, Meta(description="layer")]
    n_train: Annotated[Count | None, Meta(description="training rows")] = None
    n_val: Annotated[Count | None, Meta(description="validation rows")] = None
    input_dim: Annotated[Count | None, Meta(description="columns of the activations")] = None
    epochs: Annotated[Count | None, Meta(description="passes over the training rows")] = None
    batch_size: Annotated[Count | None, Meta(description="rows of a step")] = None
    lr: Annotated[Number | None, Meta(description="learning rate of Adam")] = None
    variant: Annotated[str | None, Meta(description="variant of the SAE; absent: the published one")] = None
    seed: Annotated[Whole | None, Meta(description="seed of the initial weights and of the batches")] = None
    activations: Annotated[str | None, Meta(description="fingerprint of the cell's rows and of the split")] = None
    position_0: Annotated[str, Meta(description="what position 0 is: bot token, or last question token")] = "bot token"
    backend: Annotated[str | None, Meta(description="what trained them: torch or fused, if all agree")] = None
    device: Annotated[str | None, Meta(description="where, if all agree")] = None
    versions: Annotated[dict[str, str] | None, Meta(description="packages, if all agree")] = None
    without_checkpoint: Annotated[list[Count] | None, Meta(description="k of the SAEs whose weights were not kept")] = (
        None
    )
    provenance: Annotated[
        dict[Counted, dict[str, Any]] | None, Meta(description="by k: backend, device, versions, commit and time")
    ] = None


def metric_field(figure: Figure) -> tuple[str, Any] | tuple[str, Any, None]:
    """A metric's key, as the files may hold it; only the published EV must be there."""
    if figure.name == "explained_variance":
        return figure.name, Annotated[Measured, Meta(description="the published EV")]
    return figure.name, Measured, None


ABOUT_METRICS = "Of one SAE; the README defines each. A value that is null, NaN or infinite is left out of every mean."
if TYPE_CHECKING:  # a checker does not see what is made of FIGURES
    Metrics = Any
else:
    fields = [metric_field(figure) for figure in FIGURES]
    Metrics = defstruct("Metrics", fields, bases=(Record,), module=__name__, namespace={"__doc__": ABOUT_METRICS})


class MetricsContent(Record):
    """The metrics of a cell's SAEs of one latent_dim. An SAE that no such file names is not finished."""

    file: ClassVar[str] = "results/grid_metrics_pos{p}_layer{l}_latent{latent_dim}.json"
    metadata: Annotated[MetricsMetadata, Meta(description="of which rows, and how trained")]
    results: Annotated[dict[Counted, dict[Counted, Metrics]], Meta(description="by latent_dim (one), then by k")]


class BaselineScores(Record):
    """How well the rows are told by something that was not trained as an SAE."""

    explained_variance: Measured = None
    fvu: Measured = None


class GaussianScores(Record):
    """An SAE trained on Gaussian rows of the cell's mean and covariance."""

    fvu: Measured = None
    pca_fvu: Measured = None


class BaselinesMetadata(Record):
    """Of which rows."""

    position: Annotated[Count | None, Meta(description="thought position")] = None
    layer: Annotated[Count | None, Meta(description="layer")] = None
    seed: Annotated[Whole | None, Meta(description="seed of the untrained SAEs")] = None
    activations: Annotated[str | None, Meta(description="fingerprint of the cell's rows and of the split")] = None


class BaselinesContent(Record):
    """What the SAEs of a cell are compared with, and what its rows are like."""

    file: ClassVar[str] = "results/baselines_pos{p}_layer{l}.json"
    metadata: Annotated[BaselinesMetadata, Meta(description="of which rows")]
    mean: Annotated[BaselineScores, Meta(description="predicting the training mean")]
    pca: Annotated[dict[Counted, BaselineScores], Meta(description="PCA, by its rank k")]
    untrained: Annotated[
        dict[Counted, dict[Counted, BaselineScores]], Meta(description="untrained SAEs, by latent_dim, then by k")
    ]
    gaussian: Annotated[
        dict[Counted, dict[Counted, GaussianScores]] | None, Meta(description="SAEs of Gaussian rows, likewise")
    ] = None
    gamma: Annotated[Measured, Meta(description="norm of the mean over norm of the standard deviation")] = None
    effective_rank: Annotated[Measured, Meta(description="effective rank of the covariance")] = None
    mean_norm: Annotated[Measured, Meta(description="mean norm of a row")] = None


class GridPlan(Record):
    """What the runs into the folder set out to train: it may be removed, and is then what is there."""

    file: ClassVar[str] = "results/grid_plan.json"
    layer: Annotated[list[Count], Meta(description="layers")] = field(default_factory=list)
    position: Annotated[list[Count], Meta(description="thought positions")] = field(default_factory=list)
    latent_dim: Annotated[list[Count], Meta(description="features of the SAEs")] = field(default_factory=list)
    k: Annotated[list[Count], Meta(description="latents kept per row")] = field(default_factory=list)
    model: Annotated[str | None, Meta(description="the model of the activations")] = None
    dataset: Annotated[str | None, Meta(description="their questions")] = None
    dataset_split: Annotated[str | None, Meta(description="the data set's part")] = None
    thought_projection: Annotated[bool | None, Meta(description="whether a projection stands between thoughts")] = None


class LastRun(Record):
    """What the last run of the whole grid into the folder took."""

    file: ClassVar[str] = "results/last_run.json"
    n_trained: Annotated[Count, Meta(description="SAEs trained")] = 0
    failures: Annotated[list[str] | None, Meta(description="what failed, a line each")] = None
    busy_seconds: Annotated[Number | None, Meta(description="seconds that workers had a task, summed")] = None
    train_seconds: Annotated[Number | None, Meta(description="of these, what the SAEs took to train")] = None
    wall_seconds: Annotated[Number, Meta(description="seconds from first to last")] = 0.0
    overhead: Annotated[Number | None, Meta(description="share of the time that workers had no task")] = None
    engine: Annotated[str | None, Meta(description="local or ray")] = None
    workers: Annotated[Count, Meta(description="workers")] = 1
    threads: Annotated[Count | None, Meta(description="threads of each")] = None
    device: Annotated[str | None, Meta(description="device")] = None
    backend: Annotated[str | None, Meta(description="torch, fused or auto")] = None
