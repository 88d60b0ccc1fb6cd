"""The tables of interpret_features.py as DataFrames: the notebook's door."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from thought_saes.common.errors import InputError

FEATURES, CONCEPTS, SCORES = "features.parquet", "concepts.parquet", "concept_scores.json"
COVERAGE = "coverage.csv"


class Tables(NamedTuple):
    """What single features do."""

    features: pd.DataFrame  # a row a half of every SAE looked at
    concepts: pd.DataFrame  # a row a concept x representation x cell


def load_features(folder: Path | str) -> Tables:
    """The tables in `folder`. Raises InputError if they are not there or damaged."""
    tables = []
    for name in (FEATURES, CONCEPTS):
        path = Path(folder) / name
        if not path.exists():
            raise InputError(f"no file {path}: interpret_features.py writes it")
        try:
            tables.append(pd.read_parquet(path))
        except (ValueError, OSError) as problem:
            raise InputError(f"{path} is damaged ({problem}): run interpret_features.py again") from problem
    return Tables(*tables)
