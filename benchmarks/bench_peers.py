"""The public trainers that `bench.py --peers` times: of each, what it does per batch, and nothing else."""

import itertools
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch import Tensor

from thought_saes.common.errors import one_line
from thought_saes.saes.variants import VARIANTS

Step = Callable[[Tensor], object]  # one optimiser step on a batch (rows, input_dim)
# What SAELens calls our variants.
SAELENS = {"abstopk": "AbsTopK", "topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}
OF_A_ROW = ("abstopk", "topk")  # the two cost a trainer the same


class Shape(NamedTuple):
    """The SAE that is trained."""

    variant: str
    input_dim: int
    latent_dim: int
    k: int


def saelens_step(shape: Shape, lr: float, sparse: bool = False) -> Step:
    """What `SAETrainer.fit` does per batch, without rescaling by decoder norms, which ours does not do either.

    Of AbsTopK and TopK also with its sparse decoding; its nested groups are ours.
    """
    sae_lens = import_module("sae_lens")
    _, input_dim, latent_dim, k = shape
    settings: dict[str, object] = {"use_sparse_activations": sparse, "rescale_acts_by_decoder_norm": False}
    if shape.variant == "matryoshka":
        settings["matryoshka_widths"] = list(VARIANTS[shape.variant].prefixes(latent_dim))
    name = SAELENS[shape.variant]
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=input_dim, d_sae=latent_dim, k=k, **settings)
    trainer_settings = import_module("sae_lens.config").SAETrainerConfig(
        1 << 40, train_batch_size_samples=256, lr=lr, lr_end=lr
    )
    trainer = sae_lens.SAETrainer(
        trainer_settings, getattr(sae_lens, f"{name}TrainingSAE")(config), data_provider=iter(())
    )

    def step(batch: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(batch)
        trainer.n_training_steps += 1

    return step


def sparsify_step(shape: Shape, lr: float) -> Step:
    """What `Trainer.fit` does per batch once it has the activations, which it takes from a language model only."""
    sparsify = import_module("sparsify")
    sae = sparsify.SparseCoder(shape.input_dim, sparsify.SparseCoderConfig(num_latents=shape.latent_dim, k=shape.k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)

    def step(batch: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(batch).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def dictionary_learning_step(shape: Shape, lr: float) -> Step:
    """`TopKTrainer.update`, as `trainSAE` calls it per batch."""
    trainer = import_module("dictionary_learning.trainers.top_k").TopKTrainer(
        *(1 << 40, *shape[1:]), layer=0, lm_name="", lr=lr, warmup_steps=0, device="cpu"
    )
    count = itertools.count()
    return lambda batch: trainer.update(next(count), batch)


class Peer(NamedTuple):
    package: str  # that it comes from
    make_step: Callable[[Shape, float], Step]  # from the SAE's shape and lr
    variants: tuple[str, ...] = OF_A_ROW  # that it is timed beside


PEERS = {
    "SAELens": Peer("sae-lens", saelens_step, tuple(SAELENS)),
    "SAELens sparse": Peer("sae-lens", partial(saelens_step, sparse=True)),
    "sparsify": Peer("eai-sparsify", sparsify_step),
    "dictionary_learning": Peer("dictionary-learning", dictionary_learning_step),
}


def why_absent(peer: str, variant: str) -> str:
    """Why `peer` cannot be timed beside a variant, in words; empty if it takes a step.

    To be called in a process of its own.
    """
    package, make_step, _ = PEERS[peer]
    try:
        version(package)
        make_step(Shape(variant, 32, 32, 2), 1e-3)(torch.rand(4, 32))
    except PackageNotFoundError:
        return f"{package} is not installed"
    except (ImportError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as problem:
        return f"{package} {version(package)} does not run here ({one_line(problem)[:150]})"
    return ""
