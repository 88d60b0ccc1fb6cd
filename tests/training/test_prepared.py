"""SAEs as they started: what every comparison with an untrained SAE is made with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_grid
from tests.helpers.results import correlated_rows, weights
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.downstream.substitutes import Condition, Substitutes
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import IMPROVED
from thought_saes.results.store import Results
from thought_saes.saes.baselines import score
from thought_saes.training import prepared
from thought_saes.training.prepared import AsStarted, Prepared
from thought_saes.training.start import seeded_sae

KEY = SaeKey(Cell(0, 1), 24, 4)


@pytest.mark.parametrize("recipe", ["published", "improved"])
def test_a_started_sae_is_that_of_its_own_recipe_and_of_the_baselines(
    recipe: str, activations: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words = ("--activations", activations, "--results", tmp_path / "r", "--layer", 0, "--position", 1, "--seed", 3)
    sizes = ("--latent-dims", 24, "--k-values", 4, "--epochs", 2)
    assert call(train_grid.main, *words, *sizes, "--recipe", recipe)[0] == 0
    cache, results = ActivationCache(activations), Results(tmp_path / "r")
    rows = torch.tensor(cache.cell(KEY.cell)[:])
    trained = results.sae(KEY, cache.input_dim)
    # Seed 9 is for files that name none: this one names 3.
    started = AsStarted(lambda: rows[cache.split.train], seed=9).of(trained, KEY)
    baselines = results.baselines(KEY.cell)
    assert baselines is not None
    untrained = score(rows[cache.split.validation], started)["fvu"]
    assert untrained == pytest.approx(baselines["untrained"]["24"]["4"]["fvu"], rel=1e-5)
    assert untrained != pytest.approx(trained.metrics["fvu"], rel=1e-3)
    linear = seeded_sae(cache.input_dim, KEY, 3)
    assert torch.equal(weights(started), weights(linear)) == (recipe == "published")
    substituted = Substitutes(cache, tmp_path / "r", KEY.cell, 0, torch.device("cpu")).sae(
        Condition("untrained", 24, 4)
    )
    assert torch.equal(weights(substituted), weights(started))


def test_the_jobs_of_a_cell_share_its_spectrum_and_come_out_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_spectra", {})
    x = torch.from_numpy(correlated_rows(80, 12)) + 3
    first, again, other, alone = (Prepared(x, IMPROVED, fingerprint=one) for one in ("a", "a", "b", None))
    assert again.spectrum is first.spectrum
    assert other.spectrum is not first.spectrum
    assert Prepared(x, replace(IMPROVED, whiten=0.5), fingerprint="b").spectrum is not other.spectrum
    assert len(prepared._spectra) == prepared.SPECTRA_KEPT
    assert Prepared(x, IMPROVED, fingerprint="a").spectrum is not first.spectrum  # two others came between
    assert torch.equal(weights(again.start(KEY, 0)), weights(alone.start(KEY, 0)))
