"""What follows from `edits.json`: which step a cell holds, where a swap can be shown, which features matter."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from thought_saes.downstream.edit_formats import CEILING

EDITS_FILE = "edits.json"
EFFECT = 0.05  # q-value below which a feature that is taken out changes answers


class CellSwap(NamedTuple):
    """The swap of one step's value at one cell by one SAE."""

    layer: int
    position: int
    latent_dim: int
    k: int
    step: int
    records: dict[tuple[str, int | None], dict[str, Any]]  # by condition and n_features

    def share(self, condition: str, n_features: int | None = None) -> float | None:
        """Of answers that are the counterfactual ones; None if that was not measured."""
        record = self.records.get((condition, n_features))
        return None if record is None else record["counterfactual"]

    @property
    def n_questions(self) -> int:
        return int(next(iter(self.records.values()))["n_questions"])


def cell_swaps(swaps: Sequence[dict[str, Any]]) -> list[CellSwap]:
    """One for each cell and SAE: of its steps the one whose difference of class means swaps most answers.

    The ceiling chooses, not what is held against it. Steps that no question has are left out.
    """
    found: dict[tuple[int, ...], dict[int, CellSwap]] = defaultdict(dict)
    for record in swaps:
        if record["n_questions"]:
            layer, position, latent_dim, k, step = (
                record[name] for name in ("layer", "position", "latent_dim", "k", "step")
            )
            swap = CellSwap(layer, position, latent_dim, k, step, {})
            found[layer, position, latent_dim, k].setdefault(step, swap).records[
                record["condition"], record["n_features"]
            ] = record
    return [max(steps.values(), key=lambda one: one.share(CEILING) or 0.0) for _, steps in sorted(found.items())]


def clearest(swaps: Sequence[CellSwap]) -> CellSwap | None:
    """The cell of the highest ceiling at which single features were swapped too; None if there is none."""
    some = [swap for swap in swaps if swap.share(CEILING) is not None and swap.share("sae") is not None]
    return max(some, key=lambda one: one.share(CEILING) or 0.0, default=None)


def numbers_of_features(swaps: Sequence[CellSwap]) -> list[int]:
    """How many features were swapped together, ascending."""
    return sorted({n for swap in swaps for condition, n in swap.records if condition == "several" and n})


def that_matter(ablations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The features whose removal shifts the answer more than a random direction as long, the largest KL first."""
    clear = [one for one in ablations if one["kl_over_random_interval"] and one["kl_over_random_interval"][0] > 0]
    return sorted(clear, key=lambda one: -one["kl"])
