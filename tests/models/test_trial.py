"""What a model is held to when it is loaded: fed thoughts, in a batch and from forks, it computes what it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.helpers.codi_checkpoints import (
    BOS,
    EOS,
    INPUT_DIM,
    QUESTIONS,
    VOCABULARY,
    relative_difference,
    words_to_tokens,
    write_plain,
)
from thought_saes.common.errors import InputError
from thought_saes.models import trial
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.rollout import Rollout

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": INPUT_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
# What stands between a backbone's output and its logits.
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "granite": {"logits_scaling": 7.0},
    "gemma2": {"head_dim": INPUT_DIM // 2, "final_logit_softcapping": 0.05},
    "cohere": {"logit_scale": 0.1},
}
# Layers whose states are written to in place, with attention beside them.
IN_PLACE: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}
# Windows of attention, experts, biases, scales: what else models differ in.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": INPUT_DIM // 2, "sliding_window": 4, "num_local_experts": 4},
    "gemma3_text": {"head_dim": INPUT_DIM // 2, "sliding_window": 4},
    "mixtral": {"num_local_experts": 4},
    "phi3": {"pad_token_id": 0, "sliding_window": 4},
    "llama4_text": {"head_dim": INPUT_DIM // 2, "num_local_experts": 2, "intermediate_size_mlp": 48, "pad_token_id": 0},
    "olmo2": {},
    "nemotron": {},
    "starcoder2": {},
}


def write(folder: Path, model_type: str, **settings: Any) -> str:
    return str(write_plain(folder, config=AutoConfig.for_model(model_type, **COMMON, **settings)))


@pytest.mark.parametrize("model_type", HEADS)
def test_logits_are_those_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    reasoner = LatentReasoner.load(write(tmp_path, model_type, **HEADS[model_type]))
    tokens = torch.tensor([words_to_tokens(QUESTIONS[0], False)])
    with torch.no_grad():
        output = reasoner.model(input_ids=tokens, output_hidden_states=True)
        logits = reasoner.logits(output.hidden_states[-1])
        bare = reasoner.model.get_output_embeddings()(output.hidden_states[-1])
    assert relative_difference(logits[0], output.logits[0]) < 1e-6
    assert (relative_difference(bare[0], output.logits[0]) > 0.1) == (model_type != "llama")
    with torch.no_grad():  # and the backbone is itself again
        assert torch.equal(reasoner.model(input_ids=tokens).logits, output.logits)


@pytest.mark.parametrize("model_type", IN_PLACE)
def test_forks_of_states_that_are_written_in_place_go_their_own_ways(model_type: str, tmp_path: Path) -> None:
    reasoner = LatentReasoner.load(write(tmp_path, model_type, **IN_PLACE[model_type]))
    tokens = [words_to_tokens(question, False) for question in QUESTIONS[:2]]

    def read() -> Rollout:
        rollout = Rollout(reasoner, tokens)
        rollout.read()
        return rollout

    wanted = [read().think().last_hidden_state for _ in range(2)]
    rollout = read()
    fork, turned = rollout.fork(), rollout.fork(rows=[1, 0, 1])
    fork.think(torch.ones(2, 1, reasoner.input_dim))
    assert torch.equal(rollout.fork().think().last_hidden_state, wanted[0])
    assert relative_difference(turned.think().last_hidden_state, wanted[0][[1, 0, 1]]) < 1e-6
    assert torch.equal(rollout.think().last_hidden_state, wanted[1])


@pytest.mark.parametrize(
    ("model_type", "where", "settings"),
    [
        # keeps a state outside the cache
        ("recurrent_gemma", "in a batch", {"lru_width": INPUT_DIM, "block_types": ["recurrent", "attention"]}),
        # goes on from its states by one token only
        ("jamba", "in several tokens at once", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}),
    ],
)
def test_a_model_that_does_otherwise_with_thoughts_is_refused(
    model_type: str, where: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"cannot be fed to \w+: {where} a state is \d+\.\d% of its length from"):
        LatentReasoner.load(write(tmp_path, model_type, **settings))


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures_pass(model_type: str, tmp_path: Path) -> None:
    assert LatentReasoner.load(write(tmp_path, model_type, **OTHERS[model_type])).n_layers == 2


def test_layers_of_different_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^OPTDecoder gives hidden states of {INPUT_DIM} and of 8 values"):
        LatentReasoner.load(write(tmp_path, "opt", word_embed_proj_dim=8, ffn_dim=48))  # as OPT-350m


def test_what_an_architecture_raises_is_said_in_one_line(tmp_path: Path) -> None:
    few = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "num_experts": 2, "head_dim": INPUT_DIM // 2}
    folder = write(tmp_path, "qwen3_next", layer_types=["linear_attention"] * 2, **few)
    with pytest.raises(InputError, match=r"^thoughts cannot be fed to Qwen3NextModel \(.*LinearAttention layers\.\)$"):
        LatentReasoner.load(folder)


@pytest.mark.parametrize(("where", "spoiled"), [("in its logits", "logits"), ("in a batch", "feed_back")])
def test_the_trial_tells_where_the_model_does_otherwise(
    where: str, spoiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasoner = LatentReasoner.load(write(tmp_path, "llama"))
    own, calls = getattr(reasoner, spoiled), []

    def spoil(states: torch.Tensor) -> torch.Tensor:
        calls.append(len(states))
        return own(states) * (1.01 if len(states) == 2 else 1)  # what a batch has, and a question alone has not

    monkeypatch.setattr(reasoner, spoiled, spoil)
    with pytest.raises(InputError, match=rf"fed to LlamaModel: {where} a state is \d\.\d% of its length"):
        trial.try_out(reasoner)
    assert 2 in calls


def test_positions_that_are_computed_need_no_tensor_as_long(tmp_path: Path) -> None:
    sizes = {"n_embd": INPUT_DIM, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    config = AutoConfig.for_model("gptj", vocab_size=VOCABULARY, n_positions=512, bos_token_id=BOS, **sizes)
    assert LatentReasoner.load(str(write_plain(tmp_path, config=config))).n_layers == 2
