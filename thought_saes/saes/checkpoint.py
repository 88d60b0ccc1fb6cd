"""An SAE in a file, with the keys of the original experiment, so that its notebooks read ours and we read its files."""

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thought_saes.common.errors import DamagedFile, one_line
from thought_saes.common.files import write_bytes
from thought_saes.common.schema import check
from thought_saes.saes.formats import CheckpointContent
from thought_saes.saes.names import PUBLISHED
from thought_saes.saes.sae import SparseAutoencoder, TopKSAE, n_weights
from thought_saes.saes.variants import VARIANTS

# A metric that was saved as a NumPy number, under NumPy's name for it now and in NumPy 1.
NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


# What torch.load and the use of what it returns raise where a file is not what it should be.
DAMAGE = (
    *(RuntimeError, UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(AssertionError, ImportError, MemoryError, struct.error, zipfile.BadZipFile),
)


# A checkpoint beyond its weights: zip headers, names, config, metrics. Measured from 3.2 to 3.6 KB.
CHECKPOINT_FRAME = 3_300


def checkpoint_bytes(input_dim: int, latent_dim: int) -> int:
    """The size of a checkpoint file, within 1 % from some 100,000 weights on."""
    return 4 * n_weights(input_dim, latent_dim) + CHECKPOINT_FRAME


def save_sae(sae: SparseAutoencoder, path: Path) -> None:
    """Write {model_state_dict, config, metrics}; never half a file."""
    content = {
        "model_state_dict": {key: value.detach().cpu() for key, value in sae.state_dict().items()},
        "config": sae.config,
        "metrics": sae.metrics,
    }
    buffer = io.BytesIO()  # torch.save to a file reports a full disk as something else
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def load_sae(path: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The SAE of a checkpoint, of any variant, or of a SAELens folder; its weights need no gradients.

    A file that names no variant is the experiment's. Raises FileNotFoundError, or ValueError if the file is damaged
    or holds no SAE.
    """
    from thought_saes.saes.saelens import is_saelens, read_saelens  # which makes SAEs with this module

    if is_saelens(path):
        return read_saelens(path, device)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location=device, weights_only=True)
        weights = content["model_state_dict"]
        about = plain({"config": content["config"], "metrics": content.get("metrics", {})})
        config = check(about, CheckpointContent, "what it says of itself").config
        shape = config.latent_dim, config.input_dim
        if tuple(weights["encoder.weight"].shape) != shape:  # before memory is taken for what the config says
            raise ValueError(f"encoder.weight is {tuple(weights['encoder.weight'].shape)}, its config says {shape}")
        sae = sae_of(weights, config.input_dim, config.latent_dim, config.k, config.variant, device)
    except OSError as problem:
        if problem.errno is not None:
            raise  # it is not there, or may not be read
        raise ValueError(f"{path} is no checkpoint of a TopK SAE, or damaged: {problem}") from problem
    except (*DAMAGE, DamagedFile) as problem:
        raise ValueError(f"{path} is no checkpoint of a TopK SAE, or damaged: {one_line(problem)}") from problem
    sae.config, sae.metrics = about["config"], about["metrics"]
    return sae.requires_grad_(False)


def sae_of(
    weights: Mapping[str, Tensor],
    input_dim: int,
    latent_dim: int,
    k: int,
    variant: str,
    device: torch.device | str = "cpu",
) -> SparseAutoencoder:
    """An SAE of given weights: none are drawn, so that torch's global random state stays as it is."""
    sae = make_sae(input_dim, latent_dim, k, variant).to(device)
    sae.load_state_dict(weights)
    return sae


def make_sae(input_dim: int, latent_dim: int, k: int, variant: str) -> SparseAutoencoder:
    """An SAE whose weights are not drawn yet. Raises ValueError if there is no such variant, or none of these sizes."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no SAE variant '{variant}'; there are {', '.join(VARIANTS)}")
    if variant == PUBLISHED:
        return TopKSAE(input_dim, latent_dim, k, drawn=False)
    return SparseAutoencoder(input_dim, latent_dim, k, variant, drawn=False)
