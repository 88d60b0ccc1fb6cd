"""The flags of every script that runs a model."""

from dataclasses import dataclass

from thought_saes.common.errors import InputError
from thought_saes.common.flags import MOST_THREADS, check_at_least, check_at_most, option
from thought_saes.models.layouts import LAYOUTS
from thought_saes.models.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How a model is loaded and run."""

    base_model: str | None = option(None, help="the model a CODI checkpoint was trained on: hub id or folder")
    lora_alpha: float = option(32.0, help="LoRA alpha of a CODI checkpoint, which its file does not tell")
    layout: str | None = option(
        None, choices=tuple(LAYOUTS), help="layout of a training checkpoint; by default found by its keys"
    )
    thoughts: int | None = option(None, help="thoughts to feed back; by default as many as the model is trained to")
    question_template: str | None = option(None, help="what the model reads, {question} for the question")
    trust_remote_code: bool = option(False, help="run code that the model's folder brings")
    model_dtype: str = option(
        "float32", choices=("float32", "bfloat16"), help="dtype of the weights; hidden states are float32 with either"
    )
    device: str = option("auto", help="auto (CUDA, then MPS, then CPU), or a torch device such as cuda:1")
    device_map: str | None = option(None, choices=("auto",), help="auto: spread the model over all GPUs")
    threads: int | None = option(None, help="cores for a model on the CPU; by default all. Rounding depends on it")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "threads", "thoughts")
        check_at_most(self, MOST_THREADS, "threads")
        if self.device_map and self.device != "auto":
            raise InputError("--device-map chooses the devices itself: leave --device out")

    def source_of(self, model: str) -> ModelSource:
        """How any process loads this model."""
        return ModelSource(
            model,
            self.base_model,
            self.lora_alpha,
            self.model_dtype,
            self.device_map,
            self.device,
            self.threads,
            self.layout,
            self.thoughts,
            self.question_template,
            self.trust_remote_code,
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LoadConfig):
    """Which model it is, and how it is loaded and run."""

    model: str = option(help="a CODI checkpoint or a causal LM: hub id, folder or .gguf file")

    def source(self) -> ModelSource:
        """How any process loads it."""
        return self.source_of(self.model)
