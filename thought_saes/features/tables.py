"""The tables of interpret_features.py as DataFrames: the notebook's door."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from thought_saes.common.errors import DamagedFile, InputError, one_line, shorten
from thought_saes.results.names import AXES

FEATURES, CONCEPTS, SCORES = "features.parquet", "concepts.parquet", "concept_scores.json"
COVERAGE = "coverage.csv"
COLUMNS: dict[str, dict[str, Sequence[str]]] = {
    FEATURES: {
        "whole numbers": [*AXES, "feature", "sign"],
        "numbers": ["density", "max_activation", "mean_activation", "f1", "precision", "recall", "threshold", "cut"],
        "texts": ["half", "concept"],
    },
    CONCEPTS: {
        "whole numbers": [*AXES, "n_rows"],
        "numbers": ["f1", "precision", "recall", "threshold"],
        "texts": ["concept", "representation", "half"],
    },
}


class Tables(NamedTuple):
    """What single features do."""

    features: pd.DataFrame  # a row a half of every SAE looked at
    concepts: pd.DataFrame  # a row a concept x representation x cell


def load_features(folder: Path | str) -> Tables:
    """The tables in `folder`. Raises InputError if they are not there, DamagedFile if they are not such tables."""
    return Tables(*(read_table(Path(folder) / name, kinds) for name, kinds in COLUMNS.items()))


def read_table(path: Path, kinds: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """A Parquet file that has columns of these names, by kind; others may be there, too."""
    import pyarrow  # as late as this: reports import this module
    from pyarrow import parquet

    is_kind = {
        "whole numbers": pyarrow.types.is_integer,
        "numbers": pyarrow.types.is_floating,
        "texts": lambda kind: pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind),
    }
    if not path.exists():
        raise InputError(f"no file {path}: interpret_features.py writes it")
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (ValueError, OSError, pyarrow.ArrowException) as problem:
        if getattr(problem, "errno", None) is not None:  # it may not be read, say
            raise
        reason = shorten(one_line(problem), 120)
        raise DamagedFile(f"{path} is damaged ({reason}): run interpret_features.py again") from problem
    for kind, names in kinds.items():
        for name in names:
            if name not in table.column_names:
                raise DamagedFile(f"{path} has no column '{name}': run interpret_features.py again")
            if not is_kind[kind](table.schema.field(name).type):
                raise DamagedFile(f"{path}: column '{name}' does not hold {kind}: run interpret_features.py again")
    # As the columns are: what pandas noted beside them may say otherwise.
    found = table.replace_schema_metadata().to_pandas()
    return found.astype({name: "Int64" for name in ("latent_dim", "k") if found[name].hasnans})
