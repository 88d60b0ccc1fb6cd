"""Each checkpoint layout, written small from its description: it loads, thinks as its unmerged model, and is saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.codi_checkpoints import (
    BOS,
    BOT,
    EOS,
    EOT,
    INPUT_DIM,
    LORA_ALPHA,
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
    write_state,
)
from thought_saes.common.errors import InputError
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.models.rollout import Rollout

TOLERANCE = 1e-4
LAYERS, POSITIONS = range(N_LAYERS), range(7)


@pytest.fixture(scope="module")
def codi(tmp_path_factory: pytest.TempPathFactory) -> CodiFiles:
    return write_codi(tmp_path_factory.mktemp("codi"), "llama")


def assert_thinks_as(reasoner: LatentReasoner, model: Any, projection: Any, rows: list[list[int]], tmp: Path) -> None:
    """Batched, alone, and after it was saved and loaded again."""
    assert [reasoner.tokenize(question) for question in QUESTIONS] == rows
    reference = torch.stack([rollout(model, projection, row) for row in rows])
    assert relative_difference(reasoner.hidden_states(rows, LAYERS, POSITIONS), reference) < TOLERANCE
    alone = torch.cat([reasoner.hidden_states([row], LAYERS, POSITIONS) for row in rows])
    assert relative_difference(alone, reference) < TOLERANCE
    reasoner.save_pretrained(tmp / "saved")
    again = LatentReasoner.load(str(tmp / "saved"))
    assert [again.tokenize(question) for question in QUESTIONS] == rows
    assert torch.equal(again.hidden_states(rows, LAYERS, POSITIONS), reasoner.hidden_states(rows, LAYERS, POSITIONS))
    assert again.fingerprint() == reasoner.fingerprint()
    assert (again.layout, again.answer_template) == (reasoner.layout, reasoner.answer_template)


def codi_rows(codi: CodiFiles, *before_bot: int) -> list[list[int]]:
    return [[*words_to_tokens(question, codi.bos), *before_bot, BOT] for question in QUESTIONS]


def test_sim_cots_modules_for_training_are_ignored_by_name(codi: CodiFiles, tmp_path: Path) -> None:
    extra = {f"{name}.weight": torch.ones(3) for name in ("decoder.model.norm", "pj_in", "pj_out")}
    folder = write_state(tmp_path / "checkpoint", codi_state(codi.live) | extra)
    reasoner = LatentReasoner.load(str(folder), str(codi.base), LORA_ALPHA)
    assert reasoner.layout == "sim-cot"
    assert_thinks_as(reasoner, codi.live.codi, codi.live.prj, codi_rows(codi), tmp_path)
    with pytest.raises(InputError, match=r"pj_in\.weight is left over"):
        LatentReasoner.load(str(folder), str(codi.base), LORA_ALPHA, layout="codi")


def test_answer_only_codi_puts_eos_before_bot_and_an_instruction_behind_the_question(
    codi: CodiFiles, tmp_path: Path
) -> None:
    reasoner = LatentReasoner.load(
        str(codi.checkpoint),
        str(codi.base),
        LORA_ALPHA,
        layout="codi-answer-only",
        question_template="{question} how many ?",
    )
    end = [*words_to_tokens("how many ?", False), EOS]
    assert_thinks_as(reasoner, codi.live.codi, codi.live.prj, codi_rows(codi, *end), tmp_path)
    assert reasoner.fingerprint() != LatentReasoner.load(str(codi.checkpoint), str(codi.base), LORA_ALPHA).fingerprint()


def test_coconut_feeds_back_the_raw_state_from_its_start_token(codi: CodiFiles, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(small_config("llama", VOCABULARY + 3)).eval()
    randomize(model, seed=8)
    state = {
        f"base_causallm.{key}": value.clone() for key, value in model.state_dict().items() if key != "lm_head.weight"
    }
    state["embedding.weight"] = model.get_input_embeddings().weight.detach().clone()
    folder = write_state(tmp_path / "checkpoint", state)
    reasoner = LatentReasoner.load(str(folder), str(codi.base))
    assert (reasoner.bot_token_id, reasoner.eot_token_id) == (VOCABULARY, VOCABULARY + 1)
    assert reasoner.question_template == "{question}\n"
    rows = [[*words_to_tokens(question, True), VOCABULARY] for question in QUESTIONS]
    assert_thinks_as(reasoner, model, None, rows, tmp_path)
    with pytest.raises(InputError, match="is a Coconut checkpoint: say what it was trained on with --base-model"):
        LatentReasoner.load(str(folder))


def latent_tts(codi: CodiFiles, folder: Path, **ids: Any) -> Path:
    """Merged weights, another name of the projection, and the ids in the config."""
    LatentReasoner.load(str(codi.checkpoint), str(codi.base), LORA_ALPHA).save_pretrained(folder)
    (folder / "thoughts.json").unlink()
    state = load_file(folder / "model.safetensors")
    names = {"1.": "projector.1.", "3.": "projector.3.", "ln.": "projector.4."}
    for key, value in load_file(folder / "projection.safetensors").items():
        beginning = next(ours for ours in names if key.startswith(ours))
        state[names[beginning] + key.removeprefix(beginning)] = value
    (folder / "projection.safetensors").unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ids))
    return folder


def test_latent_tts_has_merged_weights_and_its_ids_in_the_config(codi: CodiFiles, tmp_path: Path) -> None:
    folder = latent_tts(codi, tmp_path / "model", latent_start_id=BOT, latent_end_id=EOT)
    reasoner = LatentReasoner.load(str(folder))
    assert (reasoner.layout, reasoner.eot_token_id) == ("latent-tts", EOT)
    assert_thinks_as(reasoner, codi.live.codi, codi.live.prj, codi_rows(codi), tmp_path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({}, "config.json has none of latent_start_id"),
        ({"start_id": BOT}, "config.json has none of latent_end_id"),
        ({"start_id": BOT, "end_id": 500}, "eot_token_id is 500, and the model has tokens 0 to"),
        ({"start_id": "x", "end_id": EOT}, "start_id in config.json is 'x', not a token id"),
    ],
)
def test_ids_that_the_config_lacks_or_the_model_has_no_rows_for_are_refused(
    codi: CodiFiles, tmp_path: Path, ids: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LatentReasoner.load(str(latent_tts(codi, tmp_path / "model", **ids)))


def test_new_tokens_follow_the_tokenizers_own_in_a_padded_vocabulary(tmp_path: Path) -> None:
    padded = VOCABULARY + 9
    model = AutoModelForCausalLM.from_config(small_config("llama", padded)).eval()
    randomize(model, seed=9)
    state = {
        "codi.base_model.model." + key: value for key, value in model.state_dict().items() if key != "lm_head.weight"
    }
    folder = write_state(tmp_path / "checkpoint", {key: value.clone() for key, value in state.items()})
    small_config("llama", padded).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", bos=True)
    reasoner = LatentReasoner.load(str(folder), str(tmp_path / "base"))
    assert (reasoner.bot_token_id, reasoner.eot_token_id) == (BOT, EOT)
    rows = [[BOS, *words_to_tokens(question, False), BOT] for question in QUESTIONS]
    assert_thinks_as(reasoner, model, None, rows, tmp_path)


def test_a_layout_that_does_not_fit_is_one_message(codi: CodiFiles) -> None:
    with pytest.raises(InputError, match="do not fit the base model"):
        LatentReasoner.load(str(codi.checkpoint), str(codi.base), layout="coconut")
    with pytest.raises(InputError, match="there is no layout 'x'; there are sim-cot, codi"):
        LatentReasoner.load(str(codi.checkpoint), str(codi.base), layout="x")
    with pytest.raises(InputError, match=r"the question template has no \{question\}"):
        LatentReasoner.load(str(codi.checkpoint), str(codi.base), question_template="how many")
    with pytest.raises(InputError, match="tokenize: the question template has no"):
        LatentReasoner.load(str(codi.checkpoint), str(codi.base)).tokenize("how many", "many")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bot_token_id": 3.7}, "bot_token_id is 3.7, not a whole number"),
        ({"bot_token_id": True}, "bot_token_id is true, not a whole number"),
        ({"eot_token_id": 34}, "eot_token_id is 34, and the model has tokens 0 to 33"),
        ({"eot_token_id": -1}, "eot_token_id is -1, not a whole number of 0 or more"),
        ({"before_bot": [2, 99]}, "before_bot is 99, and the model has tokens 0 to 33"),
        ({"n_thoughts": 0}, "n_thoughts is 0"),
        ({"question_template": "x"}, "the question template has no {question}"),
        ({"projection": False}, "projection is false, and there is a projection.safetensors"),
    ],
)
def test_a_thoughts_file_that_says_what_cannot_be_is_refused(
    codi: CodiFiles, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    LatentReasoner.load(str(codi.checkpoint), str(codi.base)).save_pretrained(tmp_path)
    path = tmp_path / "thoughts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as refused:
        LatentReasoner.load(str(tmp_path))
    assert message in str(refused.value)


def test_a_thoughts_file_of_two_ids_is_of_a_codi_model(codi: CodiFiles, tmp_path: Path) -> None:
    whole = LatentReasoner.load(str(codi.checkpoint), str(codi.base))
    whole.save_pretrained(tmp_path)
    (tmp_path / "thoughts.json").write_text(json.dumps({"bot_token_id": BOT, "eot_token_id": EOT}))
    loaded = LatentReasoner.load(str(tmp_path))
    assert loaded.n_thoughts == 6
    assert loaded.fingerprint() == whole.fingerprint()


def test_weights_of_more_layers_than_the_config_has_are_refused(codi: CodiFiles, tmp_path: Path) -> None:
    LatentReasoner.load(str(codi.checkpoint), str(codi.base)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    with pytest.raises(InputError, match="is no model that can be loaded"):
        LatentReasoner.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": N_LAYERS - 1}))
    with pytest.raises(InputError, match=r"do not fit its config.json: model\.layers\.2\..* is left over"):
        LatentReasoner.load(str(tmp_path))


def test_a_model_file_that_cannot_be_opened_is_an_error_of_the_system(codi: CodiFiles, tmp_path: Path) -> None:
    shutil.copytree(codi.base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        LatentReasoner.load(str(tmp_path))


def test_after_eot_tokens_are_said_before_the_answer(codi: CodiFiles) -> None:
    reasoner = LatentReasoner.load(str(codi.checkpoint), str(codi.base), LORA_ALPHA)
    tokens = reasoner.tokenize(QUESTIONS[0])
    states: dict[int, Tensor] = {}
    for n_after in (0, 2):
        reasoner.after_eot = [7, 8][:n_after]
        rollout = Rollout(reasoner, [tokens])
        rollout.read()
        rollout.think()
        states[n_after] = rollout.states_before([[7, 8, 9]] if n_after == 0 else [[9]])
        assert states[n_after].shape == (1, 3 - n_after, INPUT_DIM)
    assert relative_difference(states[2], states[0][:, 2:]) < TOLERANCE
