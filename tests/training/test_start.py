"""Where an SAE starts, and the order of its rows."""

import torch

from tests.helpers.results import weights
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.training.start import epoch_orders, seeded_sae


def test_the_start_of_an_sae_depends_on_what_it_is() -> None:
    start = weights(seeded_sae(8, SaeKey(Cell(1, 2), 16, 2), 0))
    assert torch.equal(start, weights(seeded_sae(8, SaeKey(Cell(1, 2), 16, 2), 0)))
    for cell, k, seed in ((Cell(1, 2), 2, 1), (Cell(2, 2), 2, 0), (Cell(1, 1), 2, 0), (Cell(1, 2), 3, 0)):
        assert not torch.equal(start, weights(seeded_sae(8, SaeKey(cell, 16, k), seed)))


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order() -> None:
    first, second = epoch_orders(50, 2, 0, Cell(1, 2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
