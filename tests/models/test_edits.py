"""Edits of states in the rollout, against plain forward hooks on one question at a time, without cache or mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from tests.helpers.codi_checkpoints import (
    BOS,
    EOS,
    EOT,
    INPUT_DIM,
    LORA_ALPHA,
    N_LAYERS,
    QUESTIONS,
    VOCABULARY,
    relative_difference,
    words_to_tokens,
    write_codi,
    write_plain,
)
from thought_saes.models.reasoner import Edit, LatentReasoner, Rollout

FAMILIES = ["llama", "gpt2"]
LAST = N_LAYERS - 1
N_THOUGHTS, N_NEW = 6, 9
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reasoners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LatentReasoner]:
    reasoners = {}
    for family in FAMILIES:
        files = write_codi(tmp_path_factory.mktemp(family), family)
        reasoners[family] = LatentReasoner.load(str(files.checkpoint), str(files.base), LORA_ALPHA)
    return reasoners


def tokens_of(reasoner: LatentReasoner) -> list[list[int]]:
    return [reasoner.tokenize(question) for question in QUESTIONS]


def turned(seed: int) -> tuple[Tensor, Tensor]:
    """A linear map and an offset that change a state clearly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(INPUT_DIM, INPUT_DIM, generator=generator) / 6, torch.randn(INPUT_DIM, generator=generator)


def edit_at(position: int, layer: int) -> Edit:
    matrix, offset = turned(10 * position + layer)
    return Edit(position, layer, lambda state: state @ matrix + offset)


@torch.no_grad()
def plainly(reasoner: LatentReasoner, question: list[int], edits: Sequence[Edit]) -> tuple[Tensor, list[int], Tensor]:
    """One question: states (positions, layers, input_dim), answer tokens, logits (answer, vocabulary) before each.

    Every step runs the whole sequence again. Hooks on the blocks, and on the final norm for the last layer, replace
    the state at the token of each edit; a last-layer edit is seen only by the projection.
    """
    backbone, embed = reasoner.backbone, reasoner.model.get_input_embeddings()
    blocks, norm = (backbone.h, backbone.ln_f) if hasattr(backbone, "h") else (backbone.layers, backbone.norm)
    streams: dict[int, Tensor] = {}

    def hook_on(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            for edit in edits:
                place = len(question) - 1 + edit.position
                if edit.layer == layer and place < stream.shape[1]:
                    stream[0, place] = edit.function(stream[:, place])[0]
            streams[layer] = stream[0]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    modules = [*blocks[:-1], norm]
    hooks = [module.register_forward_hook(hook_on(layer)) for layer, module in enumerate(modules)]
    inputs, states = embed(torch.tensor([question])), []
    for position in range(N_THOUGHTS + 1):
        last = backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
        states.append(torch.stack([streams[layer][-1] for layer in range(N_LAYERS)]))
        if position < N_THOUGHTS:
            inputs = torch.cat([inputs, reasoner.feed_back(last)], dim=1)
    said, logits = [EOT], []
    while len(said) <= N_NEW and said[-1] != EOS:
        inputs = torch.cat([inputs, embed(torch.tensor([said[-1:]]))], dim=1)
        logits.append(reasoner.model(inputs_embeds=inputs, use_cache=False).logits[0, -1])
        said.append(int(logits[-1].argmax()))
    for each in hooks:
        each.remove()
    return torch.stack(states), [token for token in said[1:] if token != EOS], torch.stack(logits)


CASES = {
    "a block at the bot token": [edit_at(0, 0)],
    "a block at a thought": [edit_at(3, 1)],
    "the last layer at a thought": [edit_at(2, LAST)],
    "one layer at every position": [edit_at(position, 1) for position in range(7)],
    "the last layer at every position": [edit_at(position, LAST) for position in range(7)],
    "several layers, one twice": [edit_at(1, 1), edit_at(1, 0), edit_at(1, 1), edit_at(4, LAST), edit_at(5, 0)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_a_batch_equal_forward_hooks_on_one_question_at_a_time(
    reasoners: dict[str, LatentReasoner], family: str, case: str
) -> None:
    reasoner, edits = reasoners[family], CASES[case]
    token_ids = tokens_of(reasoner)
    expected = [plainly(reasoner, tokens, edits) for tokens in token_ids]
    states = reasoner.hidden_states(token_ids, range(N_LAYERS), range(7), edits=edits)
    assert relative_difference(states, torch.stack([states for states, _, _ in expected])) < TOLERANCE
    assert reasoner.answers(token_ids, max_new_tokens=N_NEW, edits=edits) == [
        reasoner.decode(answer) for _, answer, _ in expected
    ]
    unedited = reasoner.hidden_states(token_ids, range(N_LAYERS), range(7))
    first = min(edit.position for edit in edits)
    assert torch.equal(states[:, :first], unedited[:, :first])
    assert relative_difference(states[:, first + 1 :], unedited[:, first + 1 :]) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_forced_pass_gives_the_logits_of_every_token_of_the_unmodified_answer(
    reasoners: dict[str, LatentReasoner], family: str
) -> None:
    reasoner, edits = reasoners[family], [edit_at(3, 0), edit_at(4, LAST)]
    token_ids = tokens_of(reasoner)
    own = [plainly(reasoner, tokens, ())[1][: 3 + row] for row, tokens in enumerate(token_ids)]
    for changes in ([], edits):
        rollout = Rollout(reasoner, token_ids, changes)
        rollout.read()
        for _ in range(N_THOUGHTS):
            rollout.think()
        logits = reasoner.logits(rollout.states_before(own))
        assert logits.shape == (len(own), max(map(len, own)), VOCABULARY + 3)
        for row, tokens in enumerate(token_ids):
            expected = forced_logits(reasoner, tokens, own[row], changes)
            assert relative_difference(logits[row, : len(own[row])], expected) < TOLERANCE
        if not changes:
            for row, tokens in enumerate(token_ids):
                expected = plainly(reasoner, tokens, ())[2][: len(own[row])]
                assert relative_difference(logits[row, : len(own[row])], expected) < TOLERANCE
    assert relative_difference(logits[3, : len(own[3])], forced_logits(reasoner, token_ids[3], own[3], [])) > 0.01


@torch.no_grad()
def forced_logits(reasoner: LatentReasoner, tokens: list[int], answer: list[int], edits: Sequence[Edit]) -> Tensor:
    """The same from a rollout of one question that says a token at a time."""
    rollout = Rollout(reasoner, [tokens], edits)
    rollout.read()
    for _ in range(N_THOUGHTS):
        rollout.think()
    states = [rollout.say(torch.tensor([[token]])).last_hidden_state[0, -1] for token in [EOT, *answer[:-1]]]
    return reasoner.model.get_output_embeddings()(torch.stack(states))


@pytest.mark.parametrize("family", FAMILIES)
def test_forks_share_the_prefix_and_equal_rollouts_from_the_start(
    reasoners: dict[str, LatentReasoner], family: str
) -> None:
    reasoner = reasoners[family]
    token_ids = tokens_of(reasoner)
    shared = Rollout(reasoner, token_ids)
    shared.read()
    for _ in range(2):
        shared.think()
    keys = [layer.keys for layer in shared._cache.layers]
    for edits in ([], [edit_at(3, 1)], [edit_at(5, LAST), edit_at(3, 0)], []):
        fork = shared.fork(edits)
        assert all(layer.keys is key for layer, key in zip(fork._cache.layers, keys, strict=True))
        for _ in range(N_THOUGHTS - 2):
            fork.think()
        answers = [reasoner.decode(answer) for answer in fork.answer(N_NEW)]
        assert answers == reasoner.answers(token_ids, max_new_tokens=N_NEW, edits=edits)
    assert all(layer.keys is key for layer, key in zip(shared._cache.layers, keys, strict=True))
    assert shared.position == 2


def test_a_fork_of_some_rows_or_of_rows_several_times_goes_on_with_these(
    reasoners: dict[str, LatentReasoner],
) -> None:
    reasoner = reasoners["llama"]
    token_ids = tokens_of(reasoner)
    whole = Rollout(reasoner, token_ids)
    rows = [3, 0, 3, 2]
    start = whole.fork(rows=rows)  # before anything is read
    whole.read()
    first = whole.fork(rows=rows)
    start.read()
    expected = reasoner.hidden_states([token_ids[row] for row in rows], [0, LAST], [3])
    for fork in (start, first):
        for _ in range(3):
            output = fork.think()
        states = torch.stack([output.hidden_states[1][:, -1], output.hidden_states[-1][:, -1]], dim=1)
        assert relative_difference(states, expected[:, 0]) < TOLERANCE


def test_rows_of_one_token_fork_too(reasoners: dict[str, LatentReasoner]) -> None:
    reasoner = reasoners["gpt2"]
    whole = Rollout(reasoner, [[3], [5]])
    states = whole.fork(rows=[1]).read().last_hidden_state[:, -1]
    assert relative_difference(states, whole.read().last_hidden_state[1:, -1]) < TOLERANCE


def test_an_identity_edit_changes_no_bit_and_the_last_layers_at_the_last_thought_no_answer(
    reasoners: dict[str, LatentReasoner],
) -> None:
    reasoner = reasoners["llama"]
    token_ids = tokens_of(reasoner)
    identity = [Edit(position, layer, lambda state: state) for position in range(7) for layer in range(N_LAYERS)]
    unedited = reasoner.hidden_states(token_ids, range(N_LAYERS), range(7))
    assert torch.equal(reasoner.hidden_states(token_ids, range(N_LAYERS), range(7), edits=identity), unedited)
    rollouts = [Rollout(reasoner, token_ids, edits) for edits in ((), [edit_at(6, LAST)])]
    logits = []
    for rollout in rollouts:
        rollout.read()
        for _ in range(N_THOUGHTS):
            rollout.think()
        logits.append(reasoner.logits(rollout.states_before([[7, 8]] * len(token_ids))))
    assert torch.equal(*logits)


def test_without_an_eot_token_the_last_thoughts_state_gives_the_first_logits(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gpt_neox",
        vocab_size=VOCABULARY,
        hidden_size=INPUT_DIM,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    reasoner = LatentReasoner.load(str(write_plain(tmp_path, config=config)))
    token_ids = [words_to_tokens(question, False) for question in QUESTIONS]
    edits = [edit_at(1, 0)]
    found = []
    for answers in ([[7, 8, 9]] * len(token_ids), [[7]] * len(token_ids)):
        rollout = Rollout(reasoner, token_ids, edits)
        rollout.read()
        rollout.think()
        found.append(rollout.states_before(answers))
    rollout = Rollout(reasoner, token_ids, edits)
    rollout.read()
    expected = [rollout.think().last_hidden_state[:, -1]]
    expected += [rollout.say(torch.full((len(token_ids), 1), token)).last_hidden_state[:, -1] for token in (7, 8)]
    assert relative_difference(found[0], torch.stack(expected, dim=1)) < TOLERANCE
    assert relative_difference(found[1], expected[0][:, None]) < TOLERANCE


def test_an_edit_keeps_no_gradients(reasoners: dict[str, LatentReasoner]) -> None:
    offset = torch.ones(INPUT_DIM, requires_grad=True)
    edits = [Edit(1, layer, lambda state: state + offset) for layer in range(N_LAYERS)]
    states = reasoners["llama"].hidden_states([[3, 4]], range(N_LAYERS), [1, 2], edits=edits)
    assert not states.requires_grad


def test_an_edit_that_cannot_be_is_refused(reasoners: dict[str, LatentReasoner]) -> None:
    reasoner = reasoners["llama"]
    with pytest.raises(ValueError, match="there is no layer 3 to edit: the model has 3"):
        Rollout(reasoner, [[3]], [edit_at(0, 3)])
    rollout = Rollout(reasoner, [[3]])
    rollout.read()
    with pytest.raises(ValueError, match="position 0 has been passed"):
        rollout.fork([edit_at(0, 1)])
    with pytest.raises(ValueError, match=r"layer 1 at position 1 makes \(1, 5\) of \(1, 32\)"):
        rollout.fork([Edit(1, 1, lambda state: state[:, :5])]).think()
    assert not any(block._forward_hooks for block in reasoner.blocks if len(block._forward_hooks) > 1)
