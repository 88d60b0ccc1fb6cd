"""What the files of interpret_features.py hold."""

from typing import Annotated, ClassVar

from msgspec import Meta

from thought_saes.common.schema import Change, Count, Number, Record, Share
from thought_saes.saes.formats import Measured


class FamilyCoverage(Record):
    """How well the concepts of one family are told: the mean of their best F1, with its interval of 95 %."""

    coverage: Annotated[Share, Meta(description="mean best F1")]
    low: Share
    high: Share


class Coverage(FamilyCoverage):
    """How well concepts are told: the mean of their best F1, with its interval of 95 %."""

    families: Annotated[dict[str, FamilyCoverage], Meta(description="the same by family of concepts")]


class CoverageDifference(Record):
    """A difference of two coverages, with the interval of 95 % of the paired difference."""

    difference: Change
    low: Change
    high: Change


class Page(Record):
    """The SAEs that have a page."""

    latent_dim: Count
    k: Count


class ScoresMetadata(Record):
    """What was held against which concepts."""

    page: Page
    concepts: Annotated[Count, Meta(description="concepts")]
    concepts_left_out: Annotated[Count, Meta(description="concepts that are too rare")]
    families: Annotated[list[str], Meta(description="their families")]
    n_train: Annotated[Count, Meta(description="rows on which halves and thresholds are chosen")]
    n_validation: Annotated[Count, Meta(description="rows on which they are scored")]
    position_0: Annotated[str, Meta(description="what position 0 is: bot token, or last question token")]


class CellCoverage(Record):
    """What the SAEs of a cell are compared with."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    raw: Annotated[Coverage, Meta(description="dimensions of the activation")]
    pca: Annotated[Coverage, Meta(description="principal components")]
    probe: Annotated[Coverage, Meta(description="a linear probe, the ceiling")]


class SaeCoverage(Record):
    """One SAE against the concepts."""

    layer: Annotated[Count, Meta(description="layer")]
    position: Annotated[Count, Meta(description="thought position")]
    latent_dim: Annotated[Count, Meta(description="features")]
    k: Annotated[Count, Meta(description="latents kept per row")]
    fvu: Annotated[Measured, Meta(description="as its checkpoint says")]
    feature_death_rate: Measured
    sae: Annotated[Coverage, Meta(description="of its halves")]
    untrained: Annotated[Coverage, Meta(description="of the same SAE as its recipe started it")]
    shuffled: Annotated[Coverage, Meta(description="of its halves, the concepts dealt out to other rows")]
    over_raw: Annotated[CoverageDifference, Meta(description="its coverage less that of raw")]
    over_untrained: Annotated[CoverageDifference, Meta(description="likewise")]
    best_family: Annotated[str, Meta(description="family furthest above shuffled")]
    monosemantic_share: Annotated[Share | None, Meta(description="of the judged halves")]
    splitting: Annotated[Number, Meta(description="halves with F1 above 0.5, a concept")]
    monosemantic_halves: Annotated[Count | None, Meta(description="halves of precision 0.95 or more")] = None
    judged_halves: Annotated[Count | None, Meta(description="halves that fire on enough rows")] = None


class ConceptScores(Record):
    """How well single features tell known concepts."""

    file: ClassVar[str] = "results/features/concept_scores.json"
    metadata: ScoresMetadata
    cells: Annotated[list[CellCoverage], Meta(description="a cell each")]
    saes: Annotated[list[SaeCoverage], Meta(min_length=1, description="an SAE each, all of these cells")]

    def __post_init__(self) -> None:
        there = {(cell.layer, cell.position) for cell in self.cells}
        for sae in self.saes:
            if (sae.layer, sae.position) not in there:
                raise ValueError(f"cells has no layer {sae.layer}, position {sae.position}")


class CellScoresFile(Record):
    """One cell's part of concept_scores.json, kept so that a killed run resumes."""

    file: ClassVar[str] = "results/features/parts/pos{p}_layer{l}_concept_scores.json"
    identity: Annotated[str, Meta(description="hash of all that the scores follow from")]
    tables: Annotated[str, Meta(description="hash of the cell's two tables beside it")]
    cell: CellCoverage
    saes: Annotated[list[SaeCoverage], Meta(description="the cell's SAEs")]
