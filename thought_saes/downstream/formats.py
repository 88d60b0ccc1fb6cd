"""What the files of a results folder hold that say what a model does with SAEs' reconstructions."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from thought_saes.common.schema import Change, Count, Counted, Number, Record, Share, Whole
from thought_saes.models.layouts import CODI_THOUGHTS
from thought_saes.saes.formats import Measured

LEAST_RIGHT = 0.1  # of the model's own answers
Interval = tuple[Number, Number]  # of 95 %


class SubstitutionMetadata(Record):
    """Whose answers to which questions; the first ones must be the same for records to stand in one file."""

    model_fingerprint: Annotated[str | None, Meta(description="hash of the model's weights")] = None
    dataset: Annotated[str | None, Meta(description="the questions, as they were named on the command line")] = None
    dataset_split: Annotated[str | None, Meta(description="the data set's part")] = None
    n_questions: Annotated[Count | None, Meta(description="questions")] = None
    questions_sha256: Annotated[str | None, Meta(description="hash of the questions")] = None
    all_positions: Annotated[list[Count] | None, Meta(description="positions that regime layer replaces")] = None
    n_thoughts: Annotated[Count, Meta(description="thoughts before the answer")] = CODI_THOUGHTS
    seed: Annotated[Whole | None, Meta(description="seed of noise, other questions and resamples")] = None
    max_new_tokens: Annotated[Count | None, Meta(description="the longest answer")] = None


class SubstitutionRecord(Record):
    """One condition at one place. A mean is null where no question has a value, and so is its interval."""

    regime: Annotated[str, Meta(description="cell: one position of a layer is replaced; layer: all of them")]
    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count | None, Meta(description="position, null in regime layer")]
    condition: Annotated[str, Meta(description="what takes the thought's place")]
    latent_dim: Annotated[Count | None, Meta(description="of the SAE, null where the condition has none")]
    k: Annotated[Count | None, Meta(description="of the SAE or rank of the PCA, null where there is none")]
    n_questions: Annotated[Count, Meta(description="questions")]
    accuracy: Annotated[Share | None, Meta(description="share of right answers")]
    accuracy_interval: tuple[Share, Share] | None
    delta_accuracy: Annotated[Change | None, Meta(description="accuracy less that of the unmodified model")]
    delta_accuracy_interval: tuple[Change, Change] | None
    kl: Annotated[Number | None, Meta(description="of the answer's next-token distributions, nats")]
    fvu: Annotated[Number, Meta(description="what the substitute leaves unexplained of these questions' thoughts")]
    p_value: Annotated[Share, Meta(description="McNemar's, exact")]
    q_value: Annotated[Share, Meta(description="of Benjamini and Hochberg over cells")]
    sae: Annotated[str | None, Meta(description="hash of the checkpoints that it depends on")] = None
    n_correct: Annotated[Count | None, Meta(description="right answers")] = None
    n_with_number: Annotated[Count | None, Meta(description="answers that say a number")] = None
    agreement: Annotated[Number | None, Meta(description="share of answers equal to the unmodified model's")] = None
    agreement_interval: Interval | None = None
    kl_interval: Interval | None = None
    kl_sd: Annotated[Number | None, Meta(description="standard deviation over questions")] = None
    log_probability_change: Annotated[Number | None, Meta(description="of the unmodified model's number")] = None
    log_probability_change_interval: Interval | None = None
    answered_anew: Annotated[Number | None, Meta(description="share of questions answered token by token")] = None
    right_to_wrong: Annotated[Count | None, Meta(description="answers that were right and are wrong")] = None
    wrong_to_right: Annotated[Count | None, Meta(description="answers that were wrong and are right")] = None
    accuracy_recovered: Annotated[Number | None, Meta(description="share of what the mean loses")] = None
    kl_recovered: Annotated[Number | None, Meta(description="likewise, of the mean's KL")] = None

    def __post_init__(self) -> None:
        if self.regime not in ("cell", "layer"):
            raise ValueError(f"regime is {self.regime[:40]!r}, not cell or layer")
        if (self.position is None) != (self.regime == "layer"):
            raise ValueError("position is null exactly in regime layer")
        if self.condition in ("sae", "untrained", "noise_isotropic", "noise_cell") and not (self.latent_dim and self.k):
            raise ValueError(f"condition {self.condition} has a latent_dim and a k")
        if self.condition == "pca" and not self.k:
            raise ValueError("condition pca has a k")
        for mean, interval in (("accuracy", self.accuracy_interval), ("delta_accuracy", self.delta_accuracy_interval)):
            if (getattr(self, mean) is None) != (interval is None):
                raise ValueError(f"{mean} and {mean}_interval are both there or both null")


class SubstitutionContent(Record):
    """What the model answers with something else in a thought's place."""

    file: ClassVar[str] = "results/substitution.json"
    metadata: Annotated[SubstitutionMetadata, Meta(description="of what")]
    records: Annotated[
        list[SubstitutionRecord], Meta(min_length=1, description="a condition at a cell, or at a whole layer, each")
    ]


def nearly_always_wrong(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether so few of the model's own answers are right that accuracy says nothing of what replaces a thought."""
    own = [record["accuracy"] for record in records if record["condition"] == "own"]
    return any(accuracy is not None and accuracy < LEAST_RIGHT for accuracy in own)


class Area(Record):
    """How well wrong answers are told from right ones, out of fold."""

    auroc: Annotated[Share, Meta(description="area under the ROC curve")]
    auroc_interval: tuple[Share, Share] | None


class ErrorRecord(Area):
    """Probes on one kind of features of one cell."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    features: Annotated[str, Meta(description="what is probed: raw, pca, sae, untrained, reconstruction")]
    latent_dim: Annotated[Count | None, Meta(description="of the SAE, null where there is none")]
    k: Annotated[Count | None, Meta(description="of the SAE or rank of the PCA, null where there is none")]
    delta_auroc: Annotated[Change, Meta(description="what they add to the baselines")]
    delta_auroc_interval: tuple[Change, Change] | None
    fvu: Annotated[Measured, Meta(description="of the SAE on these questions")] = None

    def __post_init__(self) -> None:
        if self.features == "sae" and not (self.latent_dim and self.k):
            raise ValueError("features sae have a latent_dim and a k")


class ChosenOnHalf(Record):
    """The AUROC of the SAE that is best on one half of the questions; means over divisions."""

    auroc_where_chosen: Annotated[Measured, Meta(description="on that half")]
    auroc: Annotated[Measured, Meta(description="on the other half")]
    auroc_of_the_median: Annotated[Measured, Meta(description="of the median SAE there")]


class Correlation(Record):
    """Spearman's rank correlation of a reconstruction measure with AUROC."""

    spearman: Annotated[Measured, Meta(description="null if too few differ")]
    interval: Interval | None


class PublishedQuestion(Record):
    """Whether SAEs that reconstruct better foretell errors better."""

    n_configurations: Annotated[Count, Meta(description="SAEs")]
    ceiling: Annotated[Number, Meta(description="what the AUROCs' own reliability allows")]
    fvu_overall: Annotated[Correlation, Meta(description="over all configurations")]
    fvu_within_cell: Correlation
    fvu_between_cells: Correlation
    fvu_within_k: Correlation
    explained_variance_overall: Correlation
    explained_variance_within_cell: Correlation
    explained_variance_between_cells: Correlation
    explained_variance_within_k: Correlation


class ErrorPredictionContent(Record):
    """Whether features foretell wrong answers."""

    file: ClassVar[str] = "results/error_prediction.json"
    n_questions: Annotated[Count, Meta(description="questions with a gold answer and a number said")]
    n_wrong: Annotated[Count, Meta(description="wrong answers among them")]
    baselines: Annotated[Area, Meta(description="of the model's own sureness and the question's length")]
    oracle_steps: Annotated[Area, Meta(description="of the number of worked steps")]
    records: Annotated[list[ErrorRecord], Meta(description="a kind of features of a cell each")]
    best_chosen_on_one_half: ChosenOnHalf
    published_question: PublishedQuestion


class TransferMetadata(Record):
    """Of what."""

    activations: Annotated[str | None, Meta(description="folder of the other data set's thoughts")]
    n_validation: Annotated[Count, Meta(description="rows of it that the SAEs are measured on")]


class Gap(Record):
    """The mean of fvu less the fvu of SAEs of that data set."""

    latent_dim: Annotated[Count | None, Meta(description="null with k: over all SAEs")]
    k: Count | None
    n_saes: Annotated[Count, Meta(description="SAEs")]
    n_cells: Annotated[Count, Meta(description="cells, which are resampled")]
    fvu: Annotated[Measured, Meta(description="of the SAEs, the mean")]
    fvu_own: Annotated[Measured, Meta(description="of that data set's SAEs, the mean")]
    gap: Annotated[Measured, Meta(description="the difference")]
    gap_interval: Interval | None


class OwnScores(Record):
    """The SAE of that data set on the same rows, with every other measure of a metrics file."""

    fvu: Measured
    feature_death_rate: Measured


class TransferRecord(Record):
    """An SAE on the other data set's thoughts, with every other measure of a metrics file."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    latent_dim: Annotated[Count, Meta(description="features of the SAE")]
    k: Annotated[Count, Meta(description="latents kept per row")]
    fvu: Measured
    l0_mean: Measured
    feature_death_rate: Measured
    fvu_at_home: Annotated[Measured, Meta(description="on the validation rows of its own data set")]
    own: OwnScores | None
    gap: Annotated[Measured, Meta(description="fvu less own.fvu")]


class Fvu(Record):
    """How much of the rows' variance is left unexplained."""

    fvu: Measured


class TransferBaselines(Record):
    """At one cell: the training mean and PCA of the SAEs' own data set, a, and of the other, b, on the rows of b."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    mean_of_a: Fvu | None
    mean_of_b: Fvu
    pca_of_a: Annotated[dict[Counted, Fvu] | None, Meta(description="by rank k")]
    pca_of_b: Annotated[dict[Counted, Fvu], Meta(description="by rank k")]


class TransferContent(Record):
    """SAEs of one data set on the thoughts of another."""

    file: ClassVar[str] = "results/transfer.json"
    metadata: TransferMetadata
    gaps: Annotated[list[Gap], Meta(description="over all SAEs, then of each configuration; empty: not compared")]
    records: Annotated[list[TransferRecord], Meta(min_length=1, description="an SAE each")]
    baselines: Annotated[list[TransferBaselines], Meta(description="a cell each")]

    def __post_init__(self) -> None:
        beside = {(one.layer, one.position): one for one in self.baselines}
        for record in self.records:
            one = beside.get((record.layer, record.position))
            tables = () if one is None else (one.pca_of_b,) if one.pca_of_a is None else (one.pca_of_a, one.pca_of_b)
            if not tables or any(str(record.k) not in by_k for by_k in tables):
                where = f"layer {record.layer}, position {record.position}"
                raise ValueError(f"baselines has no PCA of rank {record.k} at {where}")
