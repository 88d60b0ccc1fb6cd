"""What a grid of SAEs shows, concluded once: the report, the terminal and the figures only phrase it."""

from typing import NamedTuple

from thought_saes.analysis.study import Study


class Findings(NamedTuple):
    """The conclusions from a Study."""

    study: Study


def conclude(study: Study) -> Findings:
    return Findings(study)
