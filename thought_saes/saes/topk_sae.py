"""The TopK sparse autoencoder of the experiment, and its metrics.

    sae = TopKSAE.load("results/pos3_layer14_d512_k20.pt")
    latents = sae.encode(x)          # (n, latent_dim), at most k of each row not zero
    x_hat = sae.decode(latents)      # (n, input_dim), the same as sae(x)

This is the readable reference; `train_grid.py` trains many at once. Metrics run over chunks of rows: their memory
does not grow with the number of rows. Deliberately missing: ReLU, centring or scaling of the input, and any
treatment of dead features; the experiment had none.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, embedding_bag

from thought_saes.common.files import write_bytes

CHUNK_ROWS = 1024  # so that measuring a wide SAE takes less memory than training it did
BUSIEST = 10
# A checkpoint beyond its weights: zip headers, names, config, metrics. Measured from 3.2 to 3.3 KB.
CHECKPOINT_FRAME = 3_300


def n_weights(input_dim: int, latent_dim: int) -> int:
    """Of an SAE, biases included."""
    return 2 * input_dim * latent_dim + input_dim + latent_dim


def checkpoint_bytes(input_dim: int, latent_dim: int) -> int:
    """The size of a checkpoint file, within 1 % from some 100,000 weights on."""
    return 4 * n_weights(input_dim, latent_dim) + CHECKPOINT_FRAME


class TopKSAE(nn.Module):
    """A sparse autoencoder that keeps the k latents of largest magnitude, with their signs.

        z     = AbsTopK_k(W_enc x + b_enc)
        x_hat = W_dec z + b_dec

    The field calls this rule AbsTopK (arXiv 2510.00404); plain TopK (arXiv 2406.04093) has a ReLU. Both layers
    start as `nn.Linear` does, and the decoder's columns at unit norm; training does not keep them there.

    `config` and `metrics` hold what a loaded checkpoint says of itself.
    """

    def __init__(self, input_dim: int, latent_dim: int, k: int) -> None:
        """Raises ValueError unless 1 <= k <= latent_dim and input_dim >= 1."""
        super().__init__()
        if not 1 <= k <= latent_dim or input_dim < 1:
            raise ValueError(f"no SAE has input_dim {input_dim}, latent_dim {latent_dim} and k {k}")
        self.input_dim, self.latent_dim, self.k = input_dim, latent_dim, k
        self.encoder = nn.Linear(input_dim, latent_dim)
        self.decoder = nn.Linear(latent_dim, input_dim)
        with torch.no_grad():
            self.decoder.weight /= self.decoder.weight.norm(dim=0)
        self.config: dict[str, Any] = {"input_dim": input_dim, "latent_dim": latent_dim, "k": k}
        self.metrics: dict[str, Any] = {}

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(top_acts, top_indices) of x (n, input_dim): the k selected pre-activations and where, both (n, k)."""
        pre_acts = self.encoder(x)  # (n, latent_dim)
        top_indices = pre_acts.abs().topk(self.k, dim=-1, sorted=False).indices
        return pre_acts.gather(-1, top_indices), top_indices

    def encode(self, x: Tensor) -> Tensor:
        """The latents z of x: (..., input_dim) -> (..., latent_dim)."""
        top_acts, top_indices = self.select(x)
        zeros = top_acts.new_zeros(*x.shape[:-1], self.latent_dim)
        return zeros.scatter(-1, top_indices, top_acts)

    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction of latents: (..., latent_dim) -> (..., input_dim)."""
        return self.decoder(latents)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def save(self, path: Path | str) -> None:
        """Write weights, `config` and `metrics` in the experiment's format; never half a file."""
        content = {
            "model_state_dict": {key: value.detach().cpu() for key, value in self.state_dict().items()},
            "config": self.config,
            "metrics": self.metrics,
        }
        buffer = io.BytesIO()  # torch.save to a file reports a full disk as something else
        torch.save(content, buffer)
        write_bytes(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "TopKSAE":
        """The SAE of a checkpoint, ours or the original experiment's.

        Raises FileNotFoundError, or ValueError if the file is damaged or holds no such SAE.
        """
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                content = torch.load(path, map_location=device, weights_only=True)
            config = content["config"]
            sae = cls(config["input_dim"], config["latent_dim"], config["k"]).to(device)
            sae.load_state_dict(content["model_state_dict"])
        except FileNotFoundError:
            raise
        except (RuntimeError, UnpicklingError, EOFError, LookupError, TypeError, ValueError) as problem:
            raise ValueError(f"{path} is no checkpoint of a TopK SAE, or damaged: {problem}") from problem
        sae.config, sae.metrics = config, content.get("metrics", {})
        return sae


# A metric that was saved as a NumPy number, under NumPy's name for it now and in NumPy 1.
NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


class Moments:
    """Count, mean and sum of squared deviations of each column, gathered chunk by chunk in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, chunk: Tensor) -> None:
        """Take in the rows of `chunk` (n, d). Chan, Golub and LeVeque's pairwise update."""
        chunk = (chunk.cpu() if chunk.device.type == "mps" else chunk).double()
        count, mean = len(chunk), chunk.mean(dim=0)
        squares = (chunk - mean).square().sum(dim=0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def around_column_means(self) -> float:
        """Sum over rows and columns of (value - its column's mean)^2."""
        return float(self.squares.sum())

    def around_zero(self) -> float:
        """Sum over rows and columns of value^2."""
        return float((self.squares + self.count * self.mean.square()).sum())

    def scalar_variance(self) -> float:
        """The unbiased variance of all values taken as one sample."""
        grand = self.mean.mean()
        total = self.squares.sum() + self.count * (self.mean - grand).square().sum()
        return float(total / (self.count * self.mean.numel() - 1))


def explained_variance(original: Moments, error: Moments) -> float:
    """The experiment's: 1 - var(x - x_hat) / var(x), each one variance over all n * d values.

    Offsets between dimensions count as variance, so that predicting the mean of x already scores high.
    """
    return 1 - ratio(error.scalar_variance(), original.scalar_variance())


def fraction_of_variance_unexplained(original: Moments, error: Moments) -> float:
    """sum |x - x_hat|^2 / sum |x - mean of the rows|^2: 0 is perfect, 1 as good as predicting the mean."""
    return ratio(error.around_zero(), original.around_column_means())


class Measurement(NamedTuple):
    """What one SAE does on some rows x; |z| is over the latents that are not zero."""

    explained_variance: float
    reconstruction_loss: float  # mean squared error over all values
    cosine_similarity: float  # mean over rows of cos(x, x_hat)
    fvu: float  # fraction_of_variance_unexplained
    l0_mean: float  # latents that are not zero, per row
    l0_std: float
    mean_activation: float  # of |z|
    max_activation: float  # of |z|
    firings: Tensor  # (latent_dim,) the number of rows on which each feature is not zero


def chunks(x: Tensor, rows: int) -> Iterator[Tensor]:
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


@torch.inference_mode()
def measure(sae: TopKSAE, x: Tensor, chunk_rows: int = CHUNK_ROWS) -> Measurement:
    """Measure `sae` on x (n, input_dim). Sums are kept in float64: the chunks' size does not show."""
    original, error, l0 = Moments(), Moments(), Moments()
    features = sae.decoder.weight.T.contiguous()  # (latent_dim, input_dim)
    cosine = magnitude = largest = 0.0
    firings = torch.zeros(sae.latent_dim, dtype=torch.long, device=x.device)
    for chunk in chunks(x, chunk_rows):
        top_acts, top_indices = sae.select(chunk)
        # The decoder's sum over k features instead of latent_dim, most of which are zero.
        reconstruction = sae.decoder.bias + embedding_bag(
            top_indices, features, mode="sum", per_sample_weights=top_acts
        )
        original.add(chunk)
        error.add(chunk - reconstruction)
        cosine += float(cosine_similarity(chunk, reconstruction, dim=-1).sum())
        fires = top_acts != 0
        l0.add(fires.sum(dim=1, keepdim=True).float())
        firings += torch.bincount(top_indices[fires], minlength=sae.latent_dim)
        magnitude += float(top_acts.abs().sum(dim=1).cpu().double().sum())
        largest = max(largest, float(top_acts.abs().max()))
    n_active = int(firings.sum())
    return Measurement(
        explained_variance=explained_variance(original, error),
        reconstruction_loss=error.around_zero() / x.numel(),
        cosine_similarity=cosine / len(x),
        fvu=fraction_of_variance_unexplained(original, error),
        l0_mean=float(l0.mean),
        l0_std=ratio(l0.around_column_means(), len(x) - 1) ** 0.5,
        mean_activation=ratio(magnitude, n_active),
        max_activation=largest,
        firings=firings,
    )


@torch.inference_mode()
def median_activation(sae: TopKSAE, x: Tensor, chunk_rows: int = CHUNK_ROWS) -> float:
    """The exact median of |z| over the latents that are not zero, the lower one of two middle values.

    The bits of positive float32 numbers sort as the numbers do: one pass over the rows counts their upper halves
    and finds the median's, a second one finds its lower half.
    """

    def count_halves(upper_half: int | None) -> Tensor:
        counts = torch.zeros(1 << 16, dtype=torch.long)
        for chunk in chunks(x, chunk_rows):
            bits = sae.select(chunk)[0].abs().cpu().view(torch.int32).flatten()
            bits = bits[bits != 0]
            halves = bits >> 16 if upper_half is None else bits[bits >> 16 == upper_half] & 0xFFFF
            counts += torch.bincount(halves, minlength=1 << 16)
        return counts

    upper_counts = count_halves(None)
    rank = (int(upper_counts.sum()) - 1) // 2
    if rank < 0:
        return float("nan")
    upper = int((upper_counts.cumsum(0) <= rank).sum())
    rank -= int(upper_counts[:upper].sum())
    lower = int((count_halves(upper).cumsum(0) <= rank).sum())
    return float(torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32))


def evaluate(sae: TopKSAE, x_train: Tensor, x_validation: Tensor, chunk_rows: int = CHUNK_ROWS) -> dict[str, Any]:
    """Every metric of one SAE under its name in the files.

    On the validation rows unless the name says otherwise; a dead feature is zero on every row of both sets.
    """
    train = measure(sae, x_train, chunk_rows)
    validation = measure(sae, x_validation, chunk_rows)
    firings = train.firings + validation.firings
    firing = firings[firings > 0]
    rates = firing.float() / (len(x_train) + len(x_validation))
    return {
        **{name: value for name, value in validation._asdict().items() if name != "firings"},
        "median_activation": median_activation(sae, x_validation, chunk_rows),
        "feature_death_rate": 1 - len(firing) / sae.latent_dim,
        "num_dead_features": sae.latent_dim - len(firing),
        "num_active_features": len(firing),
        "fvu_train": train.fvu,
        "num_active_features_validation": int((validation.firings > 0).sum()),
        "busiest_10_share": ratio(float(firings.sort(descending=True).values[:BUSIEST].sum()), float(firings.sum())),
        "firing_rate_mean": float(rates.mean()),
        "firing_rate_median": float(rates.median()) if len(rates) else float("nan"),
    }


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where there is nothing to divide by."""
    return part / whole if whole else float("nan")
