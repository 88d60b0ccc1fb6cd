"""The forms a model comes in, loaded: a training checkpoint on its base, any causal LM, a saved reasoner."""

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from msgspec.structs import replace
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from thought_saes.common.errors import InputError, one_line
from thought_saes.common.flags import require_package
from thought_saes.common.schema import read_record, shown
from thought_saes.models.codi import merged_state, projection_state
from thought_saes.models.formats import Thoughts, check_ids, check_template
from thought_saes.models.hub import TOKENIZER_FILES, resolve_folder
from thought_saes.models.layouts import BOT_KEYS, EOT_KEYS, LAYOUTS, layout_of
from thought_saes.models.precision import refuse_offloading
from thought_saes.models.projection import load_projection
from thought_saes.models.weights import PROJECTION_FILE, StateFile, check_keys, check_sizes, shapes

NEW_TOKENS = 3  # rows that training appends to the embedding: pad, bot, eot, or start, end, latent
# Keys that old checkpoints hold though nothing reads them.
UNREAD = r"(rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias|\.attention\.bias|\.attention\.masked_bias)$"

# What transformers raises of a folder whose files are damaged, or say what no model can be.
UNUSABLE = (
    *(OSError, ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError, ImportError, AttributeError),
    *(TypeError, SafetensorError, StrictDataclassError, struct.error),
)


class Parts(NamedTuple):
    """What a reasoner is made of."""

    model: Any
    tokenizer: Any
    projection: nn.Sequential | None
    thoughts: Thoughts


class Placement(NamedTuple):
    """How weights are loaded: options of transformers, and whether code that a folder brings may run."""

    options: dict[str, Any]  # dtype, device_map
    trust_remote_code: bool


def load_parts(
    name: str,
    base_model: str | None = None,
    lora_alpha: float = 32.0,
    *,
    dtype: torch.dtype = torch.float32,
    device_map: str | None = None,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> Parts:
    """Load `name`: a hub id, a folder or a .gguf file; most training checkpoints need `base_model` beside it.

    Raises InputError if there is no such model, if the checkpoint does not fit the base model or its layout, if it
    brings code that is not trusted, or if the device map leaves part of it off the GPUs or cannot be had.
    """
    placement = Placement({"dtype": dtype}, trust_remote_code)
    if device_map is not None:
        require_package("accelerate", "--device-map")
        placement.options["device_map"] = device_map
    if name.endswith(".gguf"):
        parts = load_gguf(Path(name), placement)
        if base_model is not None or layout is not None:
            raise InputError(f"--base-model and --layout are for training checkpoints; {name} is a whole model")
        return parts
    wanted = [*TOKENIZER_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = resolve_folder(name, [*wanted, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = resolve_folder(name, [*wanted, "pytorch_model*.bin"])
    state = StateFile.of_folder(folder)
    if not state:
        raise InputError(f"{folder} is no model: it has no model.safetensors or pytorch_model.bin")
    layout = layout_of(state, layout)
    if layout is None:
        if not (folder / "config.json").exists():
            marks = dict.fromkeys(mark for other in LAYOUTS.values() for mark in other.marks)
            raise InputError(f"{folder} is no model: it has no config.json, and no key begins with {', '.join(marks)}")
        if base_model is not None:
            raise InputError(f"--base-model is for CODI checkpoints; {name} is a whole model")
        check_sizes(folder / "config.json", state)
        return load_whole(folder, name, placement)
    if LAYOUTS[layout].on_base:
        if base_model is None:
            title = LAYOUTS[layout].title
            raise InputError(f"{name} is a {title} checkpoint: say what it was trained on with --base-model")
        folder, name_of_base = resolve_folder(base_model, wanted), base_model  # its weights are in the checkpoint
    else:
        if base_model is not None:
            raise InputError(f"--base-model is for CODI checkpoints; {name} has its own config")
        name_of_base = name
    return load_checkpoint(state, name, layout, folder, name_of_base, lora_alpha, placement)


def load_gguf(path: Path, placement: Placement) -> Parts:
    if not path.is_file():
        raise InputError(f"no file {path}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
    model = load_plain_model(path.parent, str(path), placement, gguf_file=path.name)
    tokenizer = load_tokenizer(path.parent, str(path), placement, gguf_file=path.name)
    return Parts(model, tokenizer, None, Thoughts(None, None))


def load_whole(folder: Path, name: str, placement: Placement) -> Parts:
    """Any causal LM, with the thoughts of a saved reasoner where its folder tells them."""
    model = load_plain_model(folder, name, placement)
    tokenizer = load_tokenizer(folder, name, placement)
    path = folder / Thoughts.file
    if not path.exists():
        return Parts(model, tokenizer, None, Thoughts(None, None))
    thoughts = read_record(path, Thoughts)
    check_ids(thoughts, len(model.get_input_embeddings().weight), str(path))
    has_projection = (folder / PROJECTION_FILE).exists()
    if thoughts.projection is not None and thoughts.projection != has_projection:
        raise InputError(
            f"{path}: projection is {str(thoughts.projection).lower()}, and there is "
            f"{'a' if has_projection else 'no'} {PROJECTION_FILE}"
        )
    projection = None
    if has_projection:
        weights = dict(StateFile([folder / PROJECTION_FILE]))
        projection = load_projection(weights, int(model.config.hidden_size), name)
    return Parts(model, tokenizer, projection, thoughts)


def load_checkpoint(
    state: StateFile,
    name: str,
    layout_name: str,
    base_folder: Path,
    base_model: str,
    lora_alpha: float,
    placement: Placement,
) -> Parts:
    """A training checkpoint, merged into a plain model with the config of `base_folder`."""
    layout = LAYOUTS[layout_name]
    check_sizes(base_folder / "config.json", state)
    config = load_config(base_folder, base_model, placement)
    n_base = config.vocab_size
    if layout.bot is not None:
        config.vocab_size = n_base + NEW_TOKENS
    skeleton = make_skeleton(config, base_model, placement)
    weights = merged_state(state, skeleton, layout, lora_alpha)
    name_of = {id(parameter): key for key, parameter in skeleton.named_parameters()}
    embedding = name_of[id(skeleton.get_input_embeddings().weight)]
    if layout.bot is not None and len(weights.get(embedding, ())) == n_base:
        # A padded vocabulary has room for the new tokens: they follow the tokenizer's own.
        n_known = len(load_tokenizer(base_folder, base_model, placement))
        if n_known + NEW_TOKENS <= n_base:
            n_base, config.vocab_size = n_known, n_base
            skeleton = make_skeleton(config, base_model, placement)
    ignored = getattr(skeleton, "_keys_to_ignore_on_load_unexpected", None) or []  # old GPT-2 files have masks
    expected = shapes(skeleton.state_dict())
    for key in weights.keys() - expected.keys():
        if any(re.search(pattern, key) for pattern in ignored):
            del weights[key]
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
        head = weights.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, weights.get(embedding, head)):
            config.tie_word_embeddings = False  # trained apart
            weights["lm_head.weight"] = head
            expected["lm_head.weight"] = tuple(skeleton.get_input_embeddings().weight.shape)
    check_keys(shapes(weights), expected, name, f"the base model {base_model}")
    projection = projection_state(state, layout)
    tokenizer = load_tokenizer(base_folder, base_model, placement)
    model = type(skeleton).from_pretrained(None, config=config, state_dict=weights, **placement.options)
    refuse_offloading(model, name)
    if layout.bot is None:
        bot, eot = (special_id(config, keys, name) for keys in (BOT_KEYS, EOT_KEYS))
    else:
        bot, eot = n_base + layout.bot, n_base + (layout.eot or 0)
    if layout.eos_before_bot and tokenizer.eos_token_id is None:
        raise InputError(f"the layout {layout_name} puts the end-of-text token before bot; {base_model} has none")
    thoughts = Thoughts(
        bot_token_id=bot,
        eot_token_id=eot,
        before_bot=[tokenizer.eos_token_id] if layout.eos_before_bot else [],
        projection=bool(projection),
        n_thoughts=layout.n_thoughts,
        question_template=layout.question_template,
        answer_template=layout.answer_template,
        layout=layout_name,
    )
    check_ids(thoughts, config.vocab_size, name)
    return Parts(
        model, tokenizer, load_projection(projection, config.hidden_size, name) if projection else None, thoughts
    )


def special_id(config: Any, keys: tuple[str, ...], name: str) -> int:
    """A token id from the config. Raises InputError if it holds none, or something else."""
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if value is not None:
            raise InputError(f"{name}: {key} in config.json is {value!r}, not a token id")
    raise InputError(f"{name}: config.json has none of {', '.join(keys)}")


def load_config(folder: Path, name: str, placement: Placement) -> Any:
    """Raises InputError if `folder` has no config of a causal LM."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=placement.trust_remote_code)
        config.vocab_size + 0, config.hidden_size + 0, config.tie_word_embeddings
    except UNUSABLE as problem:
        refuse_code(problem, folder, name)
        raise InputError(f"{name} is no causal LM ({one_line(problem)[:200]})") from problem
    return config


def make_skeleton(config: Any, name: str, placement: Placement) -> Any:
    """The model without weights. Raises InputError if transformers knows no such model."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=placement.trust_remote_code)
    except UNUSABLE as problem:
        raise InputError(f"{name} is no causal LM ({one_line(problem)[:200]})") from problem


def load_tokenizer(folder: Path, name: str, placement: Placement, **options: Any) -> Any:
    """Raises InputError if `folder` has no tokenizer, or one without a vocabulary (transformers makes such a one)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=placement.trust_remote_code, **options)
    except Exception as problem:  # tokenizers raises nothing more precise for a damaged file
        refuse_code(problem, folder, name)
        raise InputError(f"{name} has no tokenizer that can be loaded ({one_line(problem)[:200]})") from problem
    if not isinstance(longest := tokenizer.model_max_length, int | float):
        raise InputError(f"{name}: model_max_length in tokenizer_config.json is {shown(longest)}, not a number")
    try:
        knows_nothing = not tokenizer("a", add_special_tokens=False)["input_ids"]
    except Exception:  # a vocabulary without 'a' and without a token for unknown words
        knows_nothing = False
    if knows_nothing:
        raise InputError(f"{name} has no tokenizer")
    return tokenizer


def load_plain_model(folder: Path, name: str, placement: Placement, **options: Any) -> Any:
    """Raises InputError if it cannot be loaded, lacks weights (transformers would make random ones) or has others."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=placement.trust_remote_code,
            **options,
            **placement.options,
        )
    except UNUSABLE as problem:
        refuse_code(problem, folder, name)
        raise InputError(f"{name} is no model that can be loaded ({one_line(problem)[:200]})") from problem
    found, expected = ({key: tuple(both[i]) for key, *both in report["mismatched_keys"]} for i in (0, 1))
    left_over = {key: () for key in sorted(report["unexpected_keys"]) if not re.search(UNREAD, key)}
    check_keys(found | left_over, expected | dict.fromkeys(sorted(report["missing_keys"]), ()), name, "its config.json")
    refuse_offloading(model, name)
    return model


def refuse_code(problem: BaseException, folder: Path, name: str) -> None:
    """Raises InputError if `problem` is that a folder brings code of its own, with the files that hold it."""
    if "trust_remote_code" in str(problem):
        code = ", ".join(path.name for path in sorted(folder.glob("*.py"))[:4]) or "code of its own"
        raise InputError(
            f"{name} brings code that would run here ({code}), which is refused; --trust-remote-code runs it"
        ) from problem


def changed(thoughts: Thoughts, n_thoughts: int | None, question_template: str | None) -> Thoughts:
    """`thoughts` with what the user asks for. Raises InputError if the template has no place for the question."""
    if question_template is not None:
        check_template(question_template, "--question-template")
        thoughts = replace(thoughts, question_template=question_template)
    return thoughts if n_thoughts is None else replace(thoughts, n_thoughts=n_thoughts)
