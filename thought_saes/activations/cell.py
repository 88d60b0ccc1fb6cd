"""Where an activation comes from: a layer and a thought position, and the file that holds it."""

from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """One (layer, position) of the grid: layer l is the stream after block l, position 0 the bot token."""

    layer: int
    position: int

    def __str__(self) -> str:
        return f"layer {self.layer} position {self.position}"


def cell_path(folder: Path, cell: Cell) -> Path:
    """The array of one cell in a folder of activations, (n_examples, input_dim)."""
    return folder / f"pos{cell.position}_layer{cell.layer}.npy"
