"""Where the batches of an extraction run: in this process, or in replicas on Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from thought_saes.activations.extraction import Model
from thought_saes.common.flags import require_package
from thought_saes.common.machine import peak_bytes
from thought_saes.models.reasoner import Batch, BatchResult, ModelFacts, Request
from thought_saes.models.source import ModelSource


class ThisProcess:
    """The model in this process."""

    replicas = 1

    def __init__(self, source: ModelSource) -> None:
        self.reasoner = source.load()

    def facts(self) -> ModelFacts:
        return self.reasoner.facts()

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        return [self.reasoner.tokenize(question) for question in questions]

    def run(self, batches: Sequence[Batch], request: Request) -> Iterator[BatchResult]:
        return (self.reasoner.run_batch(batch, request) for batch in batches)

    def peak_bytes(self) -> int:
        return peak_bytes(self.reasoner.model.device)


@contextmanager
def open_model(source: ModelSource, engine: str, ray_address: str, gpus_per_replica: float) -> Iterator[Model]:
    """The model. Raises InputError if it cannot be had."""
    if engine == "local":
        yield ThisProcess(source)
        return
    require_package("ray", "--engine ray")
    from thought_saes.engines.ray_cluster import cluster
    from thought_saes.engines.ray_extraction import Replicas

    with cluster(ray_address):
        yield Replicas(source, gpus_per_replica)
