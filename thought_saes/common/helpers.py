"""The CPU's share of a work on a GPU, in threads beside it. Where all is on the CPU, threads would gain nothing."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


class InTurn(Executor):
    """Does what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def helpers(device: torch.device) -> Executor:
    """As many threads as PyTorch may use in this process, if the work is on a device; else none.

    The modes of a thread, such as `torch.no_grad`, are its own: what it is given must set them.
    """
    return InTurn() if device.type == "cpu" else ThreadPoolExecutor(torch.get_num_threads(), "helper")


def made_ahead(pool: Executor, make: Callable[[Item], Made], items: Iterable[Item], n_ahead: int) -> Iterator[Made]:
    """What `make` makes of each item, in their order, at most `n_ahead` before they are asked for."""
    coming: deque[Future[Made]] = deque()
    for item in items:
        coming.append(pool.submit(make, item))
        if len(coming) > n_ahead:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()
