"""Small folders of activations and SAEs of a model that a test has at hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.writer import CacheWriter
from thought_saes.common.flags import Selection
from thought_saes.downstream.job import Plan, Settings, choose_grid
from thought_saes.models.reasoner import LatentReasoner
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.training.start import seeded_sae

ALL = Selection("all", None)


def as_examples(questions: Sequence[str], answers: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": row, "question": q, "answer": a} for row, (q, a) in enumerate(zip(questions, answers, strict=True))]


def write_questions(path: Path, examples: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


def write_cache(
    folder: Path,
    reasoner: LatentReasoner,
    examples: Sequence[dict[str, Any]],
    layers: Sequence[int],
    positions: Sequence[int],
) -> ActivationCache:
    """The activations of the questions, as the extraction writes them."""
    folder.mkdir(parents=True)
    writer = CacheWriter(
        folder,
        layers=layers,
        positions=positions,
        examples=examples,
        input_dim=reasoner.input_dim,
        dtype="float32",
        description={"model_fingerprint": reasoner.fingerprint(), "dataset": "made", "dataset_split": "train"},
        record={},
    )
    token_ids = [reasoner.tokenize(example["question"]) for example in examples]
    writer.write(range(len(examples)), reasoner.hidden_states(token_ids, layers, positions).numpy())
    writer.commit(len(examples))
    return ActivationCache(folder)


def write_saes(results: Path, cache: ActivationCache, latent_dims: Sequence[int], k_values: Sequence[int]) -> None:
    """SAEs that only just began: decoder and biases away from their start, so that nothing equals `untrained`."""
    results.mkdir(parents=True, exist_ok=True)
    for cell in cache.cells:
        rows = torch.from_numpy(cache.cell(cell)[cache.split.train])
        for latent_dim in latent_dims:
            for k in k_values:
                key = SaeKey(cell, latent_dim, k)
                sae = seeded_sae(cache.input_dim, key, seed=5)
                with torch.no_grad():
                    sae.decoder.bias.copy_(rows.mean(0))
                    sae.decoder.weight *= 0.5
                sae.config |= {"activations": cache.fingerprint(cell), "seed": 5}
                sae.save(checkpoint_path(results, key))


def make_plan(
    cache: ActivationCache, results: Path, examples: Sequence[dict[str, Any]], reasoner: LatentReasoner, **settings: int
) -> Plan:
    grid = choose_grid(results, cache, reasoner.facts(), ALL, ALL, None, None, True)
    chosen = {"seed": 0, "max_new_tokens": 5, "batch_size": 4} | settings
    return Plan(cache.folder, results, list(examples), Settings(**chosen), grid)
