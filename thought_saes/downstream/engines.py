"""Where the units of a substitution are measured: in this process, or by processes of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from thought_saes.common.flags import require_package
from thought_saes.downstream.job import Plan, measure_unit
from thought_saes.downstream.records import RecordKey
from thought_saes.downstream.substitution import Unit
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.source import ModelSource

Work = Sequence[tuple[Unit, list[RecordKey]]]


def here(
    reasoner: LatentReasoner, plan: Plan, left: Work, on_progress: Callable[[int], object]
) -> Iterator[list[dict[str, Any]]]:
    """The records of each unit, as it is done."""
    for unit, keys in left:
        yield measure_unit(reasoner, plan, unit, keys, on_progress)


def measure_elsewhere(source: ModelSource, plan: Plan, unit: Unit, keys: list[RecordKey]) -> list[dict[str, Any]]:
    """A unit's records, in a process that loads the model for it."""
    return measure_unit(source.load(), plan, unit, keys)


def on_ray(
    address: str, source: ModelSource, plan: Plan, left: Work, on_progress: Callable[[int], object]
) -> Iterator[list[dict[str, Any]]]:
    """The same from the cluster at `address`, as units end; every node must see the folders.

    Raises InputError if there is no such cluster, or if it has no room for a process.
    """
    require_package("ray", "--engine ray")
    import ray

    from thought_saes.engines.ray_cluster import Share, answer, check_fits, cluster, takes_gpu

    plan = plan._replace(activations=plan.activations.resolve(), results=plan.results.resolve())
    with cluster(address):
        on_gpu = takes_gpu(source.device)
        share = Share(cpus=0, gpus=1.0) if on_gpu else Share(cpus=source.threads or 1, gpus=0)
        check_fits(share)
        source = source.absolute()._replace(device="cuda" if on_gpu else "cpu", threads=source.threads or 1)
        remote = ray.remote(**share.options())(measure_elsewhere)
        running = {remote.remote(source, plan, unit, keys): len(keys) for unit, keys in left}
        while running:
            [ref], _ = ray.wait(list(running), num_returns=1)
            n_keys = running.pop(ref)
            yield answer(ref)
            on_progress(n_keys * len(plan.examples))
