"""Replicas of a model on Ray: batches go to whichever is free, and their results come back in order.

A batch runs whole in one replica, so it comes out as it would in a single process with as many threads.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from thought_saes.common.errors import InputError
from thought_saes.common.machine import peak_bytes
from thought_saes.engines.ray_cluster import RETRIES, Share, answer, check_fits, nodes, takes_gpu, why_died
from thought_saes.models.reasoner import Batch, BatchResult, ModelFacts, Request
from thought_saes.models.source import ModelSource

# Batches that a replica has been given: one in work, and one so that it need not wait for the main process.
GIVEN = 2
# Batches that are done but whose turn has not come, for each replica: they lie in the object store.
AHEAD = 2


class Replica:
    """One model, on its GPUs or cores."""

    def load(self, source: ModelSource) -> ModelFacts:
        self.reasoner = source.load()
        return self.reasoner.facts()

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        return [self.reasoner.tokenize(question) for question in questions]

    def run(self, batch: Batch, request: Request) -> BatchResult:
        return self.reasoner.run_batch(batch, request)

    def peak_bytes(self) -> int:
        return peak_bytes(self.reasoner.model.device)


class Replicas:
    """As many replicas as the cluster has room for; `extraction.Model`.

    Raises InputError if it has room for none, if a model cannot be loaded, or if not all load the same.
    """

    def __init__(self, source: ModelSource, gpus_per_replica: float) -> None:
        on_gpu = takes_gpu(source.device)
        threads = source.threads or int(min(resources.get("CPU", 1) for resources in nodes()))
        share = Share(cpus=0, gpus=gpus_per_replica) if on_gpu else Share(cpus=threads, gpus=0)
        check_fits(share)
        source = source.absolute()
        if not on_gpu:
            source = source._replace(device="cpu", threads=threads)
        actor: Any = ray.remote(max_restarts=0, **share.options())(Replica)
        self.living = [actor.remote() for _ in range(share.fits())]
        loaded = self._of_all("load", source)
        if different := {facts.fingerprint for facts in loaded} - {loaded[0].fingerprint}:
            raise InputError(f"{source.name} is not the same model on every node: {loaded[0].fingerprint}, {different}")
        self._facts: ModelFacts = loaded[0]

    def _of_all(self, method: str, *words: Any) -> list[Any]:
        try:
            return [answer(ref) for ref in [getattr(replica, method).remote(*words) for replica in self.living]]
        except RayError as problem:
            raise InputError(f"a replica of the model died ({why_died(problem)})") from problem

    @property
    def replicas(self) -> int:
        return len(self.living)

    def facts(self) -> ModelFacts:
        return self._facts

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        return answer(self.living[0].tokenize.remote(questions))

    def peak_bytes(self) -> int:
        return max(self._of_all("peak_bytes"))

    def run(self, batches: Sequence[Batch], request: Request) -> Iterator[BatchResult]:
        """Of each batch, in their order.

        The batches of a replica that dies go to the others. Raises InputError if none is left, or if a batch has
        been the end of several.
        """
        waiting = deque(range(len(batches)))
        running: dict[Any, tuple[int, Any]] = {}  # the number of the batch, and who has it
        done: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        for turn in range(len(batches)):
            while turn not in done:
                given = Counter(replica for _, replica in running.values())
                for replica in self.living:
                    while waiting and given[replica] < GIVEN and waiting[0] < turn + (GIVEN + AHEAD) * self.replicas:
                        number = waiting.popleft()
                        ref = replica.run.remote(batches[number], request)
                        running[ref] = number, replica
                        given[replica] += 1
                [ref], _ = ray.wait(list(running), num_returns=1, fetch_local=False)
                number, replica = running.pop(ref)
                try:
                    done[number] = answer(ref)
                except RayError as problem:
                    self.living = [other for other in self.living if other != replica]
                    deaths[number] += 1
                    if not self.living or deaths[number] > RETRIES:
                        raise InputError(
                            f"a batch of {len(batches[number])} questions was given up after {deaths[number]} replicas "
                            f"died with it ({why_died(problem)}); {len(self.living)} are left"
                        ) from problem
                    waiting.appendleft(number)
                    # Its other batches end the same way, and come here one by one.
            yield done.pop(turn)
