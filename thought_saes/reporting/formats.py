"""Write the page that describes every file, from the models that check them.

python -m thought_saes.reporting.formats > docs/formats.md
"""

import inspect
import types
import typing
from collections.abc import Iterator

import msgspec

from thought_saes.activations.formats import AnswerLine, CacheMetadata, Example, SplitRows
from thought_saes.analysis.formats import AnalysisSummary
from thought_saes.common.schema import Counted, Record
from thought_saes.common.text import table
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.downstream.formats import (
    ErrorPredictionContent,
    SubstitutionContent,
    TransferBaselines,
    TransferContent,
)
from thought_saes.features.formats import CellCoverage, CellScoresFile, ConceptScores, SaeCoverage
from thought_saes.models.formats import Thoughts
from thought_saes.results.formats import BaselinesContent, GridPlan, LastRun, MetricsContent
from thought_saes.saes.formats import CheckpointContent, SaelensConfig

FILES: tuple[type[Record], ...] = (
    CacheMetadata,
    SplitRows,
    Example,
    AnswerLine,
    MetricsContent,
    BaselinesContent,
    GridPlan,
    LastRun,
    AnalysisSummary,
    SubstitutionContent,
    ErrorPredictionContent,
    EditsContent,
    TransferContent,
    ConceptScores,
    CellScoresFile,
    CheckpointContent,
    Thoughts,
    SaelensConfig,
)
HEAD = """# The files, key by key

Written by `python -m thought_saes.reporting.formats > docs/formats.md` from the models that check every file when it is
read. A key that is not named here is ignored. What is wrong with a file is one line: the file, the key, what is there,
what would be right. A whole number is of 64 bits, a number finite; NaN is read as null.

The arrays are `activations/pos{p}_layer{l}.npy`, (n_examples, input_dim) in float32 or float16, rows in the data set's
order; the checkpoints `results/pos{p}_layer{l}_d{latent_dim}_k{k}.pt`, which the README reads in a notebook."""
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", typing.Any: "anything"}

PLURALS = {
    str: "texts",
    CellCoverage: "CellCoverage",
    SaeCoverage: "SaeCoverage",
    TransferBaselines: "TransferBaselines",
}


def kind(hint: typing.Any) -> str:
    """A field's type in words; a record's is its name."""
    if hint is Counted:
        return "whole number"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(one) for one in arguments if one is not type(None)) + " or null"
    if origin is list:
        return f"list of {PLURALS[arguments[0]]}" if arguments[0] in PLURALS else f"list of {kind(arguments[0])}s"
    if origin is tuple:
        return f"{len(arguments)} {kind(arguments[0])}s"
    if origin is dict:
        return f"object: {kind(arguments[1])} by {kind(arguments[0])}"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    return KINDS.get(hint) or hint.__name__


def records(hint: typing.Any) -> Iterator[type[Record]]:
    """The records that a field holds."""
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for argument in typing.get_args(hint):
        yield from records(argument)


def fields_of(model: type[Record], told: set[type[Record]] | None = None) -> str:
    """The fields of a record as a table, then the records within it, but for those that were `told` before."""
    told = set() if told is None else told
    hints = typing.get_type_hints(model, include_extras=True)
    rows: list[list[str]] = []
    inner: list[type[Record]] = []
    for field in msgspec.structs.fields(model):
        hint = hints[field.name]
        about = next((one.description for one in getattr(hint, "__metadata__", ()) if one.description), None) or ""
        rows.append([f"`{field.name}`", kind(hint), "yes" if field.required else "no", about])
        inner += records(hint)
    blocks = [table(["key", "holds", "required", "what it is"], rows, words=4)]
    for one in inner:
        if one not in told:
            told.add(one)
            blocks.append(f"**{one.__name__}.** {inspect.cleandoc(one.__doc__ or '')}\n\n{fields_of(one, told)}")
    return "\n\n".join(blocks)


def page() -> str:
    """docs/formats.md."""
    blocks = [f"## `{model.file}`\n\n{model.__doc__}\n\n{fields_of(model)}" for model in FILES]
    return "\n\n".join([HEAD, *blocks]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
