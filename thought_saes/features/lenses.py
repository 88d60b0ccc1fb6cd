"""What a feature's direction says to the model: the tokens it makes likelier and less likely, the thought it becomes.

d is a half's direction in the residual stream, W_U the unembedding, gamma what the final norm multiplies by:

- of the last layer, which is taken after the norm: W_U d;
- below it: W_U (gamma * d), which leaves out what the blocks above make of d, and the norm's scale;
- of a thought, for the last layer alone: projection(mean + alpha d) - projection(mean), by its cosine with the tokens'
  input embeddings; alpha is the half's mean activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.errors import InputError
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.results.names import SaeKey
from thought_saes.results.store import Results

TOKENS = 8
LONG = 1e3  # a state beside which a norm's epsilon is nothing


class Said(NamedTuple):
    """Tokens and their values, the strongest first."""

    tokens: list[str]
    values: list[float]


class Lens(NamedTuple):
    """Of one half."""

    up: Said  # what it makes likelier, change of the logit for each unit of activation
    down: Said
    thought: Said | None  # nearest input embeddings of what it adds to the next input, cosines


@torch.no_grad()
def look_through(reasoner: LatentReasoner, layer: int, directions: Tensor, alphas: Tensor, mean: Tensor) -> list[Lens]:
    """A Lens for each of `directions` (n, input_dim), signs included. alphas (n,); mean (input_dim,) of the rows.

    Raises InputError if the model's final norm is not found.
    """
    last = layer == reasoner.n_layers - 1
    head = reasoner.model.get_output_embeddings().weight
    seen = directions if last else directions * final_norm(reasoner)
    logits = (seen.to(head.device, head.dtype) @ head.T).float()
    names = [reasoner.decode([token]) or str(token) for token in range(logits.shape[1])]
    ups, downs = (strongest(values, names) for values in (logits, -logits))
    thoughts: Sequence[Said | None] = [None] * len(directions)
    if last:
        embeddings = reasoner.model.get_input_embeddings().weight
        states = torch.stack([mean, *(mean + alpha * d for alpha, d in zip(alphas, directions, strict=True))])
        inputs = reasoner.feed_back(states.to(embeddings.device, embeddings.dtype))
        moved = torch.nn.functional.normalize((inputs[1:] - inputs[0]).float(), dim=-1)
        thoughts = strongest(moved @ torch.nn.functional.normalize(embeddings.float(), dim=-1).T, names)
    downs = [Said(said.tokens, [-value for value in said.values]) for said in downs]
    return [Lens(*said) for said in zip(ups, downs, thoughts, strict=True)]


@torch.no_grad()
def final_norm(reasoner: LatentReasoner) -> Tensor:
    """gamma (input_dim,), as the norm applies it: Gemma's is 1 + its weight. Raises InputError if there is no norm."""
    norms = [
        module
        for module in reasoner.backbone.children()
        if getattr(getattr(module, "weight", None), "shape", None) == (reasoner.input_dim,)
    ]
    if not norms:
        raise InputError("--model: no norm after the last block is found: there is no lens below the last layer")
    signs = torch.ones(reasoner.input_dim)
    signs[1::2] = -1  # mean 0, mean square 1: what a norm leaves as it is
    state = (LONG * signs).to(norms[-1].weight)
    gamma: Tensor = (norms[-1](state[None])[0] - norms[-1](-state[None])[0]).float().cpu() / (2 * signs)
    return gamma


def strongest(values: Tensor, names: Sequence[str]) -> list[Said]:
    """Of each row of values (n, vocabulary) the TOKENS largest."""
    top = values.float().cpu().topk(min(TOKENS, values.shape[1]), dim=-1)
    return [
        Said([names[token] for token in tokens], numbers)
        for tokens, numbers in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def for_table(lenses: Sequence[Lens]) -> dict[str, list[Any]]:
    """Columns of features.parquet."""
    columns: dict[str, list[Any]] = {}
    for name in Lens._fields:
        said = [getattr(lens, name) or Said([], []) for lens in lenses]
        columns[f"lens_{name}"] = [one.tokens for one in said]
        columns[f"lens_{name}_values"] = [one.values for one in said]
    return columns


@dataclass
class Lenses:
    """The lenses of the SAEs that get a page."""

    reasoner: LatentReasoner
    cache: ActivationCache
    results: Results
    latent_dim: int
    k: int

    def __call__(self, cell: Cell, halves: pd.DataFrame) -> dict[str, list[Any]]:
        """Columns of features.parquet for these halves of the cell's SAE."""
        sae = self.results.sae(SaeKey(cell, self.latent_dim, self.k), self.cache.input_dim)
        signs = torch.tensor(halves["sign"].to_numpy(dtype=np.float32))
        features = torch.tensor(halves["feature"].to_numpy(dtype=np.int64))  # pandas' own array is not to be written to
        directions = sae.decoder.weight.detach()[:, features].T * signs[:, None]
        alphas = torch.tensor(np.nan_to_num(halves["mean_activation"].to_numpy(dtype=np.float32)))
        mean = torch.from_numpy(
            np.asarray(self.cache.cell(cell)[self.cache.split.train], dtype=np.float32).mean(axis=0)
        )
        return for_table(look_through(self.reasoner, cell.layer, directions, alphas, mean))
