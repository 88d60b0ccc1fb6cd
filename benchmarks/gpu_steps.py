"""What a step costs on a GPU: its time, its memory, its kernels and its selection. Parts of `gpu_check.py`."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_sizes import LR, Report, Sizes, orders_of, rows_of, saes_of, seconds_of, wait_for
from thought_saes.common.machine import float32_products, peak_bytes
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.freezing import LiveEpochs
from thought_saes.training.selectors import ByVariant, selector_of
from thought_saes.training.stack import EpochRunner, bytes_of_a_cell, make_stack, train_epoch, train_stack

KERNELS_TOLD = 12


def steps(sizes: Sizes) -> Report:
    """Milliseconds a step, all features and live ones, the longest kernels, and memory against the estimate."""
    figures: dict[str, Any] = {}
    checks: dict[str, bool] = {}
    n_cells = sizes.cells_of_a_stack
    x, _ = rows_of(sizes, n_cells)
    n_steps = sizes.epochs * -(-x.shape[1] // sizes.batch_size)
    runners: tuple[tuple[str, Callable[[], EpochRunner]], ...] = (
        ("all features", lambda: train_epoch),
        ("live features", LiveEpochs),
    )
    longest_kernels(sizes, x)  # what is slow the first time, and is not counted
    for latent_dim in sizes.latent_dims:
        if sizes.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for name, runner in runners:
            saes, cells = saes_of(sizes, latent_dim, n_cells)
            orders = orders_of(sizes, x.shape[1], sizes.epochs, n_cells)
            wait_for(sizes.device)
            started = time.perf_counter()
            train_stack(saes, cells, x, orders, sizes.batch_size, LR, run_epoch=runner())
            wait_for(sizes.device)
            seconds = time.perf_counter() - started
            figures[f"{latent_dim} features, {len(saes)} SAEs, {name}: ms a step"] = 1e3 * seconds / n_steps
            del saes
        estimate = n_cells * bytes_of_a_cell(
            len(sizes.k_values), sizes.n_rows, sizes.input_dim, latent_dim, sizes.batch_size
        )
        figures[f"{latent_dim} features: MiB estimated"] = estimate / 2**20
        if sizes.device == "cuda":
            figures[f"{latent_dim} features: MiB at the peak"] = peak_bytes("cuda") / 2**20
            checks[f"{latent_dim} features: the estimate of memory holds"] = peak_bytes("cuda") <= estimate
    figures["the longest kernels"] = longest_kernels(sizes, x)
    return Report(figures, checks)


def selection(sizes: Sizes) -> Report:
    """Milliseconds of a step's selection, by the variant and by the kernel of its own, where there is one."""
    figures: dict[str, Any] = {}
    checks: dict[str, bool] = {}
    k_values = sorted(sizes.k_values * sizes.cells_of_a_stack)
    nothing = torch.zeros((), device=sizes.device)
    for latent_dim in sizes.latent_dims:
        variant = VARIANTS["abstopk"]
        chosen = selector_of(variant, k_values, latent_dim, nothing)
        pre_acts = torch.randn(len(k_values), sizes.batch_size, latent_dim, device=sizes.device)
        latents, fired = torch.empty_like(pre_acts), torch.zeros(len(k_values), latent_dim, device=sizes.device).bool()
        for name, way in (("by the variant", ByVariant(variant, k_values, nothing)), ("as it is chosen", chosen)):
            seconds = seconds_of(partial(way, pre_acts, latents, fired), sizes)
            figures[f"{latent_dim} features, {len(k_values)} SAEs, {name}: ms"] = 1e3 * seconds
        if sizes.device == "cuda":
            checks[f"{latent_dim} features: a kernel of its own selects"] = not isinstance(chosen, ByVariant)
    return Report(figures, checks)


def longest_kernels(sizes: Sizes, x: Tensor) -> list[str]:
    """Of an epoch at the largest latent_dim, those that take most of the device's time."""
    from torch.profiler import ProfilerActivity, profile

    saes, cells = saes_of(sizes, sizes.latent_dims[-1], len(x))
    stack = make_stack(saes, cells, x.device)
    order = torch.stack([torch.randperm(x.shape[1], device=x.device) for _ in saes])
    on_gpu = sizes.device == "cuda"
    with (
        float32_products("tf32"),
        profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen,
    ):
        train_epoch(stack, x, order, sizes.batch_size, LR, 0)
        wait_for(sizes.device)
    spent = [
        (one.self_device_time_total if on_gpu else one.self_cpu_time_total, one.count, one.key)
        for one in seen.key_averages()
    ]
    return [
        f"{time / 1e3:8.2f} ms in {count:4} of {key[:90]}" for time, count, key in sorted(spent)[::-1][:KERNELS_TOLD]
    ]
