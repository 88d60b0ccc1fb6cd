"""A language model that reasons in continuous thoughts: it feeds its own last hidden state back as its next input.

Loads the three forms a model comes in: a CODI training checkpoint on its base model (LoRA merged into the weights
at load), any causal LM of transformers, and the folder that `LatentReasoner.save_pretrained` writes. Runs them in
left-padded batches in which a question's hidden states do not depend on its neighbours. The weights may be bfloat16,
and spread over several GPUs; the residual stream is float32 always.

CODI is arXiv 2502.21074 (a projection between the last hidden state and the next input), Coconut arXiv 2412.06769
(the last hidden state itself). Deliberately missing: training, sampling.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import to_builtins
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache

from thought_saes.common.errors import InputError, one_line
from thought_saes.common.files import write_json
from thought_saes.models.answers import Answer, answer_all
from thought_saes.models.formats import Thoughts, check_template
from thought_saes.models.head import backbone_of, logits_of
from thought_saes.models.layouts import CODI_THOUGHTS
from thought_saes.models.loading import changed, load_parts
from thought_saes.models.precision import keep_stream_in_float32
from thought_saes.models.rollout import Edit, Rollout
from thought_saes.models.trial import try_out
from thought_saes.models.weights import PROJECTION_FILE

Batch = list[list[int]]  # token ids of each question


class Request(NamedTuple):
    """What is asked of every batch."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    max_new_tokens: int | None  # of an answer; None: no answers


class BatchResult(NamedTuple):
    """What a batch yields."""

    states: np.ndarray  # (batch, n_positions, n_layers, input_dim), float32
    answers: list[Answer] | None


class ModelFacts(NamedTuple):
    """What is to be known of a model before it runs."""

    n_layers: int
    input_dim: int  # the width of the residual stream
    max_tokens: int | None  # the longest sequence it has positions for, if it has such a limit
    has_bot_token: bool
    has_projection: bool
    n_thoughts: int  # that it is made to feed back
    fingerprint: str
    device: str
    threads: int | None  # on the CPU, for rounding depends on them
    n_bytes: int  # of all weights


@dataclass
class LatentReasoner:
    """A causal LM with what it needs to think: p = 0 reads the question's end, p >= 1 the thought before.

        input_0 = the bot token's embedding (without a bot token: the last question token's)
        input_p = projection(last hidden state at p - 1)        (without a projection: that state itself)

    The last hidden state is the one after the final norm.
    """

    model: Any
    tokenizer: Any
    projection: nn.Sequential | None = None
    bot_token_id: int | None = None
    eot_token_id: int | None = None
    before_bot: Sequence[int] = ()  # tokens between the question and the bot token
    after_eot: Sequence[int] = ()  # tokens between the eot token and the answer
    n_thoughts: int = CODI_THOUGHTS
    question_template: str = "{question}"
    answer_template: str = "The answer is: {answer}"
    layout: str | None = None  # of the checkpoint it was loaded from

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        if self.model.dtype != torch.float32:
            keep_stream_in_float32(self.model)
        if self.projection is not None:
            self.projection.eval().requires_grad_(False)
        self.backbone = backbone_of(self.model)
        accepted = inspect.signature(self.backbone.forward).parameters
        if "past_key_values" not in accepted:
            raise InputError(f"{type(self.backbone).__name__} keeps no keys and values: thoughts cannot be fed to it")
        self.takes_position_ids = "position_ids" in accepted
        known = "a" if "a" in self.tokenizer.get_vocab() else next(iter(self.tokenizer.get_vocab()), "a")
        probe = self.tokenizer(known)["input_ids"]
        self._appends_eos = len(probe) > 1 and probe[-1] == self.tokenizer.eos_token_id

    @classmethod
    def load(
        cls,
        name: str,
        base_model: str | None = None,
        lora_alpha: float = 32.0,
        *,
        dtype: torch.dtype = torch.float32,
        device_map: str | None = None,
        layout: str | None = None,
        n_thoughts: int | None = None,
        question_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> "LatentReasoner":
        """Load `name`: a hub id, a folder or a .gguf file; a CODI checkpoint needs `base_model` beside it.

        `dtype` is that of the weights; `device_map` is accelerate's, None leaves the model on the CPU. `layout` is a
        key of `layouts.LAYOUTS`, None finds it by the checkpoint's keys. Raises InputError as `load_parts` does, and
        if the model does otherwise with fed thoughts than with a text (`trial.py`).
        """
        parts = load_parts(
            name,
            base_model,
            lora_alpha,
            dtype=dtype,
            device_map=device_map,
            layout=layout,
            trust_remote_code=trust_remote_code,
        )
        thoughts = changed(parts.thoughts, n_thoughts, question_template)
        reasoner = cls(
            parts.model,
            parts.tokenizer,
            parts.projection,
            thoughts.bot_token_id,
            thoughts.eot_token_id,
            thoughts.before_bot,
            thoughts.after_eot,
            thoughts.n_thoughts,
            thoughts.question_template,
            thoughts.answer_template,
            thoughts.layout,
        )
        try_out(reasoner)
        return reasoner

    def save_pretrained(self, folder: Path) -> None:
        """Write an ordinary model folder plus the projection and the token ids; `load` needs no base model then."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.projection is not None:
            save_file(self.projection.state_dict(), folder / PROJECTION_FILE)
        thoughts = Thoughts(
            bot_token_id=self.bot_token_id,
            eot_token_id=self.eot_token_id,
            before_bot=list(self.before_bot),
            after_eot=list(self.after_eot),
            projection=self.projection is not None,
            n_thoughts=self.n_thoughts,
            question_template=self.question_template,
            answer_template=self.answer_template,
            layout=self.layout,
        )
        write_json(folder / Thoughts.file, to_builtins(thoughts))

    def to(self, device: torch.device) -> "LatentReasoner":
        """Move to `device`; of a model that a device map has spread, only the projection."""
        if not hasattr(self.model, "hf_device_map"):
            self.model.to(device)
        if self.projection is not None:
            self.projection.to(device)
        return self

    @property
    def n_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def input_dim(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def key_value_heads(self) -> tuple[int, int]:
        """How many heads hold keys and values, and the width of each."""
        text = self.model.config.get_text_config()
        n_heads = int(text.num_attention_heads)
        width = getattr(text, "head_dim", None) or self.input_dim // n_heads
        return int(getattr(text, "num_key_value_heads", None) or n_heads), int(width)

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence the model has positions for, if it has such a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def facts(self) -> ModelFacts:
        """Everything that its users ask before it runs."""
        return ModelFacts(
            n_layers=self.n_layers,
            input_dim=self.input_dim,
            max_tokens=self.max_tokens,
            has_bot_token=self.bot_token_id is not None,
            has_projection=self.projection is not None,
            n_thoughts=self.n_thoughts,
            fingerprint=self.fingerprint(),
            device=str(self.model.device),
            threads=torch.get_num_threads() if self.model.device.type == "cpu" else None,
            n_bytes=sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters()),
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The model's blocks, in the order of its layers. Raises InputError if it has no list of them."""
        for module in self.backbone.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.n_layers:
                return list(module)
        raise InputError(
            f"{type(self.backbone).__name__} has no list of {self.n_layers} blocks: no state can be edited"
        )

    def fingerprint(self) -> str:
        """A hash of a sample of every weight: another model under the same name has another one."""
        special: list[Any] = [self.bot_token_id, self.eot_token_id]
        around = [list(self.before_bot), list(self.after_eot), self.question_template]
        if around != [[], [], "{question}"]:
            special += around
        digest = hashlib.sha256(json.dumps(special).encode())
        for module in (self.model, self.projection):
            for key, value in module.state_dict().items() if module is not None else ():
                sample = value.flatten()[:: max(1, value.numel() // 64)].float().cpu().contiguous()
                digest.update(f"{key}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenize(self, question: str, template: str | None = None) -> list[int]:
        """The question's tokens: the tokenizer's own BOS, no chat template, no EOS, then the bot token.

        `template` is this question's own; the questions of a batch may have different ones. Raises InputError if it has
        no place for the question, or if a word is none of the tokenizer's, and it has no token for unknown ones.
        """
        if template is not None:
            check_template(template, "tokenize")
        text = (template or self.question_template).replace("{question}", question)
        try:
            tokens = list(self.tokenizer(text)["input_ids"])
        except Exception as problem:  # tokenizers raises nothing more precise
            raise InputError(self._unknown_word(text) or f"a question has no tokens: {one_line(problem)}") from problem
        if self._appends_eos:
            tokens.pop()
        return tokens if self.bot_token_id is None else [*tokens, *self.before_bot, self.bot_token_id]

    def _unknown_word(self, text: str) -> str | None:
        """What to say of the first word of `text` that the tokenizer has no token for."""
        splitter = self.tokenizer.backend_tokenizer.pre_tokenizer
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)] if splitter else text.split()
        words = sorted(self.tokenizer.get_vocab())
        for piece in pieces:
            if piece not in words:
                return f"the model does not know the word '{piece[:60]}'; it knows {len(words)}: {' '.join(words)}"
        return None

    @torch.no_grad()
    def hidden_states(
        self,
        token_ids: Sequence[Sequence[int]],
        layers: Sequence[int],
        positions: Sequence[int],
        edits: Sequence[Edit] = (),
    ) -> Tensor:
        """The residual stream of a batch of tokenized questions, (batch, n_positions, n_layers, input_dim).

        Layer l is the stream after block l (`hidden_states[l + 1]` of transformers), the last layer after the final
        norm. An edited state is returned as its edit made it. float32, on the CPU.
        """
        rollout = Rollout(self, token_ids, edits)
        wanted = []
        for position in range(max(positions) + 1):
            output = rollout.think() if position else rollout.read()
            if position in positions:
                # Layers of a model that is spread over GPUs leave their states on several.
                streams = [output.hidden_states[layer + 1][:, -1].to(self.model.device) for layer in layers]
                wanted.append(torch.stack(streams, dim=1))
        return torch.stack(wanted, dim=1).float().cpu()

    def run_batch(self, batch: Batch, request: Request) -> BatchResult:
        """The states and answers that are asked for. Raises InputError if the batch is too large for the memory."""
        try:
            if request.max_new_tokens is None:
                return BatchResult(self.hidden_states(batch, request.layers, request.positions).numpy(), None)
            return self._states_and_answers(batch, request, request.max_new_tokens)
        except torch.OutOfMemoryError as problem:
            raise InputError(f"out of memory with {len(batch)} questions: lower --batch-size") from problem

    @torch.no_grad()
    def _states_and_answers(self, batch: Batch, request: Request, max_new_tokens: int) -> BatchResult:
        """Both from one rollout; it answers from a fork where it goes on thinking for its later states."""
        rollout, wanted, answers = Rollout(self, batch), [], None
        for position in range(max(self.n_thoughts, *request.positions) + 1):
            output = rollout.think() if position else rollout.read()
            if position in request.positions:
                streams = [output.hidden_states[layer + 1][:, -1].to(self.model.device) for layer in request.layers]
                wanted.append(torch.stack(streams, dim=1).float().cpu())
            if position == self.n_thoughts:
                answers = answer_all(rollout.fork(), max_new_tokens)
        return BatchResult(torch.stack(wanted, dim=1).numpy(), answers)

    @torch.no_grad()
    def answers(
        self,
        token_ids: Sequence[Sequence[int]],
        thoughts: Tensor | None = None,
        n_thoughts: int | None = None,
        max_new_tokens: int = 32,
        edits: Sequence[Edit] = (),
    ) -> list[str]:
        """What the model says, greedily, after its thoughts and the eot token, for a batch of tokenized questions.

        `thoughts` (batch, n_thoughts, input_dim) are fed to it in place of its own: see `feed_back`. `edits` change
        states on the way. `n_thoughts` is by default the model's own number.
        """
        rollout = Rollout(self, token_ids, edits)
        rollout.read()
        if thoughts is not None:
            n_thoughts = thoughts.shape[1]
        for position in range(self.n_thoughts if n_thoughts is None else n_thoughts):
            rollout.think(None if thoughts is None else thoughts[:, position : position + 1])
        return [self.decode(tokens) for tokens in rollout.answer(max_new_tokens)]

    def decode(self, answer: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def logits(self, states: Tensor) -> Tensor:
        """What is said of the next token after last hidden states (…, input_dim): (…, vocabulary), float32.

        By the model's own way from its backbone's output (`head.py`).
        """
        return logits_of(self.model, self.backbone, states)

    def feed_back(self, states: Tensor) -> Tensor:
        """The inputs that last hidden states (…, input_dim) become: the thoughts."""
        return states if self.projection is None else self.projection(states)

    def forward(self, cache: DynamicCache, mask: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        """The backbone's output for more tokens of every row. mask (batch, all tokens), position_ids (batch, new)."""
        if self.takes_position_ids:
            inputs["position_ids"] = position_ids
        return self.backbone(attention_mask=mask, past_key_values=cache, use_cache=True, **inputs)
