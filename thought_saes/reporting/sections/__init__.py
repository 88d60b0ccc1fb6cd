"""Sections of the report about what else was measured on the SAEs: one module of this folder each.

EVALUATIONS says what there is to measure and which file of a results folder holds it. The module named as the file is
(`substitution.json`: `substitution.py`) phrases it:

    def tell(folders: Sequence[Path], findings: Findings) -> str | None

returns the section's Markdown without its heading, the finding first, or None where no folder holds the file. What
nobody has measured stands under Limitations and Future Work.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from thought_saes.analysis.findings import Findings
from thought_saes.features.summary import SCORES_FILE

Tell = Callable[[Sequence[Path], Findings], str | None]


class Evaluation(NamedTuple):
    """Something to measure beyond reconstruction."""

    number: str  # of its section
    title: str
    file: str  # in a results folder
    script: str  # writes the file
    question: str  # what it answers


EVALUATIONS = (
    Evaluation(
        "2.7",
        "Substitution",
        "substitution.json",
        "substitute_thoughts.py",
        "does the model still answer as before when an SAE's reconstruction takes the thought's place?",
    ),
    Evaluation(
        "2.8", "Edits of Single Features", "edits.json", "edit_features.py", "what do single features do to the answer?"
    ),
    Evaluation(
        "2.9",
        "Error Prediction",
        "error_prediction.json",
        "predict_errors.py",
        "do features foretell wrong answers, and do configurations of low fvu foretell them better?",
    ),
    Evaluation("2.10", "Transfer", "transfer.json", "evaluate_transfer.py", "what carries over to other questions?"),
    Evaluation("2.11", "Features and Concepts", SCORES_FILE, "interpret_features.py", "what do single features mean?"),
)


def there(evaluation: Evaluation, folders: Sequence[Path]) -> bool:
    """Whether a folder holds what the evaluation wrote."""
    named = evaluation.file.replace(".json", "_*.json")  # of several data sets
    return any((folder / evaluation.file).exists() or any(folder.glob(named)) for folder in folders)


def teller(evaluation: Evaluation) -> Tell | None:
    """What phrases the evaluation; None where it has no module yet."""
    name = f"{__name__}.{Path(evaluation.file).stem}"
    return import_module(name).tell if find_spec(name) else None


def told(folders: Sequence[Path], findings: Findings) -> list[tuple[Evaluation, str]]:
    """The sections that the folders hold something for, in the order of their numbers."""
    sections = []
    for evaluation in EVALUATIONS:
        tell = teller(evaluation) if there(evaluation, folders) else None
        if tell and (text := tell(folders, findings)):
            sections.append((evaluation, text))
    return sections
