"""What a recipe adds to a step: revival of dead features, decay of weights, a decoder of unit norm; whitened rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train_grid
from tests.helpers.results import correlated_rows, weights
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import Recipe
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.config import TrainConfig
from thought_saes.training.frame import Frame
from thought_saes.training.prepared import Prepared
from thought_saes.training.revival import Revival
from thought_saes.training.run import train_saes
from thought_saes.training.start import epoch_orders, seeded_sae

Call = Callable[..., tuple[int, str, str]]
KEY = SaeKey(Cell(1, 2), 32, 3)
FAMILY = [name for name, variant in VARIANTS.items() if variant.revival]
X = torch.from_numpy(correlated_rows(300, 12)) + 5


def train(keys: list[SaeKey], **settings: Any) -> list[SparseAutoencoder]:
    """In plain PyTorch, before folding."""
    config = TrainConfig(epochs=3, batch_size=64, backend="torch", **settings)
    prepared = Prepared(X, config.settings)
    saes = [prepared.start(key, 0) for key in keys]
    orders = lambda _: epoch_orders(len(X), config.epochs, 0, KEY.cell)  # noqa: E731
    train_saes(saes, [0] * len(saes), prepared.x[None], orders, config, "torch", lambda n: None)
    return saes


def one_step(alpha: float, dead: list[bool], k_aux: int = 0) -> dict[str, Tensor]:
    """The gradients of the main and the auxiliary loss of TopK with k = 1, whose pre-activations are 3, -2 and -1."""
    W_enc = torch.tensor([[[3.0, -2.0, -1.0]]], requires_grad=True)  # (n_sae, input_dim, latent_dim)
    W_dec = torch.tensor([[[0.5], [1.0], [1.0]]], requires_grad=True)
    b_dec = torch.zeros(1, 1, 1, requires_grad=True)
    batch = torch.ones(1, 1, 1)
    pre_acts = torch.bmm(batch, W_enc)
    revival = Revival.of(Recipe(aux_alpha=alpha, aux_k=k_aux), [1], 3, 1, torch.device("cpu"))
    revival.took_a_step(torch.tensor([[[not one for one in dead]]]))
    topk = VARIANTS["topk"]
    latents = topk.encode(pre_acts, [1], {}).latents
    losses = topk.losses(batch, latents, W_dec, b_dec) + revival.losses(pre_acts, batch, latents, W_dec, b_dec)
    losses.sum().backward()
    gradients = {"W_enc": W_enc.grad, "W_dec": W_dec.grad, "b_dec": b_dec.grad, "losses": losses.detach()}
    return {name: value.flatten() for name, value in gradients.items() if value is not None}


def test_revival_moves_the_encoder_of_a_dead_feature_whose_pre_activation_is_negative() -> None:
    """e = 1 - 3/2; the dead feature of largest |p| makes -2 of it: alpha (-2 + 0.5)^2, by hand."""
    plain, revived = one_step(0.0, [False, True, True]), one_step(0.5, [False, True, True], k_aux=1)
    assert plain["losses"].tolist() == [0.25]
    assert revived["losses"].tolist() == [0.25 + 0.5 * 1.5**2]
    assert plain["W_enc"].tolist() == [2 * 0.5 * 0.5, 0, 0]  # 2 (x_hat - x) D, and nothing at p < 0
    assert revived["W_enc"].tolist() == [0.5, 0.5 * 2 * -1.5, 0]
    assert revived["W_dec"][1].item() == 0.5 * 2 * -1.5 * -2
    assert revived["b_dec"].tolist() == plain["b_dec"].tolist()  # what is left of the row is held fixed


def test_only_dead_features_are_revived_and_fewer_than_are_asked_for_count_less() -> None:
    assert one_step(0.5, [False, False, False])["losses"].tolist() == [0.25]
    one_of_two = one_step(0.5, [False, False, True], k_aux=2)
    assert one_of_two["losses"].tolist() == [0.25 + 0.5 * 0.5 * (-1 + 0.5) ** 2]
    assert one_of_two["W_enc"][1].item() == 0


def test_a_feature_is_dead_once_so_many_steps_have_not_selected_it() -> None:
    revival = Revival.of(Recipe(aux_alpha=1.0), [1], 2, 2, torch.device("cpu"))
    pre_acts, batch = torch.tensor([[[5.0, 1.0]]]), torch.ones(1, 1, 1)
    W_dec, b_dec, latents = torch.ones(1, 2, 1), torch.zeros(1, 1, 1), torch.tensor([[[1.0, 0.0]]])
    found = []
    for _ in range(3):
        found.append(float(revival.losses(pre_acts, batch, latents, W_dec, b_dec)))
        revival.took_a_step(torch.tensor([[[True, False]]]))
    assert found == [0, 0, 0.5]  # it makes 1 of the 0 that is left; one of two that may be dead


@pytest.mark.parametrize("variant", FAMILY)
def test_revival_brings_features_to_life_that_stay_dead_without_it(variant: str) -> None:
    """Half of the encoder's rows start 20 times too short to be selected; rows are sums of few of 48 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(48, 24, generator=generator)
    amounts = (torch.rand(600, 48, generator=generator) < 3 / 48) * torch.rand(600, 48, generator=generator)
    x = amounts @ (directions / directions.norm(dim=1, keepdim=True))
    dead = {}
    for alpha in (0.0, 1 / 32):
        config = TrainConfig(variant=variant, epochs=20, batch_size=64, lr=3e-3, aux_alpha=alpha, backend="torch")
        sae = seeded_sae(24, SaeKey(KEY.cell, 48, 3), 0, variant)
        with torch.no_grad():
            sae.encoder.weight[:24] *= 0.05
            sae.encoder.bias.zero_()
        train_saes([sae], [0], x[None], lambda _: epoch_orders(600, 20, 0, KEY.cell), config, "torch", lambda n: None)
        selected = VARIANTS[variant].encode(sae.encoder(x)[None], [3], {}).selected[0]
        dead[alpha] = int((~selected.any(dim=0))[:24].sum())
    assert dead[0.0] >= 20
    assert dead[1 / 32] <= 12


@pytest.mark.parametrize("added", [{"aux_alpha": 0.1, "dead_epochs": 1}, {"weight_decay": 1.0}, {"unit_decoder": True}])
def test_stacked_equals_alone_with_what_is_added_to_a_step(added: dict[str, Any]) -> None:
    keys = [KEY._replace(k=k) for k in (5, 2)]
    for key, sae in zip(keys, train(keys, **added), strict=True):
        [alone], [plain] = train([key], **added), train([key])
        assert torch.allclose(weights(sae), weights(alone), atol=1e-5)
        assert not torch.allclose(weights(sae), weights(plain), atol=1e-3)


@pytest.mark.parametrize("setting", ["weight_decay", "unit_decoder"])
def test_decay_and_unit_norm_are_those_of_a_textbook_loop(setting: str) -> None:
    decay, unit = (0.5, False) if setting == "weight_decay" else (0.0, True)
    [ours] = train([KEY], weight_decay=decay, unit_decoder=unit)
    plain = Prepared(X, Recipe()).start(KEY, 0)
    matrices = [plain.encoder.weight, plain.decoder.weight]
    biases = [plain.encoder.bias, plain.decoder.bias]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for order in epoch_orders(len(X), 3, 0, KEY.cell):
        for rows in torch.from_numpy(order).split(64):
            optimizer.zero_grad()
            (plain(X[rows]) - X[rows]).square().mean().backward()
            if unit:
                D = plain.decoder.weight
                assert D.grad is not None
                for feature in range(D.shape[1]):
                    direction = D.detach()[:, feature]
                    D.grad[:, feature] -= (D.grad[:, feature] @ direction) * direction
            optimizer.step()
            if unit:
                with torch.no_grad():
                    plain.decoder.weight /= plain.decoder.weight.norm(dim=0)
    assert torch.allclose(weights(ours), weights(plain), atol=5e-6)
    if unit:
        assert torch.allclose(ours.decoder.weight.norm(dim=0), torch.ones(32), atol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_whitened_rows_have_variances_to_the_power_that_is_left(power: float) -> None:
    framed = Frame.of(X, power).apply(X).double()
    assert framed.mean(0).abs().max() < 1e-4
    assert float(framed.square().mean()) == pytest.approx(1, rel=1e-5)
    before, after = (torch.linalg.eigvalsh(rows.T.cov()) for rows in (X.double(), framed))
    expected = before ** (1 - power)
    assert torch.allclose(after / after[-1], expected / expected[-1], rtol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stored_sae_of_whitened_rows_is_the_trained_one(variant: str) -> None:
    config = TrainConfig(recipe="improved", variant=variant, whiten=0.5, epochs=3, batch_size=64, backend="torch")
    prepared = Prepared(X, config.settings)
    sae = prepared.start(KEY, 0)
    orders = lambda _: epoch_orders(len(X), 3, 0, KEY.cell)  # noqa: E731
    train_saes([sae], [0], prepared.x[None], orders, config, "torch", lambda n: None)
    frame, prepared.frame = prepared.frame, None
    assert frame is not None
    assert frame.whitening is not None
    prepared.finish(sae)  # the threshold of framed rows
    with torch.no_grad():
        coloured = sae(prepared.x).double() @ frame.whitening.back
        expected = frame.mean + frame.scale * coloured
        frame.fold(sae)
        assert (sae(X).double() - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--aux-alpha", 0.1, "--variant", "gated"], "--aux-alpha is not for --variant gated; it is for abstopk, topk"),
        (["--aux-alpha", 0.1, "--variant", "jumprelu"], "--aux-alpha is not for --variant jumprelu"),
        (["--aux-k", 8], "--aux-k needs --aux-alpha"),
        (["--dead-epochs", 3], "--dead-epochs needs --aux-alpha"),
        (["--whiten", 0.5], "--whiten needs --centre"),
        (["--whiten", 1.5, "--centre"], "--whiten must be at most 1, not 1.5"),
        (["--weight-decay", "nan"], "--weight-decay must be at least 0, not nan"),
        (["--weight-decay", 1000], "--weight-decay 1000 at --lr 0.001 leaves nothing of the weights"),
        (["--tied", "--start", "linear"], "--tied is --start tied, not --start linear"),
        (["--backend", "fused", "--unit-decoder"], "--backend fused has no --unit-decoder: leave --backend out"),
        (["--backend", "fused", "--variant", "gated"], "--backend fused has no --variant gated: leave --backend out"),
    ],
)
def test_what_goes_with_no_other_setting_is_refused_in_one_line(
    call: Call, activations: Path, tmp_path: Path, words: list[object], said: str
) -> None:
    base = ["--layer", 2, "--position", 1, "--latent-dim", 16, "--k-values", 2, "--activations", activations]
    code, _, err = call(train_grid.main, *base, "--results", tmp_path / "results", *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err


def test_tied_is_a_spelling_of_a_start() -> None:
    assert TrainConfig(tied=True).settings == TrainConfig(start="tied").settings
    assert TrainConfig(recipe="improved", tied=True).start == "tied"
