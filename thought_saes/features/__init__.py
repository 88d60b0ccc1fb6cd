"""What single features of the SAEs mean: known concepts, scores, and pages to look at them."""

from thought_saes.features.tables import Tables, load_features

__all__ = ["Tables", "load_features"]
