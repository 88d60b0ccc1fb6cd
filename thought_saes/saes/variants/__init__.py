"""Every SAE variant by its name in flags and files."""

from thought_saes.saes.variant import Variant
from thought_saes.saes.variants.abstopk import AbsTopK

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (AbsTopK(),)}
PUBLISHED = AbsTopK.name  # the experiment's, and of every file that does not say
