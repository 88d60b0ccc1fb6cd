"""What training and extraction have in common on Ray: joining a cluster, its room, and what a failure means.

Only `--engine ray` imports this. Every node needs this folder and its requirements at the same path.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import RayError, RayTaskError

from thought_saes.common.errors import InputError, one_line

# How often work is given to another process after one died of it, or with it.
RETRIES = 3
ANSWERS_WITHIN = 10  # seconds, of a cluster's head


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be part of the Ray cluster at `address`; 'local' starts one on this machine, which ends with the block.

    Raises InputError if there is no such cluster, or if it is of another release of Ray or Python.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray reports to its makers
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init("local", include_dashboard=False, **quiet)
        else:
            check_answers(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError, RayError) as problem:
        raise InputError(
            f"no Ray cluster at --ray-address {address} ({one_line(problem)[:200]}): "
            "start one with 'ray start --head', or leave --ray-address out; "
            "one that asks for a token is joined with RAY_AUTH_MODE=token"
        ) from problem
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises OSError or ValueError if nobody listens there: Ray itself waits for minutes, then ends the process."""
    found = get_ray_address_from_environment("auto", None) if address == "auto" else address
    host, _, port = found.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN):
        pass


class Share(NamedTuple):
    """What one task or one replica takes of a node."""

    cpus: int
    gpus: float

    def options(self) -> dict[str, Any]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def fits(self) -> int:
        """How many of it the cluster's nodes hold together."""
        return sum(
            min(
                int(resources.get(name, 0) / part + 1e-6)  # three thirds are a whole
                for name, part in (("CPU", self.cpus), ("GPU", self.gpus))
                if part
            )
            for resources in nodes()
        )


def nodes() -> list[dict[str, float]]:
    """The resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def takes_gpu(device: str) -> bool:
    """Whether work on `--device` goes to GPUs. Raises InputError if the cluster has none, or for one GPU by name."""
    there = any(resources.get("GPU") for resources in nodes())
    if device not in ("auto", "cuda", "cpu"):
        raise InputError(f"--engine ray gives out the devices itself: --device auto, cuda or cpu, not {device}")
    if device == "cuda" and not there:
        raise InputError("no node of the Ray cluster has a GPU: --device auto or cpu")
    return there and device != "cpu"


def check_fits(share: Share) -> None:
    """Raises InputError if no node has room for one share: Ray would wait for such a node."""
    if not share.fits():
        cpus, gpus = (max(resources.get(name, 0) for resources in nodes()) for name in ("CPU", "GPU"))
        raise InputError(
            f"no node of the Ray cluster has {share.cpus} cores and {share.gpus:g} GPUs for a task: "
            f"the largest have {cpus:g} and {gpus:g}"
        )


def answer(ref: Any) -> Any:
    """What a task or an actor's method returned.

    Raises what it raised; RayError if its process or its node died, which another may do better; InputError if a
    node cannot import what this process could.
    """
    try:
        return ray.get(ref)
    except RayTaskError as problem:
        if isinstance(problem.cause, ImportError):
            raise InputError(
                f"a node of the Ray cluster cannot import what it should run ({one_line(problem.cause)}): every node "
                "needs this folder and its requirements at the same path"
            ) from problem
        raise problem.cause from None


def why_died(problem: RayError) -> str:
    return f"{type(problem).__name__}: {one_line(problem)[:200]}"
