"""A language model that reasons in continuous thoughts: it feeds its own last hidden state back as its next input.

Loads the three forms a model comes in: a CODI training checkpoint on its base model (LoRA merged into the weights
at load), any causal LM of transformers, and the folder that `LatentReasoner.save_pretrained` writes. Runs them in
left-padded batches in which a question's hidden states do not depend on its neighbours. The weights may be bfloat16,
and spread over several GPUs; the residual stream is float32 always.

CODI is arXiv 2502.21074 (a projection between the last hidden state and the next input), Coconut arXiv 2412.06769
(the last hidden state itself). Deliberately missing: training, sampling.
"""

import copy
import functools
import hashlib
import inspect
import json
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.pytorch_utils import Conv1D

from thought_saes.common.errors import InputError, one_line
from thought_saes.common.files import read_json, write_json
from thought_saes.common.flags import require_package
from thought_saes.common.machine import choose_device

CODI_PREFIX = "codi.base_model.model."
CODI_THOUGHTS = 6  # CODI is trained to feed back six thoughts, positions 1-6
# The rows that CODI appends to the embedding, from the base vocabulary's size on: pad, bot, eot.
CODI_NEW_TOKENS = 3
TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
THOUGHTS_FILE = "thoughts.json"
PROJECTION_FILE = "projection.safetensors"

Batch = list[list[int]]  # token ids of each question


def resolve_folder(name: str, patterns: Sequence[str]) -> Path:
    """`name` if it is a folder, else the files of the hub model `name` that match `patterns`, downloaded.

    Raises InputError if it is neither, or if the hub refuses it or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError as problem:
        raise InputError(
            f"the model '{name}' is gated: accept its licence on the hub, then log in with 'hf auth login'"
        ) from problem
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise InputError(f"'{name}' is neither a folder nor a model on the hub") from problem
    except LocalEntryNotFoundError as problem:
        raise InputError(f"'{name}' is no folder, and the hub cannot be reached (is HF_HUB_OFFLINE set?)") from problem
    except (OSError, HTTPError) as problem:
        if getattr(problem, "errno", None) is not None:  # a full disk, say
            raise
        raise InputError(f"the hub cannot give the model '{name}' ({one_line(problem)[:200]})") from problem


class StateFile(Mapping[str, Tensor]):
    """The tensors of some safetensors or .bin files, read one at a time. Raises InputError if a file is damaged."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sources: dict[str, Any] = {}
        for path in paths:
            try:
                if path.suffix == ".safetensors":
                    file = safe_open(path, framework="pt")
                    self._sources |= dict.fromkeys(list(file.keys()), file)
                    continue
                # The format of torch before 1.6 is no zip file, and cannot be mapped.
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as problem:
                raise InputError(f"{path} is damaged, or not a file of tensors") from problem
            if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
                raise InputError(f"{path} holds something else than named tensors")
            self._sources |= tensors

    @classmethod
    def of_folder(cls, folder: Path) -> "StateFile":
        """The weights of the model in `folder`; empty if it has none."""
        safe = [path for path in sorted(folder.glob("*.safetensors")) if path.name != PROJECTION_FILE]
        return cls(safe or sorted(folder.glob("pytorch_model*.bin")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, key: str) -> Tensor:
        source = self._sources[key]
        return source if isinstance(source, Tensor) else source.get_tensor(key)


def thought_projection(input_dim: int, hidden_dim: int) -> nn.Sequential:
    """CODI's map from the last hidden state to the next input; its keys are those of the checkpoint's `prj`."""
    return nn.Sequential(
        OrderedDict(
            {
                "0": nn.Identity(),  # CODI's dropout, off outside training
                "1": nn.Linear(input_dim, hidden_dim),
                "2": nn.GELU(),
                "3": nn.Linear(hidden_dim, input_dim),
                "ln": nn.LayerNorm(input_dim, eps=1e-5),
            }
        )
    )


def load_projection(state: dict[str, Tensor], input_dim: int, source: str) -> nn.Sequential:
    """The projection with the weights `state`. Raises InputError if they are not those of a projection."""
    first = state.get("1.weight")
    projection = thought_projection(input_dim, len(first) if first is not None else 1)
    check_keys(shapes(state), shapes(projection.state_dict()), f"the projection of {source}", "a CODI projection")
    projection.load_state_dict(state)
    return projection


def check_keys(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], what: str, whose: str) -> None:
    """Raises InputError with the first few differences between the tensors found and those expected."""
    differences = [f"{key} is missing" for key in expected if key not in found]
    differences += [f"{key} is left over" for key in found if key not in expected]
    differences += [
        f"{key} is {found[key]}, not {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(f"the keys of {what} do not fit {whose}: {'; '.join(differences[:4])}{more}")


def merged_codi_state(state: StateFile, skeleton: nn.Module, lora_alpha: float) -> dict[str, Tensor]:
    """The plain model's weights in float32: base + (lora_alpha / r) B A wherever the checkpoint has LoRA.

    `skeleton` is the plain model (it may be on the meta device): its Conv1D modules keep weights transposed. A key
    that has no place keeps its name, for `check_keys` to report.
    """
    transposed = {name for name, module in skeleton.named_modules() if isinstance(module, Conv1D)}
    merged: dict[str, Tensor] = {}
    lora = dict.fromkeys(key for key in state if ".lora_" in key)  # those without a place yet
    for key in state:
        if key not in lora and not key.startswith("prj."):
            merged[key.removeprefix(CODI_PREFIX).replace(".base_layer.", ".")] = state[key].to(torch.float32)
    for key_a in [key for key in lora if ".lora_A." in key]:
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        module = key_a.removeprefix(CODI_PREFIX).partition(".lora_A.")[0]
        weight = merged.get(f"{module}.weight")
        if weight is None or weight.ndim != 2 or key_b not in lora:
            continue
        del lora[key_a], lora[key_b]
        a, b = state[key_a].to(torch.float32), state[key_b].to(torch.float32)  # (r, in), (out, r)
        n_out, n_in = weight.shape[::-1] if module in transposed else weight.shape
        if a.shape != (len(a), n_in) or b.shape != (n_out, len(a)):
            raise InputError(
                f"the LoRA of {module} does not fit its weight: A {tuple(a.shape)}, B {tuple(b.shape)}, "
                f"weight {tuple(weight.shape)}"
            )
        update = (b @ a) * (lora_alpha / len(a))
        merged[f"{module}.weight"] = weight + (update.T if module in transposed else update)
    return merged | {key: state[key] for key in lora}


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def load_tokenizer(folder: Path, name: str, **options: Any) -> Any:
    """Raises InputError if `folder` has no tokenizer, or one without a vocabulary (transformers makes such a one)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as problem:  # tokenizers raises nothing more precise for a damaged file
        raise InputError(f"{name} has no tokenizer that can be loaded ({one_line(problem)[:200]})") from problem
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise InputError(f"{name} has no tokenizer")
    return tokenizer


def load_plain_model(folder: Path, name: str, **options: Any) -> Any:
    """Raises InputError if it cannot be loaded, or lacks weights (transformers would make random ones)."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError, ImportError, struct.error) as problem:
        raise InputError(f"{name} is no model that can be loaded ({one_line(problem)[:200]})") from problem
    found = {key: tuple(found) for key, found, _ in report["mismatched_keys"]}
    expected = {key: tuple(expected) for key, _, expected in report["mismatched_keys"]}
    check_keys(found, expected | dict.fromkeys(sorted(report["missing_keys"]), ()), name, "its config.json")
    return model


def refuse_offloading(model: Any, name: str) -> None:
    """Raises InputError if a device map has left part of `model` on the CPU or the disk, to be fetched at each step."""
    left_out = [module for module, device in getattr(model, "hf_device_map", {}).items() if device in ("cpu", "disk")]
    if left_out and torch.cuda.is_available():
        raise InputError(
            f"{name} does not fit on the GPUs: no room for {left_out[0]} and {len(left_out) - 1} modules more; "
            "take more GPUs, or --model-dtype bfloat16"
        )


def keep_stream_in_float32(model: nn.Module) -> None:
    """Let `model` run in float32 between its matrices, whose weights keep their dtype.

    Embeddings and linear layers round their input to the dtype of their weights and give float32 on; the norms and
    all other parameters become float32. So bfloat16 halves the memory, but what layers add to the residual stream
    is not rounded away at 8 bits, thought after thought.
    """

    def round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(module.weight.dtype), *inputs[1:])  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.register_forward_pre_hook(round_input)
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            module.register_forward_hook(lambda module, inputs, output: output.float())
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


class Edit(NamedTuple):
    """A change of the residual stream on the way: block `layer`'s output at `position` becomes `function` of it.

    Deeper blocks of that forward pass, their keys and values and all later passes see the new state. The last layer's
    state is the one after the final norm: only the next thought, made from it, changes.
    """

    position: int  # 0 is the last token of the question (the bot token), p >= 1 the p-th thought
    layer: int
    function: Callable[[Tensor], Tensor]  # (batch, input_dim) to the same


class ModelFacts(NamedTuple):
    """What is to be known of a model before it runs."""

    n_layers: int
    input_dim: int  # the width of the residual stream
    max_tokens: int | None  # the longest sequence it has positions for, if it has such a limit
    has_bot_token: bool
    has_projection: bool
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

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        if self.model.dtype != torch.float32:
            keep_stream_in_float32(self.model)
        if self.projection is not None:
            self.projection.eval().requires_grad_(False)
        self.backbone = self.model.base_model
        accepted = inspect.signature(self.backbone.forward).parameters
        if "past_key_values" not in accepted:
            raise InputError(f"{type(self.backbone).__name__} keeps no keys and values: thoughts cannot be fed to it")
        self.takes_position_ids = "position_ids" in accepted
        probe = self.tokenizer("a")["input_ids"]
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
    ) -> "LatentReasoner":
        """Load `name`: a hub id, a folder or a .gguf file; a CODI checkpoint needs `base_model` beside it.

        `dtype` is that of the weights; `device_map` is accelerate's, None leaves the model on the CPU. Raises
        InputError if there is no such model, if the checkpoint does not fit the base model, or if the device map
        leaves part of it off the GPUs or cannot be had.
        """
        placed: dict[str, Any] = {"dtype": dtype}
        if device_map is not None:
            require_package("accelerate", "--device-map")
            placed["device_map"] = device_map
        if name.endswith(".gguf"):
            if not Path(name).is_file():
                raise InputError(f"no file {name}")
            with open(name, "rb") as file:
                if file.read(4) != b"GGUF":
                    raise InputError(f"{name} is no GGUF file: it does not begin with 'GGUF'")
            folder, options = Path(name).parent, {"gguf_file": Path(name).name}
        else:
            folder, options = resolve_folder(name, [*TOKENIZER_FILES, "*.safetensors"]), {}
            if not any(folder.glob("*.safetensors")):
                folder = resolve_folder(name, [*TOKENIZER_FILES, "pytorch_model*.bin"])
            state = StateFile.of_folder(folder)
            if not state:
                raise InputError(f"{folder} is no model: it has no model.safetensors or pytorch_model.bin")
            if any(key.startswith(CODI_PREFIX) for key in state):
                if base_model is None:
                    raise InputError(f"{name} is a CODI checkpoint: say what it was trained on with --base-model")
                return cls._load_codi(state, name, base_model, lora_alpha, placed)
            if not (folder / "config.json").exists():
                raise InputError(f"{folder} is no model: it has no config.json, and no key begins with {CODI_PREFIX}")
        if base_model is not None:
            raise InputError(f"--base-model is for CODI checkpoints; {name} is a whole model")
        model = load_plain_model(folder, name, **options, **placed)
        refuse_offloading(model, name)
        tokenizer = load_tokenizer(folder, name, **options)
        if options or not (folder / THOUGHTS_FILE).exists():
            return cls(model, tokenizer)
        thoughts = read_json(folder / THOUGHTS_FILE)
        if not isinstance(thoughts, dict) or not {"bot_token_id", "eot_token_id"} <= thoughts.keys():
            raise InputError(f"{folder / THOUGHTS_FILE} does not hold bot_token_id and eot_token_id")
        projection = None
        if (folder / PROJECTION_FILE).exists():
            weights = dict(StateFile([folder / PROJECTION_FILE]))
            projection = load_projection(weights, int(model.config.hidden_size), name)
        return cls(model, tokenizer, projection, thoughts["bot_token_id"], thoughts["eot_token_id"])

    @classmethod
    def _load_codi(
        cls, state: StateFile, name: str, base_model: str, lora_alpha: float, placed: dict[str, Any]
    ) -> "LatentReasoner":
        base_folder = resolve_folder(base_model, TOKENIZER_FILES)  # its weights are in the checkpoint
        try:
            config = AutoConfig.from_pretrained(base_folder)
            base_vocabulary = config.vocab_size
            config.vocab_size = base_vocabulary + CODI_NEW_TOKENS
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError, AttributeError) as problem:
            raise InputError(f"{base_model} is no causal LM ({one_line(problem)[:200]})") from problem
        weights = merged_codi_state(state, skeleton, lora_alpha)
        ignored = getattr(skeleton, "_keys_to_ignore_on_load_unexpected", None) or []  # old GPT-2 files have masks
        expected = shapes(skeleton.state_dict())
        for key in weights.keys() - expected.keys():
            if any(re.search(pattern, key) for pattern in ignored):
                del weights[key]
        if config.tie_word_embeddings:
            expected.pop("lm_head.weight", None)
            head, embedding = weights.pop("lm_head.weight", None), skeleton.get_input_embeddings().weight
            name_of = {id(parameter): key for key, parameter in skeleton.named_parameters()}
            if head is not None and not torch.equal(head, weights.get(name_of[id(embedding)], head)):
                config.tie_word_embeddings = False  # trained apart
                weights["lm_head.weight"] = head
                expected["lm_head.weight"] = tuple(embedding.shape)
        check_keys(shapes(weights), expected, name, f"the base model {base_model}")
        projection = {key.removeprefix("prj."): state[key].float() for key in state if key.startswith("prj.")}
        model = type(skeleton).from_pretrained(None, config=config, state_dict=weights, **placed)
        refuse_offloading(model, name)
        return cls(
            model,
            load_tokenizer(base_folder, base_model),
            load_projection(projection, config.hidden_size, name) if projection else None,
            bot_token_id=base_vocabulary + 1,
            eot_token_id=base_vocabulary + 2,
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write an ordinary model folder plus the projection and the token ids; `load` needs no base model then."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.projection is not None:
            save_file(self.projection.state_dict(), folder / PROJECTION_FILE)
        write_json(folder / THOUGHTS_FILE, {"bot_token_id": self.bot_token_id, "eot_token_id": self.eot_token_id})

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
        digest = hashlib.sha256(json.dumps([self.bot_token_id, self.eot_token_id]).encode())
        for module in (self.model, self.projection):
            for key, value in module.state_dict().items() if module is not None else ():
                sample = value.flatten()[:: max(1, value.numel() // 64)].float().cpu().contiguous()
                digest.update(f"{key}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenize(self, question: str) -> list[int]:
        """The question's tokens: the tokenizer's own BOS, no chat template, no EOS, then the bot token."""
        tokens = list(self.tokenizer(question)["input_ids"])
        if self._appends_eos:
            tokens.pop()
        return tokens if self.bot_token_id is None else [*tokens, self.bot_token_id]

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

    def states_of_batch(self, batch: Batch, layers: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """`hidden_states` as an array. Raises InputError if the batch is too large for the device's memory."""
        try:
            return self.hidden_states(batch, layers, positions).numpy()
        except torch.OutOfMemoryError as problem:
            raise InputError(f"out of memory with {len(batch)} questions: lower --batch-size") from problem

    @torch.no_grad()
    def answers(
        self,
        token_ids: Sequence[Sequence[int]],
        thoughts: Tensor | None = None,
        n_thoughts: int = CODI_THOUGHTS,
        max_new_tokens: int = 32,
        edits: Sequence[Edit] = (),
    ) -> list[str]:
        """What the model says, greedily, after its thoughts and the eot token, for a batch of tokenized questions.

        `thoughts` (batch, n_thoughts, input_dim) are fed to it in place of its own: see `feed_back`. `edits` change
        states on the way.
        """
        rollout = Rollout(self, token_ids, edits)
        rollout.read()
        for position in range(n_thoughts if thoughts is None else thoughts.shape[1]):
            rollout.think(None if thoughts is None else thoughts[:, position : position + 1])
        return [self.decode(tokens) for tokens in rollout.answer(max_new_tokens)]

    def decode(self, answer: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def logits(self, states: Tensor) -> Tensor:
        """What last hidden states (…, input_dim) say of the next token: (…, vocabulary), float32."""
        head = self.model.get_output_embeddings()
        logits: Tensor = head(states.to(head.weight.device, head.weight.dtype))
        return logits.float()

    def feed_back(self, states: Tensor) -> Tensor:
        """The inputs that last hidden states (…, input_dim) become: the thoughts."""
        return states if self.projection is None else self.projection(states)

    def forward(self, cache: DynamicCache, mask: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        """The backbone's output for more tokens of every row. mask (batch, all tokens), position_ids (batch, new)."""
        if self.takes_position_ids:
            inputs["position_ids"] = position_ids
        return self.backbone(attention_mask=mask, past_key_values=cache, use_cache=True, **inputs)


class Rollout:
    """A left-padded batch of questions as it is read, thought about and answered, one token a row at a time.

    Mask and position ids go with every token, so that no row sees padding or its neighbours. `read`, `think` and
    `say` return the backbone's output for their token, with hidden_states.

    `edits` change the states of the positions that `read` and `think` pass through. Many conditions of the same
    questions start from one rollout: `fork` it where they part.
    """

    @torch.no_grad()
    def __init__(
        self, reasoner: LatentReasoner, token_ids: Sequence[Sequence[int]], edits: Sequence[Edit] = ()
    ) -> None:
        """Read all but the last token of each question. Raises ValueError if an edit's layer is not the model's."""
        self._reasoner, self._device = reasoner, reasoner.model.device
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
        # A layer of the cache grows by new tensors: the old ones are never written to.
        other._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        if rows is not None:
            index = torch.tensor(rows, dtype=torch.long, device=self._device)
            if self._cache.get_seq_length():
                other._cache.batch_select_indices(index)
            for name in ("_last_tokens", "_mask", "_next_place", "_state"):
                setattr(other, name, getattr(self, name)[index])
        return other

    def read(self) -> Any:
        """The last token of the question: position 0."""
        return self._pass(input_ids=self._last_tokens)

    def think(self, thoughts: Tensor | None = None) -> Any:
        """The next position: its inputs are `thoughts` (batch, 1, input_dim), or the last hidden states fed back."""
        return self._pass(inputs_embeds=self._next_thought() if thoughts is None else thoughts)

    def say(self, tokens: Tensor) -> Any:
        """Ordinary tokens for every row: (batch, n)."""
        return self._step(tokens.shape[1], input_ids=tokens.to(self._device))

    @torch.no_grad()
    def answer(self, max_new_tokens: int = 32) -> list[list[int]]:
        """The tokens of each row's greedy answer, the end-of-text token and what follows it left out."""
        for token in self._eot():
            self.say(token)
        end = self._reasoner.tokenizer.eos_token_id
        said: list[Tensor] = []
        ended = torch.zeros(len(self._mask), dtype=torch.bool)
        while len(said) < max_new_tokens and not ended.all():
            if said:
                self.say(said[-1])
            said.append(self._reasoner.logits(self._state[:, -1:]).argmax(-1).cpu())
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
        unsaid = torch.cat([*self._eot(), tokens[:, :-1]], dim=1)
        last = self._state[:, -1:]
        if unsaid.shape[1]:
            self.say(unsaid)
        return self._state if self._eot() else torch.cat([last, self._state], dim=1)[:, :width]

    def _eot(self) -> list[Tensor]:
        """The eot token for every row, (batch, 1), if the model has one."""
        eot = self._reasoner.eot_token_id
        return [] if eot is None else [torch.full((len(self._mask), 1), eot)]

    def _checked(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        if absent := [edit.layer for edit in edits if not 0 <= edit.layer < self._reasoner.n_layers]:
            raise ValueError(f"there is no layer {absent[0]} to edit: the model has {self._reasoner.n_layers}")
        return tuple(edits)

    @torch.no_grad()
    def _next_thought(self) -> Tensor:
        return self._reasoner.feed_back(self._state[:, -1:])

    def _pass(self, **inputs: Any) -> Any:
        """The next position, edited."""
        self.position += 1
        here = [edit for edit in self._edits if edit.position == self.position]
        last = self._reasoner.n_layers - 1
        with edited_blocks(self._reasoner, [edit for edit in here if edit.layer != last]):
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
        output = self._reasoner.forward(self._cache, self._mask, places, output_hidden_states=True, **inputs)
        self._next_place = self._next_place + n_tokens
        self._state = output.last_hidden_state.to(self._device)
        return output


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
def edited_blocks(reasoner: LatentReasoner, edits: Sequence[Edit]) -> Iterator[None]:
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


class ModelSource(NamedTuple):
    """Everything that decides which model runs, where and how: a process on any machine can load it."""

    name: str
    base_model: str | None
    lora_alpha: float
    dtype: str  # of the weights
    device_map: str | None
    device: str  # 'auto' or a torch device; not asked with a device map
    threads: int | None  # on the CPU; None leaves torch's own number

    def absolute(self) -> "ModelSource":
        """The same for a process that was started elsewhere."""

        def resolved(name: str) -> str:
            return str(Path(name).resolve()) if Path(name).exists() else name

        return self._replace(name=resolved(self.name), base_model=self.base_model and resolved(self.base_model))

    def load(self) -> LatentReasoner:
        """Raises InputError as `choose_device` and `LatentReasoner.load` do."""
        if self.threads:
            torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        quiet_libraries()
        reasoner = LatentReasoner.load(
            self.name, self.base_model, self.lora_alpha, dtype=getattr(torch, self.dtype), device_map=self.device_map
        )
        return reasoner.to(device if self.device_map is None else reasoner.model.device)


def quiet_libraries() -> None:
    """Keep what the libraries say to themselves off stderr: errors come as exceptions."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
