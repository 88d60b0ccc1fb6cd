"""What a stack is said to take of the memory, against what PyTorch allocates."""

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import IMPROVED, PUBLISHED
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.config import TrainConfig
from thought_saes.training.frame import bytes_of_rows
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import train_saes
from thought_saes.training.stack import bytes_of_a_cell
from thought_saes.training.start import epoch_orders

CELL = Cell(0, 0)


def peak_bytes(config: TrainConfig, input_dim: int, latent_dim: int) -> int:
    """The most that training two SAEs on 300 rows, which are there already, holds at a time."""
    x = torch.randn(300, input_dim, generator=torch.Generator().manual_seed(0))
    prepared = Prepared(x, config.settings)
    saes = [prepared.start(SaeKey(CELL, latent_dim, k), 0) for k in (3, 7)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_saes(saes, [0, 0], x[None], lambda _: epoch_orders(300, 2, 0, CELL), config, "torch", lambda n: None)
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(("input_dim", "latent_dim", "batch_size"), [(128, 32, 300), (16, 128, 300), (64, 256, 30)])
@pytest.mark.parametrize(
    ("variant", "more"),
    [*((name, {}) for name in VARIANTS), ("matryoshka", {"aux_alpha": 0.1}), ("abstopk", {"unit_decoder": True})],
)
def test_a_stack_takes_no_more_than_is_said_and_not_much_less(
    variant: str, more: dict[str, Any], input_dim: int, latent_dim: int, batch_size: int
) -> None:
    config = TrainConfig(variant=variant, epochs=2, batch_size=batch_size, backend="torch", **more)
    said = bytes_of_a_cell(2, 0, input_dim, latent_dim, batch_size, config.settings)
    taken = peak_bytes(config, input_dim, latent_dim)
    assert taken <= said < 1.7 * taken


def test_rows_that_are_framed_are_held_twice_and_what_frames_them_once() -> None:
    assert bytes_of_rows(PUBLISHED, 1000, 8) == 4 * 8000
    assert bytes_of_rows(IMPROVED, 1000, 8) == 2 * 4 * 8000 + 8 * 64
