"""The threads that train an SAE, and the memory and the products that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from thought_saes.training.fused.kernels import LINE

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def product(a: FloatArray, b: FloatArray, out: FloatArray) -> None:
    """out = a b, by the BLAS of torch, which is faster than numpy's and lets other threads run."""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


def gather(x: FloatArray, rows: IntArray, out: FloatArray) -> None:
    """out = x[rows], by torch's copies, which are two to three times as fast as numpy's and Numba's."""
    torch.index_select(torch.from_numpy(x), 0, torch.from_numpy(rows), out=torch.from_numpy(out))


def zeros(*shape: int) -> FloatArray:
    """float32 zeros that begin with a cache line: where rows of whole lines do not, every second load takes two."""
    n = math.prod(shape)
    memory = np.zeros(n + LINE, np.float32)
    start = -memory.ctypes.data % (4 * LINE) // 4
    return memory[start : start + n].reshape(shape)


class Team:
    """The caller's number of threads, each of which calls single-threaded compiled code.

    One pool runs both torch's products and the sparse passes: two pools would spin against each other.
    """

    def __enter__(self) -> Team:
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(max(self.threads - 1, 1))
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.threads)

    def cuts(self, n: int, unit: int = 1) -> list[int]:
        """Even cuts of range(n) for `run`, at multiples of `unit`, one of n itself; no part is empty."""
        return sorted({n // unit * i // self.threads * unit for i in range(self.threads + 1)})

    def run(self, function: Callable[[int, int], None], cuts: list[int]) -> None:
        """function(first, last) for all neighbouring cuts, at the same time."""
        waiting = [self.pool.submit(function, *ends) for ends in list(pairwise(cuts))[1:]]
        function(cuts[0], cuts[1])
        for future in waiting:
            future.result()
