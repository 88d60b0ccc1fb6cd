"""What `gpu_check.py` measures on a GPU, part by part. Each part is a function of the sizes and gives its report."""

import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.cases import synthetic_rows
from benchmarks.gpu_sizes import (
    LR,
    Report,
    Sizes,
    orders_of,
    rows_of,
    saes_of,
    seconds_of,
    wait_for,
)
from benchmarks.gpu_steps import selection, steps
from benchmarks.textbook import textbook_step
from thought_saes.activations.cell import Cell, cell_path
from thought_saes.common.command_line import package_versions
from thought_saes.common.machine import float32_products
from thought_saes.saes.measures import evaluate
from thought_saes.training.freezing import LiveEpochs
from thought_saes.training.fused.selection import Selection
from thought_saes.training.stack import (
    make_stack,
    train_epoch,
    train_stack,
    trained_tensors,
)
from thought_saes.training.start import epoch_orders

CELLS_OF_THE_GRID = 96
MOST_CHANGE = 1e-2  # of weights after a few steps, against the CPU's: of how far they came
MOST_FVU_CHANGE = 0.03
MOST_METRIC_CHANGE = 1e-5
ROOT = Path(__file__).parent.parent


def machine(sizes: Sizes) -> Report:
    """Versions, and what the device reaches at copying and at the products of our shapes."""
    figures: dict[str, Any] = package_versions("torch", "numpy", "transformers")
    if sizes.device == "cuda":
        figures |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    n_values = 1 << (28 if sizes.device == "cuda" else 16)
    source, target = (torch.zeros(n_values, device=sizes.device) for _ in range(2))
    figures["copy GB/s"] = 8 * n_values / seconds_of(lambda: target.copy_(source), sizes) / 1e9
    n_sae = len(sizes.k_values) * sizes.cells_of_a_stack
    batch = torch.randn(n_sae, sizes.batch_size, sizes.input_dim, device=sizes.device)
    for latent_dim in sizes.latent_dims:
        W_enc = torch.randn(n_sae, sizes.input_dim, latent_dim, device=sizes.device)
        operations = 2 * batch.numel() * latent_dim
        for precision in ("ieee", "tf32"):
            with float32_products(precision):
                seconds = seconds_of(partial(torch.bmm, batch, W_enc), sizes)
            figures[f"encoder product, {latent_dim} features, {precision}: TFLOP/s"] = operations / seconds / 1e12
    return Report(figures, {})


def agreement(sizes: Sizes) -> Report:
    """The same SAEs on the device and on the CPU."""
    latent_dim, n_steps = sizes.latent_dims[len(sizes.latent_dims) // 2], 5
    there, validation_there = rows_of(sizes)
    here, validation_here = there.cpu(), validation_there.cpu()
    [order] = orders_of(sizes, there.shape[1], 1)
    few = torch.from_numpy(order[:, : n_steps * sizes.batch_size])
    stacks = []
    for x in (here, there):
        saes, cells = saes_of(sizes, latent_dim)
        stack = make_stack(saes, cells, x.device)
        begun = [weight.cpu().clone() for weight in stack.weights]
        with float32_products("ieee"):
            epoch = train_epoch(stack, x, few.expand(len(saes), -1).to(x.device), sizes.batch_size, LR, 0)
        stacks.append(([weight.cpu() for weight in stack.weights], epoch.fired.cpu()))
    (expected, fired_expected), (found, fired) = stacks
    change = max(
        float((ours - theirs).norm() / (theirs - before).norm())
        for ours, theirs, before in zip(found, expected, begun, strict=True)
    )
    trained = []
    for x in (here, there):
        saes, cells = saes_of(sizes, latent_dim)
        orders = orders_of(sizes, x.shape[1], sizes.epochs)
        train_stack(saes, cells, x, orders, sizes.batch_size, LR, run_epoch=LiveEpochs())
        trained.append([evaluate(sae, x[0], (validation_here if x is here else validation_there)[0]) for sae in saes])
    fvu_change = max(abs(ours["fvu"] / theirs["fvu"] - 1) for theirs, ours in zip(*trained, strict=True))
    again = evaluate(saes[0].cpu(), here[0], validation_here[0])
    metric_change = max(
        abs(again[name] - value) / max(abs(value), 1e-12)
        for name, value in trained[1][0].items()
        if isinstance(value, float) and value == value
    )
    figures = {"weights": change, "fvu": fvu_change, "metrics": metric_change, "a warm epoch waits": None}
    checks = {
        f"weights after {n_steps} steps within {MOST_CHANGE:g} of the way": change <= MOST_CHANGE,
        "the same features fired": torch.equal(fired, fired_expected),
        f"fvu within {MOST_FVU_CHANGE:.0%} after {sizes.epochs} epochs": fvu_change <= MOST_FVU_CHANGE,
        f"metrics of one SAE within {MOST_METRIC_CHANGE:g}": metric_change <= MOST_METRIC_CHANGE,
    }
    if sizes.device == "cuda":
        figures["a warm epoch waits"] = waits_in_a_warm_epoch(sizes, latent_dim)
        checks["nothing waits in a warm epoch"] = figures["a warm epoch waits"] == ""
    return Report(figures, checks)


def waits_in_a_warm_epoch(sizes: Sizes, latent_dim: int) -> str:
    """What CUDA says waits within the second epoch; empty if nothing does."""
    x, _ = rows_of(sizes)
    saes, cells = saes_of(sizes, latent_dim)
    stack = make_stack(saes, cells, x.device)
    order = torch.stack([torch.randperm(x.shape[1], device=x.device) for _ in saes])
    train_epoch(stack, x, order, sizes.batch_size, LR, 0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_epoch(stack, x, order, sizes.batch_size, LR, 1)
        said = [str(one.message) for one in caught if "synchroniz" in str(one.message)]
        return "; ".join(said[1:])  # the first: the values of k, which come over at the beginning of an epoch
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train_by_the_textbook(sizes: Sizes, latent_dim: int) -> float:
    """Seconds of the textbook loop for every k of one latent_dim, for a few epochs."""
    x = rows_of(sizes)[0][0]
    total = 0.0
    for sae in saes_of(sizes, latent_dim)[0]:
        weights = [tensor.detach().clone() for tensor in trained_tensors(sae.to(sizes.device))]
        step = textbook_step(weights, Selection("abstopk", sae.k), LR)
        step(x[: sizes.batch_size], LR)
        wait_for(sizes.device)
        started = time.perf_counter()
        for order in epoch_orders(len(x), sizes.textbook_epochs, 0, Cell(0, 0)):
            for rows in torch.from_numpy(order).to(x.device).split(sizes.batch_size):
                step(x[rows], LR)
        wait_for(sizes.device)
        total += time.perf_counter() - started
    return total


def textbook(sizes: Sizes) -> Report:
    """The textbook loop on one cell, alone and in the experiment's layout: a process for each latent_dim, at once."""
    scale = sizes.epochs / sizes.textbook_epochs * CELLS_OF_THE_GRID
    alone = sum(train_by_the_textbook(sizes, latent_dim) for latent_dim in sizes.latent_dims)
    with multiprocessing.get_context("spawn").Pool(len(sizes.latent_dims)) as pool:
        together = max(pool.starmap(train_by_the_textbook, [(sizes, latent_dim) for latent_dim in sizes.latent_dims]))
    return Report(
        {
            f"{CELLS_OF_THE_GRID} cells, one process: s": alone * scale,
            f"{CELLS_OF_THE_GRID} cells, {len(sizes.latent_dims)} processes: s": together * scale,
        },
        {},
    )


def script(sizes: Sizes) -> Report:
    """`train_all_layers_positions.py` on synthetic cells, with one and with three workers; the grid's time from it."""
    figures: dict[str, Any] = {}
    checks: dict[str, bool] = {}
    with TemporaryDirectory() as folder:
        activations = Path(folder) / "activations"
        activations.mkdir()
        x = synthetic_rows(sizes.n_rows, sizes.input_dim)
        for layer in range(sizes.cells_of_the_script):
            np.save(cell_path(activations, Cell(layer, 0)), np.roll(x, layer, axis=1))
        for workers in sizes.workers:
            words: list[Any] = ["--activations", activations, "--results", Path(folder) / f"results{workers}"]
            words += ["--latent-dims", *sizes.latent_dims, "--k-values", *sizes.k_values, "--epochs", sizes.epochs]
            words += ["--batch-size", sizes.batch_size, "--device", sizes.device, "--backend", "torch"]
            started = time.perf_counter()
            ended = subprocess.run(
                [sys.executable, ROOT / "train_all_layers_positions.py", *map(str, words), "--workers", str(workers)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - started
            figures[f"{sizes.cells_of_the_script} cells, {workers} workers: s"] = seconds
            scaled = seconds * CELLS_OF_THE_GRID / sizes.cells_of_the_script
            figures[f"{CELLS_OF_THE_GRID} cells, {workers} workers: s"] = scaled
            checks[f"the script ends well with {workers} workers"] = ended.returncode == 0
            if ended.returncode:
                figures[f"what it said with {workers} workers"] = (ended.stdout + ended.stderr)[-2000:]
    return Report(figures, checks)


def extraction(sizes: Sizes) -> Report:
    """Questions a second of a random LLaMA-3.2-1B, and whether a batch gives what each question gives alone."""
    from benchmarks.random_model import random_questions, random_reasoner  # transformers is slow to import

    figures: dict[str, Any] = {}
    checks: dict[str, bool] = {}
    layers, positions = list(range(sizes.layers)), [0, 3, 6]
    questions = random_questions(sizes.vocabulary, max(sizes.question_batches))
    kinds = (("float32", torch.float32, "ieee"), ("TF32", torch.float32, "tf32"), ("bfloat16", torch.bfloat16, "ieee"))
    for name, dtype, precision in kinds:
        reasoner = random_reasoner(sizes.input_dim, sizes.layers, sizes.heads, sizes.vocabulary, dtype, sizes.device)
        with float32_products(precision):  # type: ignore[arg-type]
            for size in sizes.question_batches:
                run_batch = partial(reasoner.hidden_states, questions[:size], layers, positions)
                seconds = seconds_of(run_batch, sizes._replace(repeats=2))
                figures[f"{name}, batch of {size}: questions/s"] = size / seconds
            together = reasoner.hidden_states(questions[:4], layers, positions)
            alone = torch.cat([reasoner.hidden_states([one], layers, positions) for one in questions[:4]])
        difference = float((together - alone).norm() / alone.norm())
        figures[f"{name}: a batch against single questions"] = difference
        if precision == "ieee" and dtype == torch.float32:
            checks["a batch gives what each question gives alone"] = difference < 1e-4
        del reasoner, run_batch
    return Report(figures, checks)


PARTS: dict[str, tuple[Callable[[Sizes], Report], int]] = {  # with the seconds that each may take
    "machine": (machine, 40),
    "agreement": (agreement, 120),
    "steps": (steps, 120),
    "selection": (selection, 40),
    "textbook": (textbook, 120),
    "script": (script, 240),
    "extraction": (extraction, 120),
}
