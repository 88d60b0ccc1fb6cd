"""Which rows an SAE is trained on, and which it is measured on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from thought_saes.activations.formats import SplitRows
from thought_saes.common.errors import DamagedFile
from thought_saes.common.schema import read_record
from thought_saes.common.text import compact

TRAIN_SIZE = 0.8
SPLIT_SEED = 42
SPLIT_RULE = "scikit-learn train_test_split(train_size=0.8, random_state=42, shuffle=True)"


class Split(NamedTuple):
    """Row indices into every cell's array, in the order of the experiment."""

    train: np.ndarray
    validation: np.ndarray


def split_rows(n_examples: int) -> Split:
    """The experiment's split of `n_examples` rows: SPLIT_RULE, without scikit-learn."""
    permutation = np.random.RandomState(SPLIT_SEED).permutation(n_examples)
    n_validation = n_examples - int(TRAIN_SIZE * n_examples)
    return Split(train=permutation[n_validation:], validation=permutation[:n_validation])


def read_split(path: Path, n_examples: int) -> Split:
    """The rows of each set as a file names them; it may leave rows out.

    Raises DamagedFile if a row is named twice, be it in both sets, or is none of the `n_examples`.
    """
    rows = read_record(path, SplitRows)
    split = Split(*(np.array(named, dtype=np.int64) for named in (rows.train, rows.validation)))
    for name, named in split._asdict().items():
        if beyond := named[named >= n_examples].tolist():
            raise DamagedFile(f"{path}: {name} names row {beyond[0]:,}; there are rows 0 to {n_examples - 1:,}")
        if len(twice := _repeated(named)):
            raise DamagedFile(f"{path}: {name} names rows more than once: {_first(twice)}")
    if len(both := np.intersect1d(split.train, split.validation)):
        raise DamagedFile(f"{path}: rows are in train and in validation, so metrics would lie: {_first(both)}")
    return split


def _repeated(rows: np.ndarray) -> np.ndarray:
    values, counts = np.unique(rows, return_counts=True)
    return values[counts > 1]


def _first(rows: np.ndarray) -> str:
    return compact(rows[:10].tolist()) + (" …" if len(rows) > 10 else "")
