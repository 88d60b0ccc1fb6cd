"""What a direction says to the demo model, against the products written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.helpers.codi_checkpoints import VOCABULARY, write_plain
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


@pytest.mark.parametrize(
    ("model_type", "where", "added"), [("gemma2", "norm", 1), ("llama", "norm", 0), ("opt", "final_layer_norm", 0)]
)
def test_gamma_is_what_the_final_norm_multiplies_by(model_type: str, where: str, added: float, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "ffn_dim": 48}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "word_embed_proj_dim": 32}
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **sizes, **heads)
    reasoner = LatentReasoner.load(str(write_plain(tmp_path, config=config)))
    norm = getattr(reasoner.model.get_decoder(), where)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(32))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.rand(32))
    assert torch.allclose(final_norm(reasoner), norm.weight + added, rtol=1e-5)


def test_a_model_without_a_final_norm_has_no_lens_below_the_last_layer(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48}
    post = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}  # as OPT-350m
    config = AutoConfig.for_model("opt", vocab_size=VOCABULARY, **sizes, **post)
    reasoner = LatentReasoner.load(str(write_plain(tmp_path, config=config)))
    with pytest.raises(InputError, match="no norm after the last block is found"):
        final_norm(reasoner)
