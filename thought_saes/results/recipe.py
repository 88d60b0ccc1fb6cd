"""How an SAE is trained: the identity of a results folder, together with its seed and its activations.

Two SAEs are of the same run exactly when `Run.differences` names nothing: resume, replicates and --overwrite all ask
it. A key that an old file lacks means the published recipe.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from thought_saes.saes.names import PUBLISHED as PUBLISHED_VARIANT

ALWAYS_RECORDED = ("epochs", "batch_size", "lr")


@dataclass(frozen=True)
class Recipe:
    """Everything but seed and data that decides how an SAE comes out; by default the published experiment's."""

    epochs: int = 25
    batch_size: int = 256
    lr: float = 1e-3
    variant: str = PUBLISHED_VARIANT
    centre: bool = False  # train on rows less their mean, scaled to a mean squared deviation of 1
    start: str = "linear"  # linear, tied or components: see training/start.py
    lr_decay: bool = False  # the learning rate falls linearly to zero
    whiten: float = 0.0  # of centred rows, by this power: 1 makes all directions alike
    unit_decoder: bool = False  # the decoder's directions keep their unit norm
    weight_decay: float = 0.0  # of both weight matrices, decoupled from the gradient as by AdamW
    aux_alpha: float = 0.0  # weight of the auxiliary loss that revives dead features; 0: none is revived
    aux_k: int = 0  # dead features that it reconstructs with; 0: max(k, 32)
    dead_epochs: int = 2  # a feature is dead when no row of so many epochs has selected it

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What a file's metadata, a checkpoint's config or a run's flags say of it."""
        return cls(**{field.name: record[field.name] for field in fields(cls) if field.name in record})

    def differences(self, other: Self) -> list[str]:
        """The names of the fields in which the two differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]

    def record(self) -> dict[str, Any]:
        """As it goes into files."""
        return asdict(self)


PUBLISHED = Recipe()
# Found by experiment: docs/recipes.md.
IMPROVED = Recipe(centre=True, start="components", lr_decay=True)
RECIPES = {"published": PUBLISHED, "improved": IMPROVED}
STARTS = ("linear", "tied", "components")


@dataclass(frozen=True)
class Run:
    """What one SAE of a folder has in common with all that are of the same run."""

    recipe: Recipe
    seed: int | None  # None: not recorded, as by the original
    activations: str | None  # fingerprint of the cell's rows and split
    # Of the settings that every file of ours records, those that a file lacks: the original's.
    unrecorded: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What a file's metadata says."""
        unrecorded = tuple(name for name in ALWAYS_RECORDED if name not in record)
        return cls(Recipe.of(record), record.get("seed"), record.get("activations"), unrecorded)

    def record(self) -> dict[str, Any]:
        """As it goes into files."""
        return {**self.recipe.record(), "seed": self.seed, "activations": self.activations}

    def differences(self, other: Self) -> list[str]:
        """In words, the first value this one's: 'epochs 3 there, 5 now'."""
        mine, theirs = self.record() | dict.fromkeys(self.unrecorded), other.record()
        return [
            f"{name} {shown(mine[name])} there, {shown(theirs[name])} now"
            for name in mine
            if mine[name] != theirs[name]
        ]


def shown(value: Any) -> str:
    """A recorded value in a message."""
    return "unknown" if value is None else str(value)
