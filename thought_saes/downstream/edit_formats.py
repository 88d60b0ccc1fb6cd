"""What `edits.json` holds."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from thought_saes.common.schema import Count, Number, Record, Share
from thought_saes.downstream.formats import Interval
from thought_saes.models.layouts import CODI_THOUGHTS

Shares = tuple[Share, Share]
CEILING = "class_means"  # the condition that shows whether a swap can be seen at a cell
Conditions = Literal[
    "sae",
    "sae_long",
    "several",
    "pca",
    "coactive",
    "random",
    "random_long",
    "untrained",
    "class_means",
    "whole",
    "mean",
]


class EditsMetadata(Record):
    """Of which model, questions and settings all records are; the last five keys are of the last run."""

    model_fingerprint: Annotated[str, Meta(description="hash of the model's weights")]
    dataset: Annotated[str, Meta(description="the questions, as they were named on the command line")]
    dataset_split: Annotated[str, Meta(description="the data set's part")]
    n_questions: Annotated[Count, Meta(description="questions")]
    questions_sha256: Annotated[str, Meta(description="hash of their ids, texts and answers")]
    all_positions: Annotated[list[Count], Meta(description="positions of the activations")]
    seed: Annotated[Count, Meta(description="of everything random")]
    max_new_tokens: Annotated[Count, Meta(description="the longest answer")]
    n_features: Annotated[Count, Meta(description="features told best, and features busiest, that are taken out")]
    n_thoughts: Annotated[Count, Meta(description="thoughts before the answer")] = CODI_THOUGHTS
    device: Annotated[str | None, Meta(description="where the model ran")] = None
    threads: Annotated[Count | None, Meta(description="threads of the CPU")] = None
    batch_size: Annotated[Count | None, Meta(description="questions in a batch")] = None
    versions: Annotated[dict[str, str] | None, Meta(description="packages, by name")] = None
    seconds_of_last_run: Annotated[Number | None, Meta(description="seconds")] = None


class AblationRecord(Record):
    """One feature taken out where it fires, the SAE's error kept; means over the questions on which it fires.

    An interval holds the middle 95 % of 1,000 resamples of the questions. Null: it fires on none, or they say no
    number.
    """

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position; 0 is the bot token")]
    latent_dim: Annotated[Count, Meta(description="of the SAE")]
    k: Annotated[Count, Meta(description="of the SAE")]
    half: Annotated[str, Meta(description="the feature and its sign")]
    concept: Annotated[str | None, Meta(description="what it tells best, if it was chosen for that")]
    f1: Annotated[Share | None, Meta(description="how well, on the validation rows")]
    density: Annotated[Share, Meta(description="share of the training rows on which it fires")]
    n_questions: Annotated[Count, Meta(description="questions on which it fires")]
    right_to_wrong: Annotated[Count, Meta(description="answers that become wrong")]
    wrong_to_right: Annotated[Count, Meta(description="answers that become right")]
    p_value: Annotated[Share, Meta(description="exact McNemar test of the two")]
    length: Annotated[Number | None, Meta(description="of what is taken out")]
    agreement: Annotated[Share | None, Meta(description="share of the unmodified answers that stay")]
    agreement_interval: Shares | None
    kl: Annotated[Number | None, Meta(description="KL(unmodified || edited) at the number's first token, nats")]
    kl_interval: Interval | None
    log_probability_change: Annotated[Number | None, Meta(description="of the unmodified answer's number")]
    log_probability_change_interval: Interval | None
    random_agreement: Annotated[
        Share | None, Meta(description="agreement when a random direction of equal length is added instead")
    ]
    random_kl: Annotated[Number | None, Meta(description="KL, likewise")]
    kl_over_random_interval: Annotated[Interval | None, Meta(description="of kl - random_kl, question by question")]
    mean_agreement: Annotated[
        Share | None, Meta(description="agreement when the mean of the training rows takes the state's place")
    ]
    mean_kl: Annotated[Number | None, Meta(description="KL, likewise")]
    q_value: Annotated[Share | None, Meta(description="Benjamini and Hochberg over all features of the file")]
    sae: Annotated[str | None, Meta(description="hash of the checkpoint")] = None

    def __post_init__(self) -> None:
        both_or_none(self, "agreement", "kl", "log_probability_change")
        if self.kl_over_random_interval is not None and (self.kl is None or self.random_kl is None):
            raise ValueError("kl_over_random_interval needs kl and random_kl")


class SwapRecord(Record):
    """One condition of a swap: the questions' value after a step becomes another, whose answer is known.

    sae: one feature out, one in. sae_long: the same, made as long as `class_means`. several: `n_features` go from their
    mean with one value to that with the other.
    untrained: either, by the SAE as it started, made as long. pca: the difference of the two values' mean states along
    the `n_features` principal axes where it is largest. coactive: features that tell no value of the step, as long as
    `sae`. random, random_long: a random direction, as long as `sae` or as `class_means`. class_means: the whole
    difference of mean states. whole: the state of a training question with the other value. mean: of the training rows.
    """

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position; 0 is the bot token")]
    latent_dim: Annotated[Count, Meta(description="of the SAE")]
    k: Annotated[Count, Meta(description="of the SAE")]
    step: Annotated[Count, Meta(description="whose value is changed; 1 is the first")]
    condition: Annotated[Conditions, Meta(description="what is done")]
    n_features: Annotated[Count | None, Meta(description="features or axes that change; null: one feature, or none")]
    f1: Annotated[Share | None, Meta(description="how well features tell the values, a mean of validation F1")]
    n_questions: Annotated[Count, Meta(description="questions that the model answers right and that have the step")]
    n_with_probability: Annotated[
        Count, Meta(description="those whose two answers begin with different tokens, so that both have a probability")
    ]
    p_value: Annotated[
        Share | None, Meta(description="exact McNemar test of the counterfactual answers against `random_long`")
    ]
    length: Annotated[Number | None, Meta(description="mean of what is added to the state")]
    counterfactual: Annotated[Share | None, Meta(description="share that answers what the other value leads to")]
    counterfactual_interval: Shares | None
    original: Annotated[Share | None, Meta(description="share that answers as unmodified")]
    original_interval: Shares | None
    other: Annotated[Share | None, Meta(description="share that answers neither")]
    other_interval: Shares | None
    p_counterfactual: Annotated[
        Share | None, Meta(description="mean probability of the counterfactual number's first token")
    ]
    p_counterfactual_interval: Shares | None
    p_original: Annotated[Share | None, Meta(description="mean probability of the original number's")]
    p_original_interval: Shares | None
    q_value: Annotated[Share | None, Meta(description="Benjamini and Hochberg over the cells of a condition")]
    sae: Annotated[str | None, Meta(description="hash of the checkpoint")] = None

    def __post_init__(self) -> None:
        both_or_none(self, "counterfactual", "original", "other", "p_counterfactual", "p_original")
        if self.condition in ("several", "pca") and not self.n_features:
            raise ValueError(f"condition {self.condition} has n_features")
        if (self.counterfactual is None) != (self.n_questions == 0):
            raise ValueError("counterfactual is null exactly where n_questions is 0")


def both_or_none(record: Record, *names: str) -> None:
    """Raises ValueError if one of the means has no interval, or an interval no mean."""
    for name in names:
        if (getattr(record, name) is None) != (getattr(record, f"{name}_interval") is None):
            raise ValueError(f"{name} and {name}_interval are both there or both null")


class EditsContent(Record):
    """What single features do to the answer, written by `edit_features.py`."""

    file: ClassVar[str] = "results/edits.json"
    metadata: Annotated[EditsMetadata, Meta(description="of what")]
    ablations: Annotated[list[AblationRecord], Meta(description="features taken out")]
    swaps: Annotated[list[SwapRecord], Meta(description="values swapped; empty where no counterfactual is known")]
