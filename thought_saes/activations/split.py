"""Which rows an SAE is trained on, and which it is measured on."""

from typing import NamedTuple

import numpy as np

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
