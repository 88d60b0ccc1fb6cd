"""Time the training of SAEs on the CPU: the textbook loop, ours, and the encoder's products alone, side by side.

    python bench.py [--input-dims 2048 576] [--output bench.json]     about 15 minutes on two cores
    python bench.py --peers                                           public trainers too, those installed

Every figure is seconds per epoch of one SAE on the same rows in memory, the best of `--rounds`; each round takes
the methods in turn, every second one in reverse, so that a machine that slows down slows them all:

    textbook  TopKSAE, autograd and torch.optim.Adam; every step costs the same, so few epochs are timed
    stack     stack_trainer.py's reference, plain PyTorch that leaves nothing out; also timed by a few epochs
    ours      what `train_grid.py` does by itself, over all epochs: it gets faster as features die
    gemm      the encoder's products `batch @ W_enc.T` alone, over as many epochs: a floor for who computes all

Each measurement has a process of its own, forked after the data were made. Its peak memory is the growth of its
resident set beyond that: weights, moments, buffers and libraries' scratch space, not the data nor the code.

Deliberately missing: reading activations, evaluation, checkpoints, GPUs, compilation (cached before the first
measurement), and whether the SAEs come out alike, which the tests say.
"""

import contextlib
import itertools
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.bench_peers import PEERS, Step, why_absent
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_json
from thought_saes.common.flags import MOST_THREADS, check_at_least, check_at_most, keep_once, option, parse_config
from thought_saes.results.names import K_VALUES, LATENT_DIMS, SaeKey
from thought_saes.saes.topk_sae import TopKSAE, measure, n_weights
from thought_saes.training.run import choose_backend, epoch_orders, seeded_sae, train_saes
from thought_saes.training.stack import train_stack
from thought_saes.training.task import TrainConfig

METHODS = ("textbook", "stack", "ours", "gemm")
LONG_METHODS = ("ours", "gemm")  # timed over all epochs: the one changes as it goes, the other is too short
PEER_CONFIGURATIONS = ((512, 20), (1024, 20), (2048, 5), (2048, 100))  # (latent_dim, k)
GROWTH_FACTORS = (0.25, 0.5, 1, 2)
MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    input_dims: tuple[int, ...] = option((2048, 576), help="dimensions of the synthetic activations")
    latent_dims: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs")
    k_values: tuple[int, ...] = option(K_VALUES, help="latents kept per row")
    rows: int = option(5978, help="training rows; of a cell, at most")
    batch_size: int = option(256, help="rows per step")
    epochs: int = option(25, help="epochs that ours and the encoder's products are timed over")
    baseline_epochs: int = option(2, help="epochs that everything else is timed over")
    rounds: int = option(2, help="times that everything is measured; the best counts")
    threads: int | None = option(None, help="threads of every method (default: all cores)")
    activations: Path | None = option(None, help="folder of real activations, instead of synthetic ones")
    layer: int | None = option(None, help="the layer to take from --activations")
    position: int | None = option(None, help="the thought position to take from --activations")
    peers: bool = option(False, help="time the public trainers that are installed too")
    output: Path | None = option(None, help="JSON file for everything that is measured")

    def __post_init__(self) -> None:
        keep_once(self, "input_dims", "latent_dims", "k_values")
        check_at_least(self, 1, "input_dims", "latent_dims", "k_values", "rows", "batch_size", "epochs")
        check_at_least(self, 1, "baseline_epochs", "rounds", "threads")
        check_at_most(self, MOST_THREADS, "threads")
        if max(self.k_values) > min(self.latent_dims):
            raise InputError(f"k {max(self.k_values)} is larger than latent_dim {min(self.latent_dims)}")
        if len({value is None for value in (self.activations, self.layer, self.position)}) > 1:
            raise InputError("--activations, --layer and --position go together")
        if self.output and not self.output.parent.is_dir():
            raise InputError(f"no folder {self.output.parent} for --output")


class Case(NamedTuple):
    """One configuration on one set of activations."""

    rows: int
    input_dim: int
    latent_dim: int
    k: int


TINY = Case(4, 32, 32, 2)


class Job(NamedTuple):
    method: str  # of METHODS or PEERS
    case: Case


class Measured(NamedTuple):
    seconds_per_epoch: float  # of one SAE
    peak_mib: float  # beyond the data
    dead_share: float | None  # ours only: of the features, those that fire on no training row at the end


@lru_cache(maxsize=2)
def synthetic_rows(n_rows: int, input_dim: int) -> np.ndarray:
    """Rows (n_rows, input_dim) like activations: low rank, a decaying spectrum, a mean large against the spread.

    Because of that mean most features of an SAE die, as on real activations. At an input_dim of a few dozen the
    mean is small.
    """
    generator = np.random.default_rng(0)
    rank = min(input_dim, 300)
    scales = 10 * np.arange(1, rank + 1) ** -0.8
    directions = generator.standard_normal((rank, input_dim), np.float32) / np.sqrt(input_dim)
    rows = (generator.standard_normal((n_rows, rank), np.float32) * scales) @ directions
    rows += 0.5 * generator.standard_normal(input_dim)
    rows += 0.02 * generator.standard_normal((n_rows, input_dim), np.float32)
    return rows.astype(np.float32)


def cell_rows(folder: Path, layer: int, position: int) -> np.ndarray:
    """The training rows of one cell. Raises InputError if it is not there."""
    cache = ActivationCache(folder)
    if Cell(layer, position) not in cache.cells:
        raise InputError(f"no layer {layer}, position {position} in {folder}; it has layers {cache.layers}")
    return cache.cell(Cell(layer, position))[cache.split.train].astype(np.float32, copy=False)


def textbook_step(case: Case, lr: float) -> Step:
    sae = seeded_sae(case.input_dim, SaeKey(Cell(0, 0), case.latent_dim, case.k), seed=0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)

    def step(batch: Tensor) -> None:
        loss = mse_loss(sae(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_per_epoch(job: Job, x: Tensor, config: TrainConfig, backend: str) -> tuple[float, TopKSAE]:
    """The time, and the SAE as it is then: trained by `stack` and by `ours`."""
    method, case = job
    sae = seeded_sae(case.input_dim, SaeKey(Cell(0, 0), case.latent_dim, case.k), seed=0)
    orders = partial(epoch_orders, len(x), config.epochs, 0, Cell(0, 0))
    if method == "textbook":
        step = textbook_step(case, config.lr)
    elif method in PEERS:
        step = PEERS[method].make_step(case.input_dim, case.latent_dim, case.k, config.lr)
    else:
        step = None
    product = torch.empty(config.batch_size, case.latent_dim)
    started = time.perf_counter()
    if method == "ours":
        train_saes([sae], [0], x[None], lambda cell: orders(), config, backend, on_epochs=lambda n: None)
    elif method == "stack":
        train_stack([sae], [0], x[None], (order[None] for order in orders()), config.batch_size, config.lr)
    elif step is not None:
        for order in orders():
            for rows in torch.from_numpy(order).split(config.batch_size):
                step(x[rows])
    else:
        W_enc = sae.encoder.weight.detach()
        for _ in range(config.epochs):
            for batch in x.split(config.batch_size):
                torch.mm(batch, W_enc.T, out=product[: len(batch)])
    return (time.perf_counter() - started) / config.epochs, sae


def measure_job(job: Job, x: Tensor, config: TrainConfig, backend: str, threads: int) -> Measured:
    """To be called in a process of its own: its peak memory is taken from the process's."""
    torch.set_num_threads(threads)
    # Starts the threads, and takes enough steps for all compiled code to be loaded, that of freezing too.
    seconds_per_epoch(Job(job.method, TINY), torch.rand(4, TINY.input_dim), replace(config, epochs=60), backend)
    forget_peak()
    before = peak_mib()
    seconds, sae = seconds_per_epoch(job, x, config, backend)
    peak = peak_mib() - before
    dead = float((measure(sae, x).firings == 0).float().mean()) if job.method == "ours" else None
    return Measured(seconds, peak, dead)


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


def growth(base: Case, largest: tuple[int, ...]) -> dict[str, list[Case]]:
    """For each axis of a Case, those that differ from `base` along it alone; `largest`: (rows, input_dim) there are."""
    grown = {}
    for axis in Case._fields:
        cases = (base._replace(**{axis: int(getattr(base, axis) * factor)}) for factor in GROWTH_FACTORS)
        grown[axis] = [
            c for c in cases if min(c) >= 1 and c.k <= c.latent_dim and c[0] <= largest[0] and c[1] <= largest[1]
        ]
    return grown


def with_ratios(seconds: dict[str, float]) -> dict[str, float]:
    return seconds | {
        "textbook/ours": seconds["textbook"] / seconds["ours"],
        "ours/gemm": seconds["ours"] / seconds["gemm"],
    }


def configuration_row(case: Case, best: dict[Job, Measured]) -> dict[str, Any]:
    by_method = {method: best[Job(method, case)] for method in METHODS}
    return {
        "latent_dim": case.latent_dim,
        "k": case.k,
        **with_ratios({method: measured.seconds_per_epoch for method, measured in by_method.items()}),
        "dead_share": by_method["ours"].dead_share,
        **{f"{method}_mib": by_method[method].peak_mib for method in ("textbook", "ours")},
        "weights_and_moments_mib": 3 * 4 * n_weights(case.input_dim, case.latent_dim) / MEBIBYTE,
    }


def sum_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"latent_dim": "sum", "k": "", **with_ratios({m: sum(row[m] for row in rows) for m in METHODS})}


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A column a key of the first row; what a row lacks stays empty."""
    lines = [list(rows[0])] + [
        [f"{row[key]:.4g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in rows[0]]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}\n")
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def cpu_name() -> str:
    """The processor's model as Linux names it; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    config = parse_config(BenchConfig, __doc__ or "")
    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(1)  # here, so that forks are sound; each measurement sets its own
    if config.activations is None or config.layer is None or config.position is None:
        cell, input_dims, n_rows, largest = None, config.input_dims, config.rows, (sys.maxsize, sys.maxsize)
    else:
        cell = cell_rows(config.activations, config.layer, config.position)
        input_dims, n_rows, largest = cell.shape[1:], min(config.rows, len(cell)), cell.shape
    absent = {peer: in_fork(why_absent, peer) for peer in PEERS} if config.peers else {}
    peers = [peer for peer, reason in absent.items() if not reason]
    training = TrainConfig(k_values=config.k_values, epochs=config.epochs, batch_size=config.batch_size)
    backend = choose_backend("auto", torch.device("cpu"))
    textbook_step(TINY, 1e-3)(torch.rand(4, TINY.input_dim))  # loads what an optimizer's first step loads
    cases = [Case(n_rows, *rest) for rest in itertools.product(input_dims, config.latent_dims, config.k_values)]
    first = [case for case in cases if case.input_dim == input_dims[0]]
    of_peers = [case for case in first if case[2:] in PEER_CONFIGURATIONS] or first
    middle = [values[len(values) // 2] for values in (config.latent_dims, config.k_values)]
    grown = growth(Case(n_rows, input_dims[0], *middle), largest)
    jobs = [Job(method, case) for case in cases for method in (*METHODS, *(peers if case in of_peers else ()))] + [
        Job(method, case) for axis in grown.values() for case in axis for method in LONG_METHODS
    ]
    jobs = list(dict.fromkeys(jobs))

    measured: dict[Job, list[Measured]] = {job: [] for job in jobs}
    for turn in range(config.rounds):
        for number, job in enumerate(jobs[:: -1 if turn % 2 else 1], 1 + turn * len(jobs)):
            case = job.case
            array = synthetic_rows(case.rows, case.input_dim) if cell is None else cell[: case.rows, : case.input_dim]
            x = torch.from_numpy(np.ascontiguousarray(array))
            epochs = config.epochs if job.method in LONG_METHODS else config.baseline_epochs
            result = in_fork(measure_job, job, x, replace(training, epochs=epochs), backend, threads)
            measured[job].append(result)
            shape = ", ".join(f"{name} {value}" for name, value in case._asdict().items())
            progress = f"{number}/{len(jobs) * config.rounds} {job.method}: {shape}"
            print(f"{progress}: {result.seconds_per_epoch:.3f} s per epoch", file=sys.stderr, flush=True)
    best = {job: min(results) for job, results in measured.items()}

    content: dict[str, Any] = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "versions": package_versions("torch", "numpy", *sorted({PEERS[peer].package for peer in peers})),
        "cpu": cpu_name(),
        "threads": threads,
        "backend": backend,
        "absent_peers": {peer: reason for peer, reason in absent.items() if reason},
        "configurations": {},
        "sums": {},
        "growth": {},
        "peers": [],
        "measurements": [
            {**job._asdict(), "case": job.case._asdict(), "rounds": [result._asdict() for result in results]}
            for job, results in measured.items()
        ],
    }
    print(f"{cpu_name()}, {threads} threads, backend {backend}; {n_rows:,} rows, batches of {config.batch_size}")
    print(
        f"seconds per epoch, the best of {config.rounds} rounds: ours and gemm over {config.epochs} epochs, "
        f"the rest over {config.baseline_epochs}; memory is the peak beyond the data"
    )
    for input_dim in input_dims:
        rows = [configuration_row(case, best) for case in cases if case.input_dim == input_dim]
        content["configurations"][input_dim], content["sums"][input_dim] = rows, sum_row(rows)
        print_table(f"input_dim {input_dim}", [*rows, sum_row(rows)])
    for axis, grown_cases in grown.items():
        content["growth"][axis] = [
            case._asdict() | {method: best[Job(method, case)].seconds_per_epoch for method in LONG_METHODS}
            for case in grown_cases
        ]
        print_table(f"growth with {axis}", content["growth"][axis])
    for case in cases:
        seconds = {peer: best[Job(peer, case)].seconds_per_epoch for peer in peers if Job(peer, case) in best}
        if seconds:
            ours = best[Job("ours", case)].seconds_per_epoch
            row = case._asdict() | {"ours": ours} | seconds | {"fastest/ours": min(seconds.values()) / ours}
            content["peers"].append(row)
    if content["peers"]:
        print_table("public trainers", content["peers"])
    for peer, reason in content["absent_peers"].items():
        print(f"{peer} is left out: {reason}")
    if config.output:
        write_json(config.output, content)
    return 0


if __name__ == "__main__":
    run(main, interrupted="interrupted: a benchmark begins anew")
