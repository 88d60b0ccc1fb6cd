"""A language model of random weights that thinks, in the shape of LLaMA-3.2-1B or smaller: for its speed alone."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from thought_saes.models.projection import thought_projection
from thought_saes.models.reasoner import LatentReasoner

SHORTEST, LONGEST = 30, 120  # tokens of a question, as in GSM8K


def random_reasoner(
    input_dim: int, n_layers: int, n_heads: int, vocabulary: int, dtype: torch.dtype, device: str
) -> LatentReasoner:
    """The model with CODI's projection. A quarter as many heads for keys and values, as LLaMA has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=input_dim,
        intermediate_size=4 * input_dim,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 4,
        tie_word_embeddings=True,
    )
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="a")
    with torch.device(device):
        model, projection = LlamaForCausalLM(config).to(dtype), thought_projection(input_dim, input_dim)
    return LatentReasoner(model, fast, projection, bot_token_id=2, eot_token_id=3)


def random_questions(vocabulary: int, n: int) -> list[list[int]]:
    """Tokens of n questions of different lengths."""
    generator = np.random.default_rng(0)
    return [generator.integers(4, vocabulary, generator.integers(SHORTEST, LONGEST)).tolist() for _ in range(n)]
