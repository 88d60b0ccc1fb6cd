"""The latent-reasoning model: what it loads, and that its batches equal a plain rollout of one question."""

import copy
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.helpers.codi_checkpoints import (
    BOS,
    BOT,
    EOS,
    EOT,
    INPUT_DIM,
    LORA_ALPHA,
    LORA_RANK,
    N_LAYERS,
    QUESTIONS,
    VOCABULARY,
    CodiFiles,
    codi_state,
    randomize,
    relative_difference,
    rollout,
    save_tokenizer,
    small_config,
    words_to_tokens,
    write_codi,
    write_gguf,
    write_plain,
    write_state,
)
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.models import hub, loading
from thought_saes.models.precision import refuse_offloading
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.weights import StateFile

FAMILIES = ["llama", "gpt2"]
LAYERS, POSITIONS = range(N_LAYERS), range(7)
TOLERANCE = 1e-4
PREFIX = "codi.base_model.model."
LLAMA_UP = PREFIX + "model.layers.1.mlp.up_proj."


@pytest.fixture(scope="session")
def codi_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CodiFiles]:
    return {family: write_codi(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def llama(codi_files: dict[str, CodiFiles]) -> CodiFiles:
    return codi_files["llama"]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain"))


def load(files: CodiFiles, checkpoint: Path | None = None, lora_alpha: float = LORA_ALPHA) -> LatentReasoner:
    return LatentReasoner.load(str(checkpoint or files.checkpoint), str(files.base), lora_alpha)


@functools.cache
def reference_states(files: CodiFiles) -> Tensor:
    """(n_questions, n_positions, n_layers, input_dim) of the live, unmerged model, a question at a time."""
    return rollouts(files.live.codi, files.live.prj, files.bos)


def rollouts(model: Any, projection: nn.Module | None, bos: bool) -> Tensor:
    return torch.stack([rollout(model, projection, [*words_to_tokens(question, bos), BOT]) for question in QUESTIONS])


def batch_states(reasoner: LatentReasoner, questions: list[str] = QUESTIONS) -> Tensor:
    return reasoner.hidden_states([reasoner.tokenize(question) for question in questions], LAYERS, POSITIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_uneven_questions_equals_the_unmerged_rollout_of_each(
    codi_files: dict[str, CodiFiles], family: str
) -> None:
    states = batch_states(load(codi_files[family]))
    assert states.shape == (len(QUESTIONS), 7, N_LAYERS, INPUT_DIM)
    assert states.dtype == torch.float32
    assert relative_difference(states, reference_states(codi_files[family])) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_has_the_same_states_alone_and_in_any_batch(codi_files: dict[str, CodiFiles], family: str) -> None:
    reasoner = load(codi_files[family])
    alone = torch.cat([batch_states(reasoner, [question]) for question in QUESTIONS])
    assert relative_difference(batch_states(reasoner), alone) < TOLERANCE
    assert relative_difference(batch_states(reasoner, QUESTIONS[::-1]).flip(0), alone) < TOLERANCE


def test_the_questions_of_a_batch_may_have_different_templates(codi_files: dict[str, CodiFiles]) -> None:
    reasoner = load(codi_files["llama"])
    templates = ["{question}", "{question} how many ?", "how many ? {question}"]
    token_ids = [reasoner.tokenize(QUESTIONS[0], template) for template in templates]
    assert len({tuple(tokens) for tokens in token_ids}) == 3
    together = reasoner.hidden_states(token_ids, [1], [0, 2])
    alone = torch.cat([reasoner.hidden_states([tokens], [1], [0, 2]) for tokens in token_ids])
    assert relative_difference(together, alone) < TOLERANCE
    assert relative_difference(together[:1], together[1:2]) > 0.01


@torch.no_grad()
def plain_answer(reasoner: LatentReasoner, tokens: list[int], thoughts: Tensor | None, n_tokens: int) -> list[int]:
    """One question, no cache, no mask: the whole sequence again for every thought and every token of the answer."""
    embed = reasoner.model.get_input_embeddings()
    inputs = embed(torch.tensor([tokens]))
    for index in range(6):
        last = reasoner.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
        thought = reasoner.feed_back(last) if thoughts is None else thoughts[None, index : index + 1]
        inputs = torch.cat([inputs, thought], dim=1)
    said = [EOT]
    while len(said) <= n_tokens and said[-1] != EOS:
        inputs = torch.cat([inputs, embed(torch.tensor([said[-1:]]))], dim=1)
        said.append(int(reasoner.model(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax()))
    return [token for token in said[1:] if token != EOS]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_a_batch_are_those_of_a_plain_greedy_rollout_of_each(
    codi_files: dict[str, CodiFiles], family: str
) -> None:
    reasoner = load(codi_files[family])
    token_ids = [reasoner.tokenize(question) for question in QUESTIONS]
    others = torch.randn(len(QUESTIONS), 6, INPUT_DIM, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, thoughts in (("own", None), ("others", others)):
        found[name] = reasoner.answers(token_ids, thoughts, max_new_tokens=9)
        for row, tokens in enumerate(token_ids):
            plainly = plain_answer(reasoner, tokens, None if thoughts is None else thoughts[row], 9)
            assert found[name][row] == reasoner.tokenizer.decode(plainly, skip_special_tokens=True)
    assert found["own"] != found["others"]
    states = reasoner.hidden_states(token_ids, [N_LAYERS - 1], range(6))[:, :, 0]
    assert reasoner.answers(token_ids, reasoner.feed_back(states), max_new_tokens=9) == found["own"]


def test_another_lora_alpha_gives_other_states(llama: CodiFiles) -> None:
    assert relative_difference(batch_states(load(llama, lora_alpha=16)), reference_states(llama)) > 0.01


def test_without_the_projection_position_0_is_the_same_and_the_thoughts_are_not(llama: CodiFiles) -> None:
    reasoner = load(llama)
    reasoner.projection = None
    states, reference = batch_states(reasoner), reference_states(llama)
    assert relative_difference(states[:, 0], reference[:, 0]) < TOLERANCE
    assert relative_difference(states[:, 1], reference[:, 1]) > 0.01


@pytest.mark.parametrize("forgotten", ["mask", "position_ids"])
def test_padding_without_mask_or_position_ids_would_be_seen(
    llama: CodiFiles, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(reasoner: LatentReasoner, cache: Any, mask: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        if forgotten == "mask":
            mask = torch.ones_like(mask)
        elif "input_ids" not in inputs:  # CODI's own evaluation forgets them in the thought loop
            position_ids = torch.full_like(position_ids, mask.shape[1] - 1)
        return forward(reasoner, cache, mask, position_ids, **inputs)

    reasoner, forward = load(llama), LatentReasoner.forward
    monkeypatch.setattr(LatentReasoner, "forward", forget)
    assert relative_difference(batch_states(reasoner), reference_states(llama)) > 0.01
    with pytest.raises(InputError, match=r"in a batch a state is .*% of its length from"):
        load(llama)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_l_is_the_stream_after_block_l_and_the_last_is_normed(
    codi_files: dict[str, CodiFiles], family: str
) -> None:
    reasoner = load(codi_files[family])
    backbone = reasoner.backbone
    blocks, norm = (backbone.layers, backbone.norm) if family == "llama" else (backbone.h, backbone.ln_f)
    after_block: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _module, _inputs, output: after_block.append(
                (output[0] if isinstance(output, tuple) else output)[0, -1]
            )
        )
        for block in blocks
    ]
    tokens = reasoner.tokenize(QUESTIONS[0])
    with torch.inference_mode():
        reasoner.model(input_ids=torch.tensor([tokens]))
        last = after_block[-1]
        if family == "llama":
            normed = last / (last.square().mean() + norm.variance_epsilon).sqrt() * norm.weight
        else:
            normed = (last - last.mean()) / (last.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    for hook in hooks:
        hook.remove()
    states = reasoner.hidden_states([tokens], LAYERS, [0])[0, 0]
    assert relative_difference(states, torch.stack([*after_block[:-1], normed])) < TOLERANCE
    assert relative_difference(states[-1:], last[None]) > 0.01


def test_chosen_layers_and_positions_are_those_of_the_whole(llama: CodiFiles) -> None:
    reasoner = load(llama)
    tokens = [reasoner.tokenize(question) for question in QUESTIONS]
    chosen = reasoner.hidden_states(tokens, [0, 2], [1, 4])
    assert torch.equal(chosen, batch_states(reasoner)[:, [1, 4]][:, :, [0, 2]])


def test_bot_and_eot_are_the_second_and_third_row_after_the_base_vocabulary(llama: CodiFiles) -> None:
    reasoner = load(llama)
    assert (reasoner.bot_token_id, reasoner.eot_token_id) == (BOT, EOT) == (VOCABULARY + 1, VOCABULARY + 2)


@pytest.mark.parametrize(("family", "first"), [("llama", [BOS]), ("gpt2", [])])
def test_a_question_gets_the_tokenizers_own_bos_and_the_bot_token(
    codi_files: dict[str, CodiFiles], family: str, first: list[int]
) -> None:
    assert load(codi_files[family]).tokenize("how many ?") == [*first, *words_to_tokens("how many ?", False), BOT]


def test_a_tokenizer_that_appends_eos_loses_it(tmp_path: Path, plain: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    save_tokenizer(tmp_path, bos=True, eos=True)
    assert AutoTokenizer.from_pretrained(tmp_path)("how many ?")["input_ids"][-1] == EOS
    assert LatentReasoner.load(str(tmp_path)).tokenize("how many ?") == words_to_tokens("how many ?", True)


def test_a_plain_model_starts_at_the_last_question_token_and_feeds_back_its_raw_state(plain: Path) -> None:
    reasoner = LatentReasoner.load(str(plain))
    assert reasoner.bot_token_id is None
    model = AutoModelForCausalLM.from_pretrained(plain).eval()
    reference = torch.stack([rollout(model, None, words_to_tokens(question, True), 9) for question in QUESTIONS])
    tokens = [reasoner.tokenize(question) for question in QUESTIONS]
    assert relative_difference(reasoner.hidden_states(tokens, LAYERS, range(9)), reference) < TOLERANCE


SMALL = {"vocab_size": VOCABULARY, "hidden_size": INPUT_DIM, "num_attention_heads": 4, "num_hidden_layers": 2}
OTHER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistral": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 8},
    "qwen3": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": SMALL | {"intermediate_size": 64},
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": INPUT_DIM, "max_position_embeddings": 96},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": INPUT_DIM, "n_head": 4, "n_layer": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_take_half_the_memory_and_leave_the_stream_in_float32(
    codi_files: dict[str, CodiFiles], family: str
) -> None:
    files = codi_files[family]
    full = load(files)
    half = LatentReasoner.load(str(files.checkpoint), str(files.base), LORA_ALPHA, dtype=torch.bfloat16)
    states, reference = batch_states(half), reference_states(files)
    assert half.facts().n_bytes < 0.52 * full.facts().n_bytes
    assert (states != states.bfloat16()).float().mean() > 0.9
    assert 1e-4 < (states - reference).norm() / reference.norm() < 0.1
    assert half.facts().fingerprint != full.facts().fingerprint


@pytest.mark.parametrize("model_type", ["gpt_neox", "opt", "qwen3"])
def test_bfloat16_weights_run_in_other_architectures_too(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type, bos_token_id=BOS, eos_token_id=EOS, **OTHER_ARCHITECTURES[model_type])
    folder = str(write_plain(tmp_path, config=config))
    tokens = [words_to_tokens(question, False) for question in QUESTIONS]
    full, half = (LatentReasoner.load(folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    states = half.hidden_states(tokens, [0, 1], range(4))
    assert relative_difference(states, full.hidden_states(tokens, [0, 1], range(4))) < 0.1


def test_a_device_map_changes_no_state(llama: CodiFiles, plain: Path) -> None:
    for words in ((str(llama.checkpoint), str(llama.base), LORA_ALPHA), (str(plain),)):
        whole, mapped = LatentReasoner.load(*words), LatentReasoner.load(*words, device_map="auto")
        assert torch.equal(batch_states(mapped), batch_states(whole))


def test_without_accelerate_a_device_map_is_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -r requirements-cluster\.txt"):
        LatentReasoner.load(str(plain), device_map="auto")


def test_a_model_that_does_not_fit_on_the_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refuse_offloading(SimpleNamespace(), "it")
    model = SimpleNamespace(hf_device_map={"embed": 0, "layers.7": "cpu", "norm": "disk"})
    with pytest.raises(InputError, match=r"no room for layers\.7 and 1 modules more; .* --model-dtype bfloat16"):
        refuse_offloading(model, "it")


@pytest.mark.parametrize("model_type", OTHER_ARCHITECTURES)
def test_other_architectures_batch_exactly_too(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type, bos_token_id=BOS, eos_token_id=EOS, **OTHER_ARCHITECTURES[model_type])
    reasoner = LatentReasoner.load(str(write_plain(tmp_path, config=config)))
    tokens = [words_to_tokens(question, False) for question in QUESTIONS]
    states = reasoner.hidden_states(tokens, [0, 1], range(4))
    reference = torch.stack([rollout(reasoner.model, None, question, 4) for question in tokens])
    assert relative_difference(states, reference) < TOLERANCE


def test_a_model_that_keeps_no_keys_and_values_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCABULARY, hidden_size=INPUT_DIM, num_hidden_layers=1, state_size=4
    )
    write_plain(tmp_path, config=config)
    with pytest.raises(InputError, match="MambaModel keeps no keys and values"):
        LatentReasoner.load(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_codi_model_loads_without_a_base_model_and_has_the_same_states(
    codi_files: dict[str, CodiFiles], family: str, tmp_path: Path
) -> None:
    reasoner = load(codi_files[family])
    reasoner.save_pretrained(tmp_path)
    again = LatentReasoner.load(str(tmp_path))
    assert torch.equal(batch_states(again), batch_states(reasoner))
    assert (again.bot_token_id, again.eot_token_id) == (BOT, EOT)
    assert again.fingerprint() == reasoner.fingerprint()
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight) == VOCABULARY + 3


def test_a_checkpoint_without_projection_feeds_back_the_raw_state(llama: CodiFiles, tmp_path: Path) -> None:
    state = {key: value for key, value in codi_state(llama.live).items() if not key.startswith("prj.")}
    reasoner = load(llama, write_state(tmp_path, state))
    reasoner.save_pretrained(tmp_path / "saved")
    reference = rollouts(llama.live.codi, None, llama.bos)
    for loaded in (reasoner, LatentReasoner.load(str(tmp_path / "saved"))):
        assert relative_difference(batch_states(loaded), reference) < TOLERANCE


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_bin_checkpoint_equals_the_safetensors_one(llama: CodiFiles, tmp_path: Path, zip_format: bool) -> None:
    torch.save(codi_state(llama.live), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    assert torch.equal(batch_states(load(llama, tmp_path)), batch_states(load(llama)))


def test_a_bfloat16_checkpoint_runs_in_float32(llama: CodiFiles, tmp_path: Path) -> None:
    live = copy.deepcopy(llama.live)
    for parameter in live.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()  # not the rotary buffers
    state = {key: value.to(torch.bfloat16) for key, value in codi_state(live).items()}
    reasoner = load(llama, write_state(tmp_path, state))
    assert reasoner.model.dtype == torch.float32
    reference = rollouts(live.codi, live.prj, llama.bos)
    assert relative_difference(batch_states(reasoner), reference) < TOLERANCE


def test_an_untied_base_has_its_own_head(tmp_path: Path) -> None:
    files = write_codi(tmp_path, "llama", tied=False)
    reasoner = load(files)
    head = files.live.codi.base_model.model.lm_head.weight
    assert torch.equal(reasoner.model.lm_head.weight, head)
    assert not torch.equal(reasoner.model.get_input_embeddings().weight, head)
    assert relative_difference(batch_states(reasoner), reference_states(files)) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("differs", [False, True])
def test_a_stored_head_of_a_tied_base_is_taken_as_it_is(
    codi_files: dict[str, CodiFiles], family: str, differs: bool, tmp_path: Path
) -> None:
    files = codi_files[family]
    head = files.live.codi.get_output_embeddings().weight.detach().clone() + differs
    state = codi_state(files.live) | {PREFIX + "lm_head.weight": head}
    reasoner = load(files, write_state(tmp_path, state))
    assert torch.equal(reasoner.model.get_output_embeddings().weight, head)
    reasoner.save_pretrained(tmp_path / "saved")
    again = LatentReasoner.load(str(tmp_path / "saved"))
    assert torch.equal(again.model.get_output_embeddings().weight, head)
    assert torch.equal(batch_states(again), batch_states(load(files)))


def test_the_attention_masks_that_old_gpt2_files_hold_are_ignored(
    codi_files: dict[str, CodiFiles], tmp_path: Path
) -> None:
    files = codi_files["gpt2"]
    masks = {f"{PREFIX}transformer.h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in LAYERS}
    reasoner = load(files, write_state(tmp_path, codi_state(files.live) | masks))
    assert torch.equal(batch_states(reasoner), batch_states(load(files)))


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a weight is missing": (lambda state: state.pop(PREFIX + "model.norm.weight"), "model.norm.weight is missing"),
    "a base weight under LoRA is missing": (
        lambda state: state.pop(LLAMA_UP + "base_layer.weight"),
        "layers.1.mlp.up_proj.weight is missing; .*lora_A.default.weight is left over",
    ),
    "a weight is left over": (
        lambda state: state.update({PREFIX + "model.layers.0.extra.weight": torch.ones(2)}),
        "model.layers.0.extra.weight is left over",
    ),
    "a key without the prefix": (lambda state: state.update(stray=torch.ones(2)), "stray is left over"),
    "a weight has another shape": (
        lambda state: state.update({PREFIX + "model.norm.weight": torch.ones(7)}),
        r"model.norm.weight is \(7,\), not \(32,\)",
    ),
    "a weight under LoRA is a vector": (
        lambda state: state.update({LLAMA_UP + "base_layer.weight": torch.ones(7)}),
        r"up_proj.weight is \(7,\), not \(64, 32\)",
    ),
    "half of a LoRA pair, A": (
        lambda state: state.pop(LLAMA_UP + "lora_B.default.weight"),
        "up_proj.lora_A.default.weight is left over",
    ),
    "half of a LoRA pair, B": (
        lambda state: state.pop(LLAMA_UP + "lora_A.default.weight"),
        "up_proj.lora_B.default.weight is left over",
    ),
    "a LoRA of another rank": (
        lambda state: state.update({LLAMA_UP + "lora_B.default.weight": torch.ones(64, LORA_RANK + 1)}),
        r"the LoRA of model.layers.1.mlp.up_proj does not fit its weight: A \(4, 32\), B \(64, 5\)",
    ),
    "a LoRA of another width": (
        lambda state: state.update({LLAMA_UP + "lora_A.default.weight": torch.ones(LORA_RANK, 1)}),
        "the LoRA of model.layers.1.mlp.up_proj does not fit its weight",
    ),
    "another kind of LoRA": (
        lambda state: state.update({LLAMA_UP + "lora_magnitude_vector.default.weight": torch.ones(64)}),
        "lora_magnitude_vector.default.weight is left over",
    ),
    "a part of the projection is missing": (lambda state: state.pop("prj.ln.bias"), "ln.bias is missing"),
    "the projection's first part is missing": (lambda state: state.pop("prj.1.weight"), "1.weight is missing"),
    "the projection has too much": (lambda state: state.update({"prj.4.bias": torch.ones(2)}), "4.bias is left over"),
    "only the projection fits": (
        lambda state: [state.pop(key) for key in [*state] if "layers" in key],
        "and 23 more",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_keys_that_do_not_fit_the_base_model_are_named(case: str, llama: CodiFiles, tmp_path: Path) -> None:
    change, message = MISFITS[case]
    state = codi_state(llama.live)
    change(state)
    with pytest.raises(InputError, match=message) as refused:
        load(llama, write_state(tmp_path, state))
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(("n_layers", "message"), [(2, "layers.2.*left over"), (4, r"layers.3.*is missing")])
def test_a_base_model_of_another_depth_is_refused(
    llama: CodiFiles, tmp_path: Path, n_layers: int, message: str
) -> None:
    config = small_config("llama", VOCABULARY)
    config.num_hidden_layers = n_layers
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"do not fit the base model {tmp_path}: .*{message}"):
        LatentReasoner.load(str(llama.checkpoint), str(tmp_path))


def test_a_base_model_of_another_vocabulary_is_refused(llama: CodiFiles, tmp_path: Path) -> None:
    small_config("llama", VOCABULARY + 1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"embed_tokens.weight is \(34, 32\), not \(35, 32\)"):
        LatentReasoner.load(str(llama.checkpoint), str(tmp_path))


def test_a_codi_checkpoint_needs_a_base_model_and_a_plain_model_takes_none(llama: CodiFiles, plain: Path) -> None:
    with pytest.raises(InputError, match=r"is a CODI checkpoint: .*--base-model"):
        LatentReasoner.load(str(llama.checkpoint))
    with pytest.raises(InputError, match="--base-model is for CODI checkpoints"):
        LatentReasoner.load(str(plain), str(llama.base))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_folder_without_tokenizer_is_refused(
    family: str, codi_files: dict[str, CodiFiles], tmp_path: Path
) -> None:
    shutil.copy(codi_files[family].base / "config.json", tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} has no tokenizer"):
        LatentReasoner.load(str(codi_files[family].checkpoint), str(tmp_path))


@pytest.mark.parametrize("content", ["{", "{}", '{"added_tokens": [], "model": {"type": "Unheard"}}'])
def test_a_damaged_tokenizer_is_named(content: str, llama: CodiFiles, tmp_path: Path) -> None:
    shutil.copytree(llama.base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path} has no tokenizer that can be loaded"):
        LatentReasoner.load(str(llama.checkpoint), str(tmp_path))


@pytest.mark.parametrize("config", [None, "{}", "{", '{"model_type": "bert"}', '{"model_type": "vit"}'])
def test_a_base_folder_that_is_no_causal_lm_is_refused(config: str | None, llama: CodiFiles, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=f"{tmp_path}"):
        LatentReasoner.load(str(llama.checkpoint), str(tmp_path))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(InputError, match=r"is no model: it has no model\.safetensors"):
        LatentReasoner.load(str(tmp_path))
    shutil.copy(plain / "model.safetensors", tmp_path)
    with pytest.raises(InputError, match=r"is no model: it has no config.json, and no key begins with codi\."):
        LatentReasoner.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is no model that can be loaded"):
        LatentReasoner.load(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_checkpoint_is_named(llama: CodiFiles, name: str, damage: str, tmp_path: Path) -> None:
    path = write_state(tmp_path, codi_state(llama.live), name) / name
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"garbage " * 99, "empty": b""}[damage])
    with pytest.raises(InputError, match=f"{path} is damaged"):
        load(llama, tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}])
def test_a_bin_file_of_something_else_is_refused(content: object, llama: CodiFiles, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds something else than named tensors"):
        load(llama, tmp_path)


def test_a_plain_model_that_lacks_weights_is_refused_not_filled_with_random_ones(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    state = dict(StateFile.of_folder(plain))
    del state["model.layers.1.mlp.up_proj.weight"]
    state["model.norm.weight"] = torch.ones(7)
    write_state(tmp_path, state)
    with pytest.raises(
        InputError, match=r"layers.1.mlp.up_proj.weight is missing; .*norm.weight is \(7,\), not \(32,\)"
    ):
        LatentReasoner.load(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"bot_token_id": 1}'])
def test_a_damaged_saved_codi_model_is_named(content: str, llama: CodiFiles, tmp_path: Path) -> None:
    load(llama).save_pretrained(tmp_path)
    (tmp_path / "thoughts.json").write_text(content)
    with pytest.raises(InputError, match=r"thoughts\.json"):
        LatentReasoner.load(str(tmp_path))


def test_a_damaged_projection_of_a_saved_codi_model_is_named(llama: CodiFiles, tmp_path: Path) -> None:
    load(llama).save_pretrained(tmp_path)
    (tmp_path / "projection.safetensors").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"projection\.safetensors is damaged"):
        LatentReasoner.load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"", "is no GGUF file"),
        (b"garbage" * 9, "is no GGUF file"),
        (b"GGUF", "no model that can be loaded"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 64, "no model that can be loaded"),
        (b"GGUF\x03\0\0\0" + b"\0" * 16, "no model that can be loaded"),
    ],
)
def test_a_gguf_file_that_is_absent_or_damaged_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        LatentReasoner.load(str(path))
    assert str(path) in str(refused.value)


def test_a_gguf_file_runs_as_the_folder_it_was_made_from(plain: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain).eval()
    write_gguf(tmp_path / "model.gguf", model)
    reasoner = LatentReasoner.load(str(tmp_path / "model.gguf"))
    tokens = [reasoner.tokenize(question) for question in ("abc", "a", "dehgf" * 9)]
    assert len({len(question) for question in tokens}) == 3
    reference = torch.stack([rollout(model, None, question, 4) for question in tokens])
    assert relative_difference(reasoner.hidden_states(tokens, LAYERS, range(4)), reference) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B-Instruct"])
def test_a_hub_model_that_cannot_be_reached_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is no folder, and the hub cannot be reached"):
        LatentReasoner.load(name)


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "two words"])
def test_what_is_neither_folder_nor_hub_id_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is neither a folder nor a model on the hub"):
        LatentReasoner.load(name)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (GatedRepoError, "'some/model' is gated: accept its licence"),
        (RepositoryNotFoundError, "'some/model' is neither a folder nor a model on the hub"),
        (LocalEntryNotFoundError, "the hub cannot be reached"),
        (ConnectionError, r"the hub cannot give the model 'some/model' \(first line second line\)"),
    ],
)
def test_what_the_hub_refuses_is_named(refusal: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: Any, **_options: Any) -> str:
        problem = refusal.__new__(refusal)
        problem.args = ("first line\nsecond line",)
        raise problem

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=message):
        LatentReasoner.load("some/model")


def test_a_disk_full_while_downloading_stays_an_error_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: Any, **_options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(OSError, match="No space left"):
        LatentReasoner.load("some/model")


def test_the_fingerprint_tells_models_apart(llama: CodiFiles, plain: Path) -> None:
    prints = [load(llama).fingerprint(), load(llama, lora_alpha=16).fingerprint()]
    without_projection = load(llama)
    without_projection.projection = None
    other_projection = load(llama)
    assert isinstance(other_projection.projection, nn.Module)
    randomize(other_projection.projection, seed=9)
    prints += [without_projection.fingerprint(), other_projection.fingerprint()]
    prints.append(LatentReasoner.load(str(plain)).fingerprint())
    assert len(set(prints)) == len(prints)
    assert load(llama).fingerprint() == prints[0]


def test_merging_takes_the_checkpoints_own_memory_no_second_copy(llama: CodiFiles, monkeypatch: Any) -> None:
    merged: dict[str, Tensor] = {}

    def keep(*words: Any) -> dict[str, Tensor]:
        merged.update(merge(*words))
        return dict(merged)

    merge = loading.merged_state
    monkeypatch.setattr(loading, "merged_state", keep)
    weights = load(llama).model.state_dict()
    assert all(value.data_ptr() == weights[key].data_ptr() for key, value in merged.items())


@pytest.mark.parametrize("longest", [[1], "many"])
def test_a_tokenizer_whose_longest_text_is_no_number_is_refused(longest: Any, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo" / "model_early", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": longest}))
    with pytest.raises(InputError, match=r"model_max_length in tokenizer_config\.json is .*, not a number"):
        LatentReasoner.load(str(tmp_path / "model"))
