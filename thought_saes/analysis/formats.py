"""What analysis_summary.json holds."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from thought_saes.common.schema import Count, Number, Record, Whole

Rows = list[dict[str, Any]]


class Best(Record):
    """The configuration of lowest error, the mean over its seeds; further keys are its other columns."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    latent_dim: Annotated[Count, Meta(description="features")]
    k: Annotated[Count, Meta(description="latents kept per row")]
    fvu: Annotated[Number | None, Meta(description="absent where the metrics' files have none")] = None


class LayerByError(Record):
    """One layer by error."""

    layer: Annotated[Count, Meta(description="layer")]
    best: Annotated[Best | None, Meta(description="of those better than the mean that have not collapsed")] = None
    best_few_dead: Annotated[Best | None, Meta(description="of these, among those with few dead features")] = None


class RankCorrelation(Record):
    """Spearman's, over configurations."""

    high_ev_low_fvu: Annotated[Number | None, Meta(description="of explained_variance with -fvu")] = None
    ev_its_floor: Annotated[Number | None, Meta(description="of it with that of predicting the mean")] = None


class ByError(Record):
    """What is judged by fvu, or by 1 - explained_variance where the metrics' files hold no fvu."""

    layers: Annotated[list[LayerByError], Meta(description="a layer each")]
    collapsed: Annotated[Count, Meta(description="SAEs of fewer than 2k features that ever fire")]
    rank_correlation: RankCorrelation
    better_than_pca: Annotated[Count | None, Meta(description="SAEs; null: there are no baselines")] = None
    no_better_than_the_mean: Annotated[Count | None, Meta(description="SAEs of an fvu of 1 or more")] = None
    off_k: Annotated[Count, Meta(description="SAEs whose L0 on validation is off k by over 5 %")] = 0


class AnalysisSummary(Record):
    """Every number that the terminal's tables show."""

    file: ClassVar[str] = "results/analysis_summary.json"
    total_saes: Annotated[Count, Meta(description="SAEs of all seeds")]
    by_error: ByError
    layers: Annotated[list[Count] | None, Meta(description="layers that are there")] = None
    positions: Annotated[list[Count] | None, Meta(description="thought positions")] = None
    k_values: Annotated[list[Count] | None, Meta(description="latents kept per row")] = None
    latent_dims: Annotated[list[Count] | None, Meta(description="features")] = None
    overall_stats: Annotated[dict[str, Any] | None, Meta(description="of each metric, over every SAE")] = None
    best_configs: Annotated[dict[str, Any] | None, Meta(description="SAEs of highest EV and of fewest dead")] = None
    seeds: Annotated[list[Whole] | None, Meta(description="seeds")] = None
    slice: Annotated[dict[str, Any] | None, Meta(description="the k and latent_dim of the effects")] = None
    layer_effects: Annotated[Rows | None, Meta(description="a layer each, at that k and latent_dim")] = None
    position_effects: Annotated[Rows | None, Meta(description="a position each, likewise")] = None
    k_effects: Annotated[Rows | None, Meta(description="a k each, at that latent_dim")] = None
    layer_position_matrix: Annotated[dict[str, Any] | None, Meta(description="metrics, layer x position")] = None
    recommended: Annotated[dict[str, Any] | None, Meta(description="by EV: overall and a layer each")] = None
    by_k: Annotated[Rows | None, Meta(description="what is concluded at each k")] = None
    position_0: Annotated[str, Meta(description="what position 0 is")] = "bot token"
    missing: Annotated[dict[str, Any] | None, Meta(description="planned SAEs that are not there")] = None
