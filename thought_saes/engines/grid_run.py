"""The run of a grid from plan to report, whichever engine does the jobs."""

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer
from thought_saes.common.flags import require_package
from thought_saes.common.text import in_time
from thought_saes.engines.local import Processes
from thought_saes.engines.outcome import Engine
from thought_saes.results.names import AXES, logs_path
from thought_saes.results.store import Results
from thought_saes.training.config import CellConfig, GridConfig
from thought_saes.training.forecast import Workers, describe
from thought_saes.training.jobs import Job
from thought_saes.training.plan import Plan, check_room, plan_jobs
from thought_saes.training.rows import origin
from thought_saes.training.run import choose_backend

BAR = "{l_bar}{bar}| {n:.0f}/{total_fmt} SAEs [{elapsed}<{remaining}, {rate_fmt}]"


@contextmanager
def open_engine(config: GridConfig, cache: ActivationCache, n_cells: int) -> Iterator[Engine]:
    """Raises InputError if its devices, or its cluster, cannot be had."""
    if config.engine == "local":
        yield Processes(config, cache)
        return
    require_package("ray", "--engine ray")
    from thought_saes.engines.ray_cluster import cluster
    from thought_saes.engines.ray_training import RayJobs

    with cluster(config.ray_address):
        yield RayJobs(config, cache, n_cells * len(config.latent_dims))


def open_rows(folder: Path) -> ActivationCache:
    """The activations to train on; says how many rows a split of the user's own leaves out."""
    cache = ActivationCache(folder)
    if cache.rows_left_out:
        print(f"{folder / 'split.json'} leaves {cache.rows_left_out:,} of {cache.n_examples:,} rows out of both sets")
    return cache


def plan_for(config: GridConfig, cache: ActivationCache, cells: Sequence[Cell], engine: Engine) -> Plan:
    """What is left to do, in stacks that the engine's devices hold."""

    def cells_per_stack(latent_dim: int) -> int:
        return config.cells_per_stack or engine.cells_that_fit(latent_dim)

    return plan_jobs(config, cache, cells, config.latent_dims, cells_per_stack)


def record_plan(config: GridConfig, cache: ActivationCache, cells: Sequence[Cell]) -> None:
    """What the folder is to hold, and what the activations are of, for the report."""
    layers, positions = zip(*cells, strict=True)
    values = dict(zip(AXES, (layers, positions, config.latent_dims, config.k_values), strict=True))
    Results(config.results).record_plan(values, origin(cache))


def foretell(config: GridConfig, cache: ActivationCache, cells: Sequence[Cell], engine: Engine) -> None:
    """Say what a run would take. Raises InputError if the disk is too small for it."""
    plan = plan_for(config, cache, cells, engine)
    n_workers, backend = (
        min(engine.most_workers, len(plan.jobs)),
        choose_backend(config.backend, engine.device, config.settings),
    )
    print(describe(config, cache, plan, Workers(n_workers, str(engine.device), backend)))
    check_room(config, cache.input_dim, plan.jobs)
    print(time_of_workers(engine.seconds_to_train(plan.jobs, backend), n_workers, engine.sharing))


def time_of_workers(seconds: float, workers: int, sharing: int) -> str:
    """What `workers`, of which `sharing` have one device together, make of so many seconds of a single one."""
    shortest = seconds / max(1, workers)
    if sharing == 1:
        return f"time: about {in_time(shortest)} if {workers} workers do not slow each other down"
    longest = seconds / max(1, workers // sharing)
    sharing = min(workers, sharing)
    return f"time: {in_time(shortest)} to {in_time(longest)}: {sharing} workers share a device, which one may fill"


def seconds_in_training(jobs: Sequence[Job], results: Results) -> float:
    """What the files say that the SAEs of these jobs took to train, together."""
    metrics_of = functools.cache(results.metrics)
    files = ((metrics_of(key.cell, key.latent_dim), key.k) for job in jobs for key in job.keys)
    return sum(file.by_k[k].get("train_time_sec", 0.0) for file, k in files if file and k in file.by_k)


def run_grid(config: GridConfig, cache: ActivationCache, cells: Sequence[Cell], engine: Engine) -> int:
    """Train what is not done. Returns the exit code."""
    with only_writer(config.results):
        plan = plan_for(config, cache, cells, engine)
        check_room(config, cache.input_dim, plan.jobs)
        record_plan(config, cache, cells)
        logs_path(config.results).mkdir(exist_ok=True)
        if plan.n_done:
            print(f"{plan.n_done:,} SAEs are already done")
        if not plan.jobs:
            return 0
        backend = choose_backend(config.backend, engine.device, config.settings)
        n_workers = min(engine.most_workers, len(plan.jobs))
        where = f"{n_workers} workers on {engine.device}, logs in {logs_path(config.results)}"
        print(f"training {plan.n_saes:,} SAEs, {where}")
        started = time.perf_counter()
        total = plan.n_done + plan.n_saes
        with tqdm(total=total, initial=plan.n_done, unit="SAE", bar_format=BAR, smoothing=0.05) as bar:
            epochs_done = 0

            def on_epochs(epochs: int) -> None:
                nonlocal epochs_done
                with bar.get_lock():  # a thread for each worker comes here
                    epochs_done += epochs
                    bar.update(plan.n_done + epochs_done / config.epochs - bar.n)

            report = engine.run(plan.jobs, backend, on_epochs)
        wall_seconds = time.perf_counter() - started
        overhead = 1 - report.busy_seconds / (report.workers * wall_seconds)
        results = Results(config.results)
        train_seconds = seconds_in_training(plan.jobs, results)
        costs = {"wall_seconds": wall_seconds, "overhead": overhead, "train_seconds": train_seconds}
        settings = {"engine": config.engine, "threads": engine.threads, "device": str(engine.device)}
        results.write_last_run(report._asdict() | costs | settings | {"backend": backend})
    print(
        f"{report.n_trained:,} SAEs trained in {wall_seconds:.1f} s; the workers had no task {overhead:.1%} of the time"
    )
    if 0 < train_seconds < report.busy_seconds:  # not so where a worker died, whose time is lost, but not its SAEs
        share = train_seconds / report.busy_seconds
        print(f"training these took {share:.1%} of their tasks' time; starts, measuring, baselines and files the rest")
    for failure in report.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if report.failures else 0


def run_cell(config: CellConfig, cache: ActivationCache) -> int:
    """Train what is not done of one cell, in this process. Returns the exit code."""
    from thought_saes.common.machine import choose_device
    from thought_saes.training.forecast import seconds_to_train

    device = choose_device(config.device)
    cell = Cell(config.layer, config.position)
    if cell not in cache.cells:
        raise InputError(
            f"no layer {config.layer}, position {config.position} in {config.activations}; it has layers "
            f"{', '.join(map(str, cache.layers))} and positions {', '.join(map(str, cache.positions))}"
        )
    if config.dry_run:
        plan = plan_jobs(config, cache, [cell], config.latent_dims)
        backend = choose_backend(config.backend, device, config.settings)
        print(describe(config, cache, plan, Workers(1, str(device), backend)))
        check_room(config, cache.input_dim, plan.jobs)
        print(f"time: about {in_time(seconds_to_train(plan.jobs, config, cache, device, backend))}")
        return 0
    failures = []
    with only_writer(config.results):
        plan = plan_jobs(config, cache, [cell], config.latent_dims)
        check_room(config, cache.input_dim, plan.jobs)
        if plan.n_done:
            print(f"{plan.n_done} SAEs are already done")
        backend = choose_backend(config.backend, device, config.settings) if plan.jobs else ""
        with tqdm(total=plan.n_saes * config.epochs, unit="epoch", disable=not plan.n_saes) as bar:
            for job in plan.jobs:
                bar.set_description(str(job))
                failures += job.run(config, cache, device, backend, bar.update)
    for failure in failures:
        print(f"failed: {failure}")
    print(f"{plan.n_saes - len(failures)} SAEs trained, in {config.results}")
    return 1 if failures else 0
