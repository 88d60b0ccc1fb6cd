"""What a checkpoint says beside its weights, and what a SAELens folder's config does."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta, defstruct, field

from thought_saes.common.schema import Count, Record, Size, Whole
from thought_saes.saes.measures import FIGURES
from thought_saes.saes.names import PUBLISHED

# NaN and infinity are values that were measured and are none: they are read, and left out of every mean.
Measured = float | None


class SaeConfig(Record):
    """Which SAE it is, and how it was trained: what the metrics file says of it too."""

    input_dim: Annotated[Size, Meta(description="columns of the activations")]
    latent_dim: Annotated[Size, Meta(description="features")]
    k: Annotated[Size, Meta(description="latents kept per row")]
    position: Annotated[Count | None, Meta(description="thought position; 0 is the bot token")] = None
    layer: Annotated[Count | None, Meta(description="layer")] = None
    variant: Annotated[str, Meta(description="variant of the SAE; absent: the published one")] = PUBLISHED
    seed: Annotated[Whole | None, Meta(description="seed of the initial weights and of the batches")] = None
    activations: Annotated[str | None, Meta(description="fingerprint of the cell's rows and of the split")] = None


ABOUT = "As in the metrics file; an SAE that is not trained has none."
if TYPE_CHECKING:  # a checker does not see what is made of FIGURES
    SaeMetrics = Any
else:
    fields_of_metrics = [(figure.name, Measured, None) for figure in FIGURES]
    SaeMetrics = defstruct(
        "SaeMetrics", fields_of_metrics, bases=(Record,), module=__name__, namespace={"__doc__": ABOUT}
    )


class CheckpointContent(Record):
    """An SAE, as `torch.load(weights_only=True)` reads it; beside these keys `model_state_dict`, the weights."""

    file: ClassVar[str] = "results/pos{p}_layer{l}_d{latent_dim}_k{k}.pt"
    config: SaeConfig
    metrics: Annotated[SaeMetrics, Meta(description="what it scored")] = field(default_factory=SaeMetrics)


class SaelensConfig(Record):
    """What is read of the config of an SAE that SAELens wrote, or that was exported for it."""

    file: ClassVar[str] = "cfg.json"
    architecture: str = "standard"
    k: Size | None = None
    activation_fn_str: str | None = None
    activation_fn_kwargs: dict[str, Any] | None = None
    apply_b_dec_to_input: bool = True
    rescale_acts_by_decoder_norm: bool = False
    metadata: dict[str, Any] | None = None
