"""A batch of questions as it is thought about, and the door through which its states are edited."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

if TYPE_CHECKING:
    from thought_saes.models.reasoner import LatentReasoner


class Edit(NamedTuple):
    """A change of the residual stream on the way: block `layer`'s output at `position` becomes `function` of it.

    Deeper blocks of that forward pass, their keys and values and all later passes see the new state. The last layer's
    state is the one after the final norm: only the next thought, made from it, changes.
    """

    position: int  # 0 is the last token of the question (the bot token), p >= 1 the p-th thought
    layer: int
    function: Callable[[Tensor], Tensor]  # (batch, input_dim) to the same


class Rollout:
    """A left-padded batch of questions as it is read, thought about and answered, one token a row at a time.

    Mask and position ids go with every token, so that no row sees padding or its neighbours. `read`, `think` and
    `say` return the backbone's output for their token, with hidden_states.

    `edits` change the states of the positions that `read` and `think` pass through. Many conditions of the same
    questions start from one rollout: `fork` it where they part.
    """

    @torch.no_grad()
    def __init__(
        self, reasoner: "LatentReasoner", token_ids: Sequence[Sequence[int]], edits: Sequence[Edit] = ()
    ) -> None:
        """Read all but the last token of each question. Raises ValueError if an edit's layer is not the model's."""
        self.reasoner, self._device = reasoner, reasoner.model.device
        self._edits = self._checked(edits)
        self.position = -1  # the last that was passed
        lengths = torch.tensor([len(tokens) for tokens in token_ids])
        width = int(lengths.max())
        padded = torch.zeros(len(token_ids), width, dtype=torch.long)
        for row, tokens in enumerate(token_ids):
            padded[row, width - len(tokens) :] = torch.tensor(tokens)
        mask = (torch.arange(width) >= width - lengths[:, None]).long().to(self._device)
        self._cache = DynamicCache(config=reasoner.model.config)
        self._last_tokens = padded[:, -1:].to(self._device)
        if width > 1:
            # All but the last token only fill the cache, so that no long sequence's hidden states are kept.
            rest, where = mask[:, :-1], (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
            reasoner.forward(self._cache, rest, where, input_ids=padded[:, :-1].to(self._device))
        self._mask, self._next_place = mask[:, :-1], (lengths - 1)[:, None].to(self._device)
        self._state = torch.empty(len(token_ids), 0)  # the last hidden state, (batch, 1, input_dim)

    def fork(self, edits: Sequence[Edit] = (), rows: Sequence[int] | None = None) -> "Rollout":
        """A rollout that goes on from here with `edits`; this one stays as it is, to be forked again.

        The keys and values so far are shared, not copied. `rows` takes these rows of the batch instead of all: some
        only, or each several times (then they are copied). Raises ValueError if an edit's layer is not the model's,
        or its position has been passed.
        """
        other = copy.copy(self)
        other._edits = self._checked(edits)
        if passed := [edit.position for edit in edits if edit.position <= self.position]:
            raise ValueError(f"position {passed[0]} has been passed: fork before it to edit it")
        other._cache = copy.copy(self._cache)
        other._cache.layers = [forked(layer) for layer in self._cache.layers]
        if rows is not None:
            index = torch.tensor(rows, dtype=torch.long, device=self._device)
            other._cache.reorder_cache(index)
            for name in ("_last_tokens", "_mask", "_next_place", "_state"):
                setattr(other, name, getattr(self, name)[index])
        return other

    def read(self) -> Any:
        """The last token of the question: position 0."""
        return self._pass(input_ids=self._last_tokens)

    def think(self, thoughts: Tensor | None = None) -> Any:
        """The next position: its inputs are `thoughts` (batch, 1, input_dim), or the last hidden states fed back."""
        inputs = self._next_thought() if thoughts is None else thoughts
        return self._pass(inputs_embeds=inputs.clone())  # CTRL, for one, scales its inputs in place

    def say(self, tokens: Tensor) -> Any:
        """Ordinary tokens for every row: (batch, n)."""
        return self._step(tokens.shape[1], input_ids=tokens.to(self._device))

    @torch.no_grad()
    def answer(self, max_new_tokens: int = 32, watch: Callable[[Tensor], None] | None = None) -> list[list[int]]:
        """The tokens of each row's greedy answer, the end-of-text token and what follows it left out.

        `watch` is shown the logits (batch, vocabulary) that each token is chosen by.
        """
        for token in self._before_answer():
            self.say(token)
        end = self.reasoner.tokenizer.eos_token_id
        said: list[Tensor] = []
        ended = torch.zeros(len(self._mask), dtype=torch.bool)
        while len(said) < max_new_tokens and not ended.all():
            if said:
                self.say(said[-1])
            logits = self.reasoner.logits(self._state[:, -1])
            if watch is not None:
                watch(logits)
            said.append(logits.argmax(-1, keepdim=True).cpu())
            ended |= said[-1][:, 0] == end
        rows = torch.cat(said, dim=1).tolist() if said else [[] for _ in self._mask]
        return [row[: row.index(end)] if end in row else row for row in rows]

    @torch.no_grad()
    def states_before(self, answers: Sequence[Sequence[int]]) -> Tensor:
        """The last hidden state before each token of `answers`, (batch, longest answer, input_dim), in one pass.

        `LatentReasoner.logits` of [row, i] is what the model says of token i of the row's answer after the tokens
        before it. What stands behind a row's own answer means nothing.
        """
        width = max(len(answer) for answer in answers)
        tokens = torch.zeros(len(answers), width, dtype=torch.long)
        for row, answer in enumerate(answers):
            tokens[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
        before = self._before_answer()
        unsaid = torch.cat([*before, tokens[:, :-1]], dim=1)
        states = [] if before else [self._state[:, -1:]]
        if unsaid.shape[1]:
            self.say(unsaid)
            states.append(self._state)
        return torch.cat(states, dim=1)[:, -width:]

    def _before_answer(self) -> list[Tensor]:
        """The eot token, if the model has one, and what follows it, for every row: (batch, 1) each."""
        eot = self.reasoner.eot_token_id
        tokens = [*([] if eot is None else [eot]), *self.reasoner.after_eot]
        return [torch.full((len(self._mask), 1), token) for token in tokens]

    def _checked(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        if absent := [edit.layer for edit in edits if not 0 <= edit.layer < self.reasoner.n_layers]:
            raise ValueError(f"there is no layer {absent[0]} to edit: the model has {self.reasoner.n_layers}")
        return tuple(edits)

    @torch.no_grad()
    def _next_thought(self) -> Tensor:
        return self.reasoner.feed_back(self._state[:, -1:])

    def _pass(self, **inputs: Any) -> Any:
        """The next position, edited."""
        self.position += 1
        here = [edit for edit in self._edits if edit.position == self.position]
        last = self.reasoner.n_layers - 1
        with edited_blocks(self.reasoner, [edit for edit in here if edit.layer != last]):
            output = self._step(1, **inputs)
        for edit in here:
            if edit.layer == last:
                with torch.no_grad():
                    output.last_hidden_state = apply_edit(edit, output.last_hidden_state)
                output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
                self._state = output.last_hidden_state.to(self._device)
        return output

    @torch.no_grad()
    def _step(self, n_tokens: int, **inputs: Any) -> Any:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), n_tokens)], dim=1)
        places = self._next_place + torch.arange(n_tokens, device=self._device)
        output = self.reasoner.forward(self._cache, self._mask, places, output_hidden_states=True, **inputs)
        self._next_place = self._next_place + n_tokens
        self._state = output.last_hidden_state.to(self._device)
        return output


def forked(layer: Any) -> Any:
    """A layer of a cache that goes on by itself.

    Keys and values grow by new tensors, and the old ones are never written to. The states of linear attention are.
    """
    return copy.deepcopy(layer) if isinstance(layer, LinearAttentionCacheLayerMixin) else copy.copy(layer)


def apply_edit(edit: Edit, stream: Tensor) -> Tensor:
    """`stream` (batch, 1, input_dim) with the edit's state in it. Raises ValueError if the edit gives another shape."""
    state = edit.function(stream[:, -1])
    if state.shape != stream[:, -1].shape:
        raise ValueError(
            f"the edit of layer {edit.layer} at position {edit.position} makes {tuple(state.shape)} "
            f"of {tuple(stream[:, -1].shape)}"
        )
    return state[:, None].to(stream.device, stream.dtype)


@contextmanager
def edited_blocks(reasoner: "LatentReasoner", edits: Sequence[Edit]) -> Iterator[None]:
    """Within, the blocks of `reasoner` put out what the edits make of their output."""

    def replace(edit: Edit, _block: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (apply_edit(edit, output[0]), *output[1:])
        return apply_edit(edit, output)

    blocks = reasoner.blocks if edits else []
    # Before the hooks by which transformers collects the hidden states. The last to be prepended runs first.
    hooks = [
        blocks[edit.layer].register_forward_hook(functools.partial(replace, edit), prepend=True)
        for edit in reversed(edits)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
