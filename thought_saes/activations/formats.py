"""What the files of a folder of activations hold, beside the arrays."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from thought_saes.common.schema import Count, Number, Record


class SplitRule(Record):
    """How the rows were divided."""

    rule: Annotated[str, Meta(description="the rule, in words")]
    seed: Annotated[Count, Meta(description="seed of the shuffling")]
    n_train: Annotated[Count, Meta(description="rows of the training set")]


class CacheMetadata(Record):
    """What was extracted, from what, and how much of it is there. A folder of another tool may lack the file."""

    file: ClassVar[str] = "activations/metadata.json"
    model: Annotated[str | None, Meta(description="the model, as it was named on the command line")] = None
    base_model: Annotated[str | None, Meta(description="the model that a CODI checkpoint adapts")] = None
    lora_alpha: Annotated[Number | None, Meta(description="scale of the adapter's weights")] = None
    model_dtype: Annotated[str, Meta(description="what the model computed in")] = "float32"
    model_fingerprint: Annotated[str | None, Meta(description="hash of the model's weights")] = None
    dataset: Annotated[str | None, Meta(description="the data set, as it was named on the command line")] = None
    dataset_split: Annotated[str | None, Meta(description="the data set's part")] = None
    position_0: Annotated[str, Meta(description="what position 0 is: bot token, or last question token")] = "bot token"
    thought_projection: Annotated[bool | None, Meta(description="whether a projection stands between two thoughts")] = (
        None
    )
    layers: Annotated[list[Count] | None, Meta(description="the layers of the arrays")] = None
    positions: Annotated[list[Count] | None, Meta(description="the thought positions of the arrays")] = None
    dtype: Annotated[str | None, Meta(description="type of the arrays' values")] = None
    n_examples: Annotated[Count | None, Meta(description="questions, which are the rows of every array")] = None
    input_dim: Annotated[Count | None, Meta(description="columns of every array")] = None
    examples_sha256: Annotated[str | None, Meta(description="hash of the questions")] = None
    split: Annotated[SplitRule | None, Meta(description="how the rows were divided")] = None
    rows_done: Annotated[
        Count | None, Meta(description="rows that are on the disk, in the order of extraction (longest question first)")
    ] = None
    batch_size: Annotated[Count | None, Meta(description="questions in a batch")] = None
    device: Annotated[str | None, Meta(description="where the model ran")] = None
    threads: Annotated[Count | None, Meta(description="threads of the CPU")] = None
    versions: Annotated[dict[str, str] | None, Meta(description="packages, by name")] = None


class SplitRows(Record):
    """The rows of each set, in the order of the experiment. No row is in both, and none twice."""

    file: ClassVar[str] = "activations/split.json"
    train: Annotated[list[Count], Meta(description="rows that SAEs are trained on")]
    validation: Annotated[list[Count], Meta(description="rows that they are measured on")]


class Example(Record):
    """A line for each row of the arrays, in their order."""

    file: ClassVar[str] = "activations/examples.jsonl"
    id: Annotated[Count, Meta(description="the row")]
    question: Annotated[str, Meta(description="the question's text")]
    answer: Annotated[str | None, Meta(description="the data set's answer, null if it has none")] = None
    split: Annotated[Literal["train", "validation"] | None, Meta(description="the row's set")] = None


class AnswerLine(Record):
    """What the model says to each question, a line a row of the arrays, in their order."""

    file: ClassVar[str] = "activations/answers.jsonl"
    id: Annotated[Count, Meta(description="the row")]
    text: Annotated[str, Meta(description="what the model says")]
    number: Annotated[Number | None, Meta(description="the last number of the text")]
    gold: Annotated[Number | None, Meta(description="the number of the data set's answer")]
    correct: Annotated[bool | None, Meta(description="whether the two are equal, null if the data set has no number")]
    entropy: Annotated[Number | None, Meta(description="of the next token, before the number's first one, in nats")]
    margin: Annotated[Number | None, Meta(description="probability of the likeliest token there, less the second's")]
    log_probability: Annotated[Number | None, Meta(description="of the number's tokens, natural logarithm")]

    def __post_init__(self) -> None:
        if self.number is not None and None in (self.entropy, self.margin, self.log_probability):
            raise ValueError("entropy, margin and log_probability of a number that is said are numbers")
        if self.gold is not None and self.correct is None:
            raise ValueError("correct is true or false where there is a gold number")
