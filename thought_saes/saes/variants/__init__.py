"""Every SAE variant by its name in flags and files."""

from thought_saes.saes.variant import Variant
from thought_saes.saes.variants.abstopk import AbsTopK
from thought_saes.saes.variants.batchtopk import BatchTopK
from thought_saes.saes.variants.gated import Gated
from thought_saes.saes.variants.jumprelu import JumpReLU
from thought_saes.saes.variants.matryoshka import Matryoshka
from thought_saes.saes.variants.topk import TopK

VARIANTS: dict[str, Variant] = {
    variant.name: variant for variant in (AbsTopK(), TopK(), BatchTopK(), Matryoshka(), JumpReLU(), Gated())
}
