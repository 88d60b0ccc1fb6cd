"""What a direction says to the demo model, against the products written out."""

import numpy as np
import pytest
import torch

from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.features.lenses import TOKENS, final_norm, for_table, look_through
from thought_saes.models.reasoner import LatentReasoner


@pytest.fixture(scope="module")
def reasoner() -> LatentReasoner:
    return LatentReasoner.load(str(ROOT / "demo/model"))


@pytest.mark.parametrize("layer", [0, 1])
def test_the_lenses_are_the_products_that_they_say(reasoner: LatentReasoner, layer: int) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, reasoner.input_dim, generator=generator)
    mean = torch.randn(reasoner.input_dim, generator=generator)
    alphas = torch.tensor([1.0, 4.0, 0.5])
    found = look_through(reasoner, layer, directions, alphas, mean)
    W_U = reasoner.model.get_output_embeddings().weight.detach().double().numpy()
    gamma = reasoner.model.model.norm.weight.detach().double().numpy()
    assert np.abs(gamma - 1).max() > 0.01  # else a forgotten norm would pass
    for d, alpha, lens in zip(directions, alphas, found, strict=True):
        logits = W_U @ (d.double().numpy() * (gamma if layer == 0 else 1))
        order = np.argsort(-logits)
        assert lens.up.tokens == [reasoner.decode([int(token)]) or str(token) for token in order[:TOKENS]]
        assert lens.up.values == pytest.approx(logits[order[:TOKENS]], rel=1e-4)
        assert lens.down.values == pytest.approx(logits[order[::-1][:TOKENS]], rel=1e-4)
        if layer == 0:
            assert lens.thought is None
            continue
        with torch.no_grad():
            moved = (reasoner.feed_back((mean + alpha * d)[None]) - reasoner.feed_back(mean[None]))[0]
        embeddings = reasoner.model.get_input_embeddings().weight.detach()
        cosines = torch.nn.functional.cosine_similarity(embeddings, moved[None], dim=-1)
        assert lens.thought is not None
        assert lens.thought.values == pytest.approx(cosines.topk(TOKENS).values.tolist(), rel=1e-4)
    columns = for_table(found)
    assert columns["lens_up"][1] == found[1].up.tokens
    assert columns["lens_thought"][1] == ([] if layer == 0 else found[1].thought.tokens)  # type: ignore[union-attr]


def test_a_model_whose_final_norm_is_not_found_has_no_lens_below(reasoner: LatentReasoner) -> None:
    class Bare:
        backbone = torch.nn.Linear(2, 2)

    with pytest.raises(InputError, match="no final norm among norm, ln_f"):
        final_norm(Bare())  # type: ignore[arg-type]
