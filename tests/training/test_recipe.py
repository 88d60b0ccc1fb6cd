"""Recipes and variants: folded back into raw units, the same stacked as alone, refused by the field that differs."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train_grid
from tests.helpers.results import assert_same_results, correlated_rows, weights
from thought_saes.activations.cell import Cell
from thought_saes.results.names import SaeKey, checkpoint_path, metrics_path
from thought_saes.results.recipe import ALWAYS_RECORDED, IMPROVED, PUBLISHED, RECIPES, Recipe, Run
from thought_saes.results.store import Results
from thought_saes.saes.checkpoint import load_sae
from thought_saes.saes.sae import TopKSAE
from thought_saes.saes.variant import extras_of, set_extras
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.config import TrainConfig
from thought_saes.training.frame import Frame
from thought_saes.training.fused.selection import RULES
from thought_saes.training.prepared import Prepared
from thought_saes.training.run import train_saes
from thought_saes.training.start import epoch_orders

Call = Callable[..., tuple[int, str, str]]
KEY = SaeKey(Cell(1, 2), 32, 3)


def offset_rows(n: int = 300, seed: int = 0) -> Tensor:
    return torch.from_numpy(correlated_rows(n, 12, seed=seed)) + 50


def trained(variant: str, x: Tensor, keys: list[SaeKey], backend: str, epochs: int = 3, **more: Any) -> list[Any]:
    """SAEs of the improved recipe, before folding, and what prepared their rows."""
    config = TrainConfig(recipe="improved", variant=variant, epochs=epochs, batch_size=64, backend=backend, **more)
    prepared = Prepared(x, config.settings)
    saes = [prepared.start(key, seed=0) for key in keys]
    train_saes(saes, [0] * len(saes), prepared.x[None], lambda cell: epoch_orders(len(x), epochs, 0, KEY.cell), config,
               backend, lambda n: None)  # fmt: skip
    return [prepared, *saes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stored_sae_on_raw_rows_is_the_trained_one_on_framed_rows(variant: str) -> None:
    x = offset_rows()
    prepared, sae = trained(variant, x, [KEY], "torch")
    set_extras(sae, sae.variant.finish(iter([sae.encoder(prepared.x)]), KEY.k, len(x), extras_of(sae)))
    with torch.no_grad():
        framed, latents = sae(prepared.x), sae.encode(prepared.x)
        prepared.frame.fold(sae)
        expected = prepared.frame.mean + prepared.frame.scale * framed.double()
        assert (sae(x).double() - expected).norm() < 1e-5 * expected.norm()
        assert torch.allclose(sae.encode(x), prepared.frame.scale * latents, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(sae(prepared.x).double(), expected, rtol=0.1)  # the control: not on framed rows


def test_a_frame_has_mean_zero_and_mean_square_one() -> None:
    x = offset_rows()
    framed = Frame.of(x).apply(x)
    assert framed.mean(0).abs().max() < 1e-5
    assert float(framed.square().mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stacked_equals_alone(variant: str) -> None:
    x = offset_rows()
    keys = [SaeKey(KEY.cell, 32, k) for k in (5, 2)]
    _, *together = trained(variant, x, keys, "torch")
    for key, sae in zip(keys, together, strict=True):
        _, alone = trained(variant, x, [key], "torch")
        assert torch.allclose(weights(sae), weights(alone), atol=1e-5)


@pytest.mark.parametrize("whiten", [0.0, 0.5])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant in RULES])
def test_compiled_equals_plain_pytorch_to_rounding(variant: str, whiten: float) -> None:
    x = offset_rows()
    prepared, plain = trained(variant, x, [KEY], "torch", epochs=1, whiten=whiten)
    _, fused = trained(variant, x, [KEY], "fused", epochs=1, whiten=whiten)
    moved = (weights(plain) - weights(prepared.start(KEY, seed=0))).norm()
    # Adam's first steps are as long for the smallest gradient as for the largest, so rounding shows in some weights.
    assert (weights(plain) - weights(fused)).norm() < 0.1 * moved
    with torch.no_grad():
        plain_error, fused_error = (float((sae(prepared.x) - prepared.x).norm()) for sae in (plain, fused))
    assert fused_error == pytest.approx(plain_error, rel=1e-2)


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka", "jumprelu", "gated"])
def test_the_threshold_gives_k_latents_a_row_on_the_training_rows(variant: str) -> None:
    x = offset_rows()
    prepared, sae = trained(variant, x, [KEY], "torch", epochs=6)
    prepared.finish(sae)
    per_row = (sae.encode(x) != 0).sum(dim=1).float()
    assert float(per_row.mean()) == pytest.approx(KEY.k, rel=0.01)
    assert float(per_row.std()) > 0  # rows share what there is


def test_one_matryoshka_group_is_batchtopk(monkeypatch: pytest.MonkeyPatch) -> None:
    x = offset_rows()
    _, expected = trained("batchtopk", x, [KEY], "torch")
    _, nested = trained("matryoshka", x, [KEY], "torch")
    assert not torch.allclose(weights(nested), weights(expected), atol=1e-4)
    monkeypatch.setattr(type(VARIANTS["matryoshka"]), "prefixes", lambda self, latent_dim: (latent_dim,))
    _, one_group = trained("matryoshka", x, [KEY], "torch")
    assert torch.allclose(weights(one_group), weights(expected), atol=1e-6)


def test_the_components_start_has_unit_directions_and_the_leading_ones_are_orthogonal() -> None:
    prepared = Prepared(offset_rows(), IMPROVED)
    W = prepared.start(KEY, seed=0).encoder.weight.double()
    assert torch.allclose(W.norm(dim=1), torch.ones(32, dtype=torch.float64), atol=1e-5)
    n = 2 * KEY.k
    assert torch.allclose(W[:n] @ W[:n].T, torch.eye(n, dtype=torch.float64), atol=1e-5)
    assert (W[n:] @ W[:n].T).abs().max() < 1e-5


def test_latents_that_are_never_negative_start_from_each_component_and_its_opposite() -> None:
    x = offset_rows()
    signed = Prepared(x, IMPROVED).start(KEY, seed=0).encoder.weight
    unsigned = {name for name, variant in VARIANTS.items() if not variant.signed}
    assert unsigned == {"topk", "batchtopk", "matryoshka", "jumprelu", "gated"}
    for variant in unsigned:
        W = Prepared(x, replace(IMPROVED, variant=variant)).start(KEY, seed=0).encoder.weight
        n = 2 * KEY.k
        assert torch.equal(W[: 2 * n : 2], signed[:n])
        assert torch.equal(W[1 : 2 * n : 2], -signed[:n])
        assert torch.allclose(W.norm(dim=1), torch.ones(32), atol=1e-5)


def test_equal_rows_and_few_rows_still_give_a_whole_start() -> None:
    for x in (torch.full((40, 12), 3.0), offset_rows(3)):
        W = Prepared(x, IMPROVED).start(KEY, seed=0).encoder.weight
        assert torch.allclose(W.norm(dim=1), torch.ones(32), atol=1e-5)


def test_the_improved_recipe_beats_the_published_one_on_rows_far_from_zero(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    for path in activations.glob("*.npy"):
        np.save(path, np.load(path) + np.float32(50))
    fvu = {}
    for recipe in ("published", "improved"):
        words = ["--layer", 2, "--position", 1, "--latent-dim", 24, "--k-values", 3, "--epochs", 20, "--batch-size", 32]
        code, _, err = call(
            train_grid.main, *words, "--recipe", recipe, "--activations", activations, "--results", tmp_path / recipe
        )
        assert code == 0, err
        content = json.loads(metrics_path(tmp_path / recipe, Cell(2, 1), 24).read_text())
        assert Recipe.of(content["metadata"]) == replace(RECIPES[recipe], epochs=20, batch_size=32)
        fvu[recipe] = content["results"]["24"]["3"]["fvu"]
    assert fvu["improved"] < 0.5 * fvu["published"]
    sae = TopKSAE.load(checkpoint_path(tmp_path / "improved", SaeKey(Cell(2, 1), 24, 3)))
    x = torch.from_numpy(np.load(activations / "pos1_layer2.npy"))
    assert float((sae(x) - x).norm() / (x - x.mean(0)).norm()) < 1  # the file is of raw rows


def test_a_folder_of_another_recipe_is_refused_by_the_field_that_differs(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    words = ["--layer", 2, "--position", 1, "--latent-dim", 16, "--k-values", 2, "--epochs", 1]
    words += ["--activations", activations, "--results", tmp_path / "results"]
    assert call(train_grid.main, *words)[0] == 0
    for more, said in (
        (["--recipe", "improved"], "centre False there, True now"),
        (["--variant", "topk"], "variant abstopk there, topk now"),
        (["--lr-decay"], "lr_decay False there, True now"),
        (["--aux-alpha", 0.1, "--dead-epochs", 3], "aux_alpha 0.0 there, 0.1 now, dead_epochs 2 there, 3 now"),
        (["--centre", "--whiten", 0.5], "centre False there, True now, whiten 0.0 there, 0.5 now"),
        (["--tied"], "start linear there, tied now"),
    ):
        code, _, err = call(train_grid.main, *words, *more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert said in err


@pytest.mark.parametrize("flags", [["--variant", "gated"], ["--weight-decay", "0.1"]])
def test_what_the_compiled_trainer_lacks_is_trained_in_plain_pytorch_which_is_said(
    flags: list[str], call: Call, activations: Path, tmp_path: Path
) -> None:
    words = ["--layer", 2, "--position", 1, "--latent-dim", 16, "--k-values", 2, "--epochs", 1, *flags]
    code, _, err = call(train_grid.main, *words, "--activations", activations, "--results", tmp_path)
    assert code == 0
    flag = " ".join(flags[:2]) if flags[0] == "--variant" else flags[0]
    assert err.splitlines()[0] == f"training in plain PyTorch: the fused backend has no {flag}"
    metadata = json.loads(metrics_path(tmp_path, Cell(2, 1), 16).read_text())["metadata"]
    assert metadata["backend"] == "torch"


def test_a_folder_that_names_no_setting_of_today_is_of_the_published_recipe(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    words = ["--layer", 2, "--position", 1, "--latent-dim", 16, "--k-values", 2, "--epochs", 1]
    words += ["--activations", activations, "--results", tmp_path]
    assert call(train_grid.main, *words)[0] == 0
    path = metrics_path(tmp_path, Cell(2, 1), 16)
    content = json.loads(path.read_text())
    for field in fields(Recipe):
        if field.name not in ALWAYS_RECORDED:
            del content["metadata"][field.name]
    path.write_text(json.dumps(content))
    code, out, err = call(train_grid.main, *words)
    assert (code, "1 SAEs are already done" in out) == (0, True), err
    assert call(train_grid.main, *words, "--weight-decay", 0.1)[0] == 2


@pytest.mark.parametrize(
    "recipe",
    [
        ["--recipe", "improved", "--variant", "gated", "--whiten", 0.5],
        ["--recipe", "improved", "--variant", "topk", "--aux-alpha", 0.1, "--dead-epochs", 1, "--weight-decay", 0.1],
    ],
    ids=["gated", "topk"],
)
def test_a_run_killed_and_resumed_ends_with_the_same_files_in_any_recipe(
    recipe: list[Any], call: Call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--layer", 2, "--position", 1, "--latent-dim", 24, 16, "--k-values", 2, 4, "--epochs", 4, *recipe]
    words += ["--batch-size", 32, "--activations", activations, "--results"]
    assert call(train_grid.main, *words, tmp_path / "undisturbed")[0] == 0
    add = Results.add
    added: list[SaeKey] = []

    def killed_at_the_second(self: Results, key: SaeKey, *rest: Any, **more: Any) -> None:
        if len(added) == 1:
            raise KeyboardInterrupt
        added.append(key)
        add(self, key, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", killed_at_the_second)
        assert call(train_grid.main, *words, tmp_path / "killed")[0] == 130
    assert len(list((tmp_path / "killed").glob("*.pt"))) == 1
    code, out, err = call(train_grid.main, *words, tmp_path / "killed")
    assert code == 0, err
    assert "1 SAEs are already done" in out
    assert_same_results(tmp_path / "killed", tmp_path / "undisturbed")


def test_every_field_of_a_recipe_is_a_flag_and_makes_another_run() -> None:
    flags = {field.name for field in fields(TrainConfig)}
    others: dict[type, Any] = {str: "other", bool: True, int: 7, float: 0.5}
    for field in fields(Recipe):
        assert field.name in flags
        kind = type(getattr(PUBLISHED, field.name))
        other = Run(Recipe(**{field.name: others[kind]}), 0, "a")
        [difference] = Run(PUBLISHED, 0, "a").differences(other)
        assert difference.startswith(f"{field.name} ")


def test_another_variant_is_read_by_load_sae_and_refused_by_the_experiments_class(
    call: Call, activations: Path, tmp_path: Path
) -> None:
    words = [
        "--layer",
        2,
        "--position",
        1,
        "--latent-dim",
        16,
        "--k-values",
        2,
        "--epochs",
        1,
        "--variant",
        "batchtopk",
    ]
    assert call(train_grid.main, *words, "--activations", activations, "--results", tmp_path)[0] == 0
    path = checkpoint_path(tmp_path, SaeKey(Cell(2, 1), 16, 2))
    sae = load_sae(path)
    assert (sae.variant.name, float(dict(sae.named_buffers())["threshold"]) > 0) == ("batchtopk", True)
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    with pytest.raises(ValueError, match="holds a batchtopk SAE, not an AbsTopK one: read it with load_sae"):
        TopKSAE.load(path)


def test_matryoshkas_prefixes_ascend_to_all_features() -> None:
    for latent_dim in (1, 2, 17, 512):
        ends = VARIANTS["matryoshka"].prefixes(latent_dim)
        assert ends[-1] == latent_dim
        assert all(a < b for a, b in pairwise(ends))
    assert VARIANTS["matryoshka"].prefixes(512) == (32, 64, 128, 256, 512)
