"""Sparse autoencoders on continuous thoughts. What a notebook wants stands in `thought_saes.notebook`."""

import importlib
from typing import Any

# Loaded when first asked for: they bring pandas, matplotlib and transformers, which a training needs none of.
NOTEBOOK = ("Edit", "LatentReasoner", "export", "heatmap", "load_metrics", "load_sae", "sae", "script", "top_rows")


def __getattr__(name: str) -> Any:
    if name in NOTEBOOK:
        return getattr(importlib.import_module("thought_saes.notebook"), name)
    raise AttributeError(f"module 'thought_saes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *NOTEBOOK])
