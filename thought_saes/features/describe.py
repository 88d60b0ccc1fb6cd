"""One row a half: how often it fires, on which questions, and which concepts it tells. The rows of features.parquet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from thought_saes.features.scores import Halves, half_name, maxima
from thought_saes.results.names import AXES, SaeKey

BINS = 30
TOP_ROWS = 20
QUANTILES = 4
ROWS_PER_QUANTILE = 4
SILENT_ROWS = 5


def describe_halves(key: SaeKey, entries: csr_array, halves: Halves, names: Sequence[str]) -> pd.DataFrame:
    """A row for each half of an SAE with `entries` (n_rows, latent_dim) on all rows, dead ones included.

    `histogram` counts the activations in BINS equal bins from 0 to `max_activation`; `quantile_rows` are examples of
    each quarter of the firing rows, the strongest quarter first; `silent_rows` do not fire.
    """
    columns = entries.tocsc()
    n_rows = entries.shape[0]
    highest = maxima(entries)
    generator = np.random.default_rng([*key.values])
    records: list[dict[str, Any]] = []
    for half, maximum in enumerate(halves.maximum):
        feature, negative = divmod(half, 2)
        place = slice(columns.indptr[feature], columns.indptr[feature + 1])
        values = -columns.data[place] if negative else columns.data[place]
        fires = values > 0
        rows, values = columns.indices[place][fires], values[fires]
        told = [concept for concept in halves.leading[half] if concept >= 0]
        record: dict[str, Any] = {
            **dict(zip(AXES, key.values, strict=True)),
            "half": half_name(half),
            "feature": feature,
            "sign": -1 if negative else 1,
            "density": len(rows) / n_rows,
            "max_activation": float(highest[half]) if len(rows) else np.nan,
            "mean_activation": float(values.mean()) if len(rows) else np.nan,
            "concept": names[halves.concept[half]] if halves.concept[half] >= 0 else None,
            "f1": halves.f1[half],
            "precision": halves.precision[half],
            "recall": halves.recall[half],
            "threshold": halves.threshold[half],
            "cut": halves.threshold[half] * maximum,
            "concepts": [names[concept] for concept in told],
            "concepts_f1": [float(value) for value in halves.leading_f1[half][: len(told)]],
        }
        records.append(record | _examples(rows, values, highest[half], n_rows, generator))
    return pd.DataFrame(records)


def _examples(
    rows: np.ndarray, values: np.ndarray, highest: float, n_rows: int, generator: np.random.Generator
) -> dict[str, Any]:
    """The histogram and the example rows of a half that fires on `rows` with `values` > 0."""
    order = np.lexsort((rows, -values))
    histogram = np.histogram(values, bins=BINS, range=(0, highest))[0] if len(rows) else np.zeros(0, dtype=int)
    quantile_rows: list[int] = []
    if len(rows) > TOP_ROWS:
        for quarter in np.array_split(order, QUANTILES):
            quantile_rows += quarter[np.linspace(0, len(quarter) - 1, ROWS_PER_QUANTILE).astype(int)].tolist()
    drawn = generator.choice(n_rows, size=min(n_rows, 4 * SILENT_ROWS), replace=False)
    silent = drawn[~np.isin(drawn, rows)][:SILENT_ROWS]
    return {
        "histogram": histogram.tolist(),
        "top_rows": rows[order[:TOP_ROWS]].tolist(),
        "top_activations": values[order[:TOP_ROWS]].astype(float).tolist(),
        "quantile_rows": rows[quantile_rows].tolist(),
        "quantile_activations": values[quantile_rows].astype(float).tolist(),
        "silent_rows": silent.tolist() if len(rows) else [],
    }
