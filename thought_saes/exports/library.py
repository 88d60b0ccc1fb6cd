"""What an export to another library is: which of its classes equals a variant, and the files that it reads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from thought_saes.common.errors import InputError
from thought_saes.exports.weights import Weights
from thought_saes.results.names import SaeKey


class Origin(NamedTuple):
    """What the results say of where their SAEs come from; None where they do not say."""

    model: str | None
    dataset: str | None
    position_0: str | None  # what position 0 is


class Exported(NamedTuple):
    """One SAE on its way out."""

    key: SaeKey
    weights: Weights
    config: Mapping[str, Any]  # of its checkpoint
    metrics: Mapping[str, Any]
    origin: Origin


class Library(ABC):
    """One library's format."""

    name: str  # in --format
    title: str  # as its authors write it
    release: str  # the one whose loader the proof runs
    tag: str  # of the model card
    # By variant, the class that computes the same; a variant that is missing has none, for `reason`.
    equivalents: ClassVar[Mapping[str, str]]
    reason: str

    def files(self, sae: Exported) -> dict[str, bytes]:
        """The files of one SAE's folder by their names; the last one makes the export whole.

        Raises InputError if the library has no class that computes the same.
        """
        variant = sae.weights.variant
        if variant not in self.equivalents:
            raise InputError(f"{self.title} has no class that computes a {variant} SAE ({sae.key}): {self.reason}")
        return self.encoded(sae)

    @abstractmethod
    def encoded(self, sae: Exported) -> dict[str, bytes]:
        """`files` of a variant that the library has."""

    @abstractmethod
    def usage(self, repository: str, folder: str) -> str:
        """Python that loads one SAE, for the model card."""
