"""Time the training of SAEs on the CPU: the textbook loop, ours, and the encoder's products alone, side by side.

    python benchmarks/bench.py [--input-dims 2048 576] [--output bench.json]     about 15 minutes on two cores
    python benchmarks/bench.py --recipe improved --variant batchtopk             another recipe, another rule
    python benchmarks/bench.py --peers                                           public trainers too, those installed

Every figure is seconds per epoch of one SAE on the same rows in memory, the best of `--rounds`; each round takes
the methods in turn, every second one in reverse, so that a machine that slows down slows them all:

    textbook  autograd and torch.optim.Adam; every step costs the same, so few epochs are timed
    stack     the reference of `training/stack.py`, plain PyTorch that leaves nothing out; also timed by a few epochs
    ours      what `train_grid.py` does by itself, over all epochs: it gets faster as features die
    gemm      the encoder's products `batch @ W_enc.T` alone, over as many epochs: a floor for who computes all

Each measurement has a process of its own, forked after the data were made. Its peak memory is the growth of its
resident set beyond that: weights, moments, buffers and libraries' scratch space, not the data nor the code.

Deliberately missing: reading activations, evaluation, checkpoints, GPUs, compilation (cached before the first
measurement), the stack of other recipes than the published one, and whether the SAEs come out alike, which the
tests say.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from benchmarks.bench_peers import PEERS, why_absent
from benchmarks.cases import TINY, Case, Data, Job, Measured, cell_rows, growth
from benchmarks.methods import LONG_METHODS, cpu_seconds, in_fork, measure_job, methods_of
from benchmarks.recipes import selection_of, started
from benchmarks.tables import all_tables, cpu_name, print_tables
from benchmarks.textbook import textbook_step
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_json
from thought_saes.common.flags import MOST_THREADS, check_at_least, check_at_most, keep_once, option, parse_config
from thought_saes.results.names import K_VALUES, LATENT_DIMS
from thought_saes.results.recipe import RECIPES
from thought_saes.training.config import TrainConfig
from thought_saes.training.fused.selection import RULES
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import choose_backend

PEER_CONFIGURATIONS = ((512, 20), (1024, 20), (2048, 5), (2048, 100))  # (latent_dim, k)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    input_dims: tuple[int, ...] = option((2048, 576), help="dimensions of the synthetic activations")
    latent_dims: tuple[int, ...] = option(LATENT_DIMS, help="features of the SAEs")
    k_values: tuple[int, ...] = option(K_VALUES, help="latents kept per row")
    recipe: str = option("published", choices=tuple(RECIPES), help="how rows, weights and rate start")
    variant: str = option("abstopk", choices=RULES, help="which latents are kept")
    rows: int = option(5978, help="training rows; of a cell, at most")
    batch_size: int = option(256, help="rows per step")
    epochs: int = option(25, help="epochs that ours and the encoder's products are timed over")
    baseline_epochs: int = option(2, help="epochs that everything else is timed over")
    rounds: int = option(2, help="times that everything is measured; the best counts")
    threads: int | None = option(None, help="threads of every method (default: all cores)")
    cpu_time: bool = option(False, help="count the processor's time, not the clock's: where others use the machine")
    no_growth: bool = option(False, help="leave out how the time grows with rows and sizes")
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

    def data(self) -> Data:
        """The rows to train on. Raises InputError if a cell is not there."""
        if self.activations is None or self.layer is None or self.position is None:
            return Data(None, self.rows, self.input_dims)
        return Data(cell_rows(self.activations, self.layer, self.position), self.rows, self.input_dims)

    def training(self, epochs: int) -> TrainConfig:
        """What trains, so many epochs."""
        return TrainConfig(recipe=self.recipe, variant=self.variant, batch_size=self.batch_size, epochs=epochs)


def jobs_of(config: BenchConfig, cases: list[Case], grown: dict[str, list[Case]], peers: list[str]) -> list[Job]:
    """Everything to be measured, once."""
    first = [case for case in cases if case.input_dim == cases[0].input_dim]
    of_peers = [case for case in first if case[2:] in PEER_CONFIGURATIONS] or first
    methods = methods_of(config.training(1).settings)
    jobs = [Job(method, case) for case in cases for method in (*methods, *(peers if case in of_peers else ()))]
    return list(dict.fromkeys(jobs + [Job(m, case) for axis in grown.values() for case in axis for m in LONG_METHODS]))


def measure_all(jobs: list[Job], data: Data, config: BenchConfig, backend: str) -> dict[Job, list[Measured]]:
    """Every job in every round, said on stderr."""
    threads, recipe = threads_of(config), config.training(1).settings
    clock = cpu_seconds if config.cpu_time else time.perf_counter
    prepared = lru_cache(maxsize=1)(lambda case: Prepared(data.of(case), recipe))
    measured: dict[Job, list[Measured]] = {job: [] for job in jobs}
    for turn in range(config.rounds):
        for number, job in enumerate(jobs[:: -1 if turn % 2 else 1], 1 + turn * len(jobs)):
            epochs = config.epochs if job.method in LONG_METHODS else config.baseline_epochs
            rows = prepared(Case(*job.case[:2], 0, 0))
            result = in_fork(measure_job, job, rows, config.training(epochs), backend, threads, clock)
            measured[job].append(result)
            shape = ", ".join(f"{name} {value}" for name, value in job.case._asdict().items())
            progress = f"{number}/{len(jobs) * config.rounds} {job.method}: {shape}"
            print(f"{progress}: {result.seconds_per_epoch:.3f} s per epoch", file=sys.stderr, flush=True)
    return measured


def threads_of(config: BenchConfig) -> int:
    return config.threads or os.cpu_count() or 1


def main() -> int:
    config = parse_config(BenchConfig, __doc__ or "")
    torch.set_num_threads(1)  # here, so that forks are sound; each measurement sets its own
    data, published = config.data(), TrainConfig()
    beside = [name for name, peer in PEERS.items() if config.peers and config.variant in peer.variants]
    absent = {peer: in_fork(why_absent, peer, config.variant) for peer in beside}
    peers = [peer for peer, reason in absent.items() if not reason]
    backend = choose_backend("auto", torch.device("cpu"))
    tiny = torch.rand(4, TINY.input_dim)  # loads what an optimizer's first step loads
    sae = started(Prepared(tiny, published.settings), TINY)
    textbook_step(list(sae.parameters()), selection_of(published, TINY), 1e-3)(tiny, 1e-3)
    cases = data.cases(config.latent_dims, config.k_values)
    middle = (values[len(values) // 2] for values in (config.latent_dims, config.k_values))
    base = Case(data.rows, data.input_dims[0], *middle)
    grown = {} if config.no_growth else growth(base, data.largest)
    measured = measure_all(jobs_of(config, cases, grown, peers), data, config, backend)
    best = {job: min(results) for job, results in measured.items()}
    tables = all_tables(cases, grown, best, methods_of(config.training(1).settings), peers)

    absent = {peer: reason for peer, reason in absent.items() if reason}
    threads = threads_of(config)
    print(f"{cpu_name()}, {threads} threads, backend {backend}; {data.rows:,} rows, batches of {config.batch_size}")
    print(
        f"seconds {'of the processor ' if config.cpu_time else ''}per epoch of {config.variant} by the {config.recipe} "
        f"recipe, the best of {config.rounds} rounds: ours and gemm over {config.epochs} epochs, "
        f"the rest over {config.baseline_epochs}; memory is the peak beyond the data"
    )
    print_tables(tables)
    for peer, reason in absent.items():
        print(f"{peer} is left out: {reason}")
    if config.output:
        about = {
            "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
            "versions": package_versions("torch", "numpy", *sorted({PEERS[peer].package for peer in peers})),
            "cpu": cpu_name(),
            "threads": threads,
            "backend": backend,
            "absent_peers": absent,
        }
        measurements = [
            {**job._asdict(), "case": job.case._asdict(), "rounds": [result._asdict() for result in results]}
            for job, results in measured.items()
        ]
        write_json(config.output, about | tables | {"measurements": measurements})
    return 0


if __name__ == "__main__":
    run(main, interrupted="interrupted: a benchmark begins anew")
