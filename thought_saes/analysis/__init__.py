"""What the metrics of a grid say. For notebooks:

from thought_saes.analysis import load_metrics
load_metrics("results")  # a pandas DataFrame, a row an SAE
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thought_saes.analysis.runs import load_replicates
from thought_saes.analysis.study import judged


def load_metrics(results: str | Path | Sequence[str | Path] = "results") -> pd.DataFrame:
    """All metrics of a results folder, or of several of other seeds, as one table: a row an SAE.

    The columns are layer, position, latent_dim, k, seed (if recorded), every metric, the baselines of the cell, and
    `error`, `relative` (fvu over that of PCA of rank k) and `collapsed`. An incomplete grid is read as it is. Raises
    InputError if there are no metrics or a file is damaged.
    """
    folders = [results] if isinstance(results, str | Path) else list(results)
    return judged(load_replicates([Path(folder) for folder in folders], allow_partial=True).table)
