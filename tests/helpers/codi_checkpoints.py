"""Tiny random models in every form the extraction loads, and the plain rollout that its batches must equal."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", "a", "how", "many", "apples", "has", "Tom", "?", "."] + [str(n) for n in range(20)]
VOCABULARY = len(WORDS)
BOS, EOS = WORDS.index("<s>"), WORDS.index("</s>")
PAD, BOT, EOT = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2
INPUT_DIM = 32
N_LAYERS = 3
LORA_RANK = 4
LORA_ALPHA = 32
LORA_TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
QUESTIONS = [
    "how many apples has Tom ?",
    "a",
    "Tom has 3 apples . " * 9 + "how many ?",
    "how many ?",
    "Tom has 1 2 3 4 5 6 7 8 9 10 11 12 13 apples . a a a a a how many ?",
]


class Codi(nn.Module):
    """The module whose state dict is a CODI training checkpoint: `codi` a live LoRA model, `prj` the projection."""

    def __init__(self, family: str, tied: bool) -> None:
        super().__init__()
        self.codi = get_peft_model(
            AutoModelForCausalLM.from_config(small_config(family, VOCABULARY + 3, tied)),
            LoraConfig(
                r=LORA_RANK,
                lora_alpha=LORA_ALPHA,
                target_modules=LORA_TARGETS[family],
                fan_in_fan_out=family == "gpt2",
                task_type="CAUSAL_LM",
            ),
        )
        self.prj = nn.Sequential(
            OrderedDict(
                {
                    "0": nn.Dropout(0.1),
                    "1": nn.Linear(INPUT_DIM, 48),
                    "2": nn.GELU(),
                    "3": nn.Linear(48, INPUT_DIM),
                    "ln": nn.LayerNorm(INPUT_DIM),
                }
            )
        )


def small_config(family: str, vocabulary: int, tied: bool = True) -> Any:
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=INPUT_DIM,
            n_head=4,
            n_layer=N_LAYERS,
            n_positions=96,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=tied,
        )
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=INPUT_DIM,
        intermediate_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )


def randomize(module: nn.Module, seed: int) -> None:
    """Random values in every parameter, biases and norms too: a zero bias would hide a missing one.

    Small enough that seven fed-back thoughts do not blow rounding up.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.1 * noise)


def save_tokenizer(folder: Path, bos: bool, eos: bool = False) -> None:
    """A word-level tokenizer that puts `<s>` first or `</s>` last by a template, or adds nothing."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""),
            special_tokens=[("<s>", BOS), ("</s>", EOS)],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


@dataclass(frozen=True)
class CodiFiles:
    """A CODI checkpoint on the disk, and the live model it was written from."""

    checkpoint: Path  # a folder with model.safetensors
    base: Path  # a folder with the base model's config and tokenizer
    live: Codi
    bos: bool


def write_codi(folder: Path, family: str, *, tied: bool = True) -> CodiFiles:
    live = Codi(family, tied)
    randomize(live, seed=len(family))
    live.eval()
    files = CodiFiles(folder / "checkpoint", folder / "base", live, bos=family == "llama")
    small_config(family, VOCABULARY, tied).save_pretrained(files.base)
    save_tokenizer(files.base, bos=files.bos)
    write_state(files.checkpoint, codi_state(live, tied))
    return files


def codi_state(live: Codi, tied: bool = True) -> dict[str, Tensor]:
    """The checkpoint's tensors; of a tied pair only the embedding, as safetensors leaves it."""
    state = {key: value.detach().clone().contiguous() for key, value in live.state_dict().items()}
    if tied:
        del state["codi.base_model.model.lm_head.weight"]
    return state


def write_state(folder: Path, state: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name, metadata={"format": "pt"})
    return folder


def write_plain(folder: Path, family: str = "llama", config: Any = None) -> Path:
    """An ordinary model folder."""
    model = AutoModelForCausalLM.from_config(config or small_config(family, VOCABULARY))
    randomize(model, seed=3)
    model.save_pretrained(folder)
    save_tokenizer(folder, bos=family == "llama")
    return folder


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: Any) -> None:
    """The LLaMA `model` in float32, with a byte-level tokenizer that knows 'a' to 'n' and 'ab'."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    letters = [chr(ord("a") + number) for number in range(14)]
    tokens = ["<unk>", "<s>", "</s>", *letters, "ab"]
    tokens += [f"<extra{number}>" for number in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    for key, value in model.state_dict().items():
        if key == "lm_head.weight":
            continue  # tied
        name = key
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        if heads := {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2]):  # rotary pairs side by side, not half apart
            value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def words_to_tokens(question: str, bos: bool) -> list[int]:
    return [BOS] * bos + [WORDS.index(word) for word in question.split()]


@torch.no_grad()
def rollout(model: Any, projection: nn.Module | None, tokens: list[int], n_positions: int = 7) -> Tensor:
    """One question, no cache, no mask: (n_positions, n_layers, input_dim).

    Every step runs the whole sequence again, the thoughts so far appended to the tokens' embeddings.
    """
    inputs = model.get_input_embeddings()(torch.tensor([tokens]))
    states = []
    for _ in range(n_positions):
        output = model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        last = torch.stack([stream[0, -1] for stream in output.hidden_states])  # (1 + n_layers, input_dim)
        states.append(last[1:])
        thought = last[-1:] if projection is None else projection(last[-1:])
        inputs = torch.cat([inputs, thought[None]], dim=1)
    return torch.stack(states)


def relative_difference(states: Tensor, reference: Tensor) -> float:
    """The largest distance between two vectors, over the second one's length."""
    return float(((states - reference).norm(dim=-1) / reference.norm(dim=-1)).max())
