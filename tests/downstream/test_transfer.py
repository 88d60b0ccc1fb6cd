"""What transfer measures, against NumPy and against what must come out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.transfer import CELLS, K_VALUES, write_two_sets
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.flags import Selection
from thought_saes.downstream.transfer import Transfer, gaps, interval_over_cells, measure_transfer
from thought_saes.results.names import SaeKey, checkpoint_path
from thought_saes.saes.checkpoint import load_sae

ALL = Selection("all", None)


def measured(folder: Path, shift: float, of_b: bool = True) -> dict[str, Any]:
    write_two_sets(folder, shift)
    a, b = ActivationCache(folder / "a"), ActivationCache(folder / "b")
    transfer = Transfer(folder / "saes_of_a", b, folder / "saes_of_b" if of_b else None, a if of_b else None)
    return measure_transfer(transfer, transfer.choose(ALL, ALL, None, None), 0, lambda n: None)


def fvu(x: np.ndarray, reconstruction: np.ndarray) -> float:
    return float(((x - reconstruction) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def by_numpy(x: np.ndarray, path: Path, k: int) -> tuple[float, np.ndarray]:
    """The fvu of the SAE in a file, and its latents (n, latent_dim), from its weights alone."""
    weights = {name: value.double().numpy() for name, value in load_sae(path).state_dict().items()}
    latents = x @ weights["encoder.weight"].T + weights["encoder.bias"]
    cut = np.sort(np.abs(latents), axis=1)[:, -k]
    latents = np.where(np.abs(latents) >= cut[:, None], latents, 0)
    return fvu(x, latents @ weights["decoder.weight"].T + weights["decoder.bias"]), latents


def test_the_same_saes_on_the_same_rows_have_no_gap(tmp_path: Path) -> None:
    found = measured(tmp_path, 0.0)
    assert len(found["records"]) == len(CELLS) * len(K_VALUES)
    assert {record["gap"] for record in found["records"]} == {0.0}
    assert found["gaps"][0]["gap_interval"] == [0.0, 0.0]


def test_rows_that_moved_away_leave_a_gap_in_every_sae(tmp_path: Path) -> None:
    found = measured(tmp_path, 5.0)
    assert min(record["gap"] for record in found["records"]) > 0
    whole = found["gaps"][0]
    assert 0 < whole["gap_interval"][0] <= whole["gap"] <= whole["gap_interval"][1]
    assert whole["gap"] == pytest.approx(np.mean([record["gap"] for record in found["records"]]))
    assert [(gap["latent_dim"], gap["k"], gap["n_saes"]) for gap in found["gaps"]] == [
        (None, None, 6),
        (16, 2, 3),
        (16, 4, 3),
    ]


def test_the_numbers_are_numpys(tmp_path: Path) -> None:
    found = measured(tmp_path, 0.7)
    a, b = (ActivationCache(tmp_path / name) for name in "ab")
    for record in found["records"]:
        cell, k = Cell(record["layer"], record["position"]), record["k"]
        x_a, x_b = (np.asarray(cache.cell(cell), dtype=float) for cache in (a, b))
        x = x_b[b.split.validation]
        of_a, latents = by_numpy(x, checkpoint_path(tmp_path / "saes_of_a", SaeKey(cell, 16, k)), k)
        of_b, _ = by_numpy(x, checkpoint_path(tmp_path / "saes_of_b", SaeKey(cell, 16, k)), k)
        assert record["fvu"] == pytest.approx(of_a, rel=1e-4)
        assert record["gap"] == pytest.approx(of_a - of_b, rel=1e-3)
        assert record["l0_mean"] == (latents != 0).sum(1).mean()
        assert record["num_active_features_validation"] == (latents != 0).any(0).sum()
        beside = next(one for one in found["baselines"] if (one["layer"], one["position"]) == cell)
        for name, rows in (("a", x_a[a.split.train]), ("b", x_b[b.split.train])):
            centre = rows.mean(0)
            components = np.linalg.svd(rows - centre, full_matrices=False)[2][:k]
            projected = centre + (x - centre) @ components.T @ components
            assert beside[f"mean_of_{name}"]["fvu"] == pytest.approx(fvu(x, centre[None]), rel=1e-4)
            assert beside[f"pca_of_{name}"][str(k)]["fvu"] == pytest.approx(fvu(x, projected), rel=1e-3)


def test_the_fvu_at_home_is_what_the_checkpoint_says(tmp_path: Path) -> None:
    write_two_sets(tmp_path, 1.0)
    key = SaeKey(Cell(*CELLS[0]), 16, 2)
    path = checkpoint_path(tmp_path / "saes_of_a", key)
    sae = load_sae(path)
    sae.metrics = {"fvu": 0.125}
    sae.save(path)
    transfer = Transfer(tmp_path / "saes_of_a", ActivationCache(tmp_path / "b"), None, None)
    records = measure_transfer(transfer, transfer.choose(ALL, ALL, None, None), 0, lambda n: None)["records"]
    assert [record["fvu_at_home"] for record in records] == [0.125, *[None] * 5]


def test_what_was_not_given_is_not_made_up(tmp_path: Path) -> None:
    found = measured(tmp_path, 1.0, of_b=False)
    assert found["gaps"] == []
    assert {(record["own"], record["gap"]) for record in found["records"]} == {(None, None)}
    assert {(one["mean_of_a"], one["pca_of_a"]) for one in found["baselines"]} == {(None, None)}
    assert all(one["mean_of_b"] and one["pca_of_b"] for one in found["baselines"])


def test_the_interval_resamples_cells_not_saes() -> None:
    values = np.repeat([0.0, 1.0], 50)  # 100 SAEs of two cells: the mean of two draws is 0, a half or 1
    assert interval_over_cells(values, [(0, 0)] * 50 + [(0, 1)] * 50, 0) == [0.0, 1.0]
    assert interval_over_cells(values, [(0, 0)] * 100, 0) is None


def test_an_sae_without_a_gap_does_not_hide_the_others() -> None:
    records = [
        {"layer": 0, "position": p, "latent_dim": 8, "k": 2, "fvu": f, "own": {"fvu": 0.1}, "gap": f - 0.1}
        for p, f in enumerate((0.3, 0.5, float("nan")))
    ]
    assert gaps(records, 0)[0]["gap"] == pytest.approx(0.3)
    assert gaps(records, 0)[0]["n_cells"] == 2
    assert gaps(records[2:], 0) == []
