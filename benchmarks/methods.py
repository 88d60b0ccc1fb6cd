"""The ways of training that are timed, and one measurement of one of them, in a process of its own."""

import contextlib
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_peers import PEERS, Shape
from benchmarks.cases import TINY, Job, Measured
from benchmarks.recipes import rate_of_each_step, selection_of, started
from benchmarks.textbook import textbook_latents, textbook_step
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.results.recipe import ALWAYS_RECORDED, PUBLISHED, Recipe
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.training.config import TrainConfig
from thought_saes.training.fused.selection import Selection
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import train_saes
from thought_saes.training.stack import train_stack
from thought_saes.training.start import epoch_orders

METHODS = ("textbook", "stack", "ours", "gemm")
LONG_METHODS = ("ours", "gemm")  # timed over all epochs: the one changes as it goes, the other is too short
MEBIBYTE = 1 << 20


def methods_of(recipe: Recipe) -> tuple[str, ...]:
    """METHODS, but for `stack` where the recipe is not the published one."""
    published = set(recipe.differences(PUBLISHED)) <= set(ALWAYS_RECORDED)  # however long it trains
    return METHODS if published else tuple(method for method in METHODS if method != "stack")


def seconds_per_epoch(
    job: Job, rows: Prepared, config: TrainConfig, backend: str, clock: Callable[[], float]
) -> tuple[float, SparseAutoencoder]:
    """The time, and the SAE as it is then: trained, but by `gemm` and the public trainers."""
    method, case = job
    x, sae = rows.x, started(rows, case)
    orders = partial(epoch_orders, len(x), config.epochs, 0, Cell(0, 0))
    textbook = (
        textbook_step(list(sae.parameters()), selection_of(config, case), config.lr) if method == "textbook" else None
    )
    peer = PEERS[method].make_step(Shape(config.variant, *case[1:]), config.lr) if method in PEERS else None
    product = torch.empty(config.batch_size, case.latent_dim)
    begun = clock()
    if method == "ours":
        train_saes([sae], [0], x[None], lambda cell: orders(), config, backend, on_epochs=lambda n: None)
    elif method == "stack":
        train_stack([sae], [0], x[None], (order[None] for order in orders()), config.batch_size, config.lr)
    elif textbook or peer:
        batches = (shown for order in orders() for shown in torch.from_numpy(order).split(config.batch_size))
        for shown, rate in zip(batches, rate_of_each_step(config, len(x)).tolist(), strict=True):
            if textbook:
                textbook(x[shown], rate)
            elif peer:
                peer(x[shown])
    else:
        W_enc = sae.encoder.weight.detach()
        for _ in range(config.epochs):
            for batch in x.split(config.batch_size):
                torch.mm(batch, W_enc.T, out=product[: len(batch)])
    return (clock() - begun) / config.epochs, sae


@torch.no_grad()
def dead_share(sae: SparseAutoencoder, x: Tensor, selection: Selection) -> float:
    """The share of features that no batch of x selects."""
    fired = torch.zeros(sae.latent_dim, dtype=torch.bool)
    for batch in x.split(256):
        fired |= (textbook_latents(sae.encoder(batch), selection) != 0).any(dim=0)
    return float((~fired).float().mean())


def measure_job(
    job: Job,
    rows: Prepared,
    config: TrainConfig,
    backend: str,
    threads: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """To be called in a process of its own: its peak memory is taken from the process's."""
    torch.set_num_threads(threads)
    # Starts the threads, and takes enough steps for all compiled code to be loaded, that of freezing too.
    tiny, short = torch.rand(4, TINY.input_dim), replace(config, epochs=60)
    seconds_per_epoch(Job(job.method, TINY), Prepared(tiny, config.settings), short, backend, clock)
    forget_peak()
    before = peak_mib()
    seconds, sae = seconds_per_epoch(job, rows, config, backend, clock)
    peak = peak_mib() - before
    dead = dead_share(sae, rows.x, selection_of(config, job.case)) if job.method == "ours" else None
    return Measured(seconds, peak, dead)


def cpu_seconds() -> float:
    """What this process has used of the processor, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def forget_peak() -> None:
    """Let the peak begin at what is held now: a fork inherits the peak of its parent. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory this process has held so far; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / MEBIBYTE


def in_fork(function: Callable[..., Any], *arguments: object) -> Any:
    """function(*arguments) in a forked process. Raises InputError if that ends without a result.

    For this the caller's process must not have run products on several threads: those do not survive a fork.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def call() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group; the main process speaks
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        with redirect_stdout(sys.stderr):  # what the public trainers print is no part of the tables
            sender.send(function(*arguments))

    process = context.Process(target=call, daemon=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Python loses what comes in the middle of forking
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        cause = "killed, for want of memory?" if process.exitcode == -9 else f"code {process.exitcode}"
        raise InputError(f"a measurement ended without a result ({cause})") from None
    finally:
        process.join()
