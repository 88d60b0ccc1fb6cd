"""Several folders as one grid: what is refused, and what the baselines become."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analyze_all_layers
import visualize_all_layers
from tests.helpers.grids import write_baselines, write_grid, write_seed
from thought_saes.activations.cell import Cell
from thought_saes.analysis.runs import load_replicates, shown
from thought_saes.common.errors import InputError
from thought_saes.results.names import baselines_path, metrics_path

AXES = ((0, 1), (0, 1), (64, 128), (4, 8))
Call = Callable[..., tuple[int, str, str]]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for seed in (0, 1):
        write_seed(tmp_path / f"seed{seed}", seed, AXES)
    return [tmp_path / "seed0", tmp_path / "seed1"]


def test_every_sae_of_every_seed_is_a_row(folders: list[Path]) -> None:
    grid = load_replicates(folders)
    assert grid.seeds == (0, 1)
    assert len(grid.table) == 32
    assert grid.table["seed"].tolist() == [0, 1] * 16
    assert load_replicates(folders[::-1]).table.equals(grid.table)


def test_a_matrix_holds_means_over_seeds(folders: list[Path]) -> None:
    both = load_replicates(folders).layer_position_matrix("fvu", 64, 4)
    each = [load_replicates([folder]).layer_position_matrix("fvu", 64, 4) for folder in folders]
    assert both.to_numpy() == pytest.approx((each[0].to_numpy() + each[1].to_numpy()) / 2)


def test_folders_of_equal_seed_are_refused_and_nothing_is_written(folders: list[Path], call: Call) -> None:
    before = sorted(folders[0].iterdir())
    for main in (analyze_all_layers.main, visualize_all_layers.main):
        code, output, error = call(main, "--results", folders[0], folders[0])
        assert (code, output) == (2, "")
        assert "are both of seed 0: give one of them" in error
    assert sorted(folders[0].iterdir()) == before


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (((0, 2), (0, 1), (64, 128), (4, 8)), r"seed2 has layer 0,2, .*seed0 has 0-1"),
        (((0, 1), (0,), (64, 128), (4, 8)), r"seed2 has position 0, .*seed0 has 0-1"),
        (((0, 1), (0, 1), (64,), (4, 8)), r"seed2 has latent_dim 64, .*seed0 has 64,128"),
        (((0, 1), (0, 1), (64, 128), (4, 16)), r"seed2 has k 4,16, .*seed0 has 4,8"),
    ],
)
def test_folders_of_other_values_are_refused_with_the_difference(
    folders: list[Path], tmp_path: Path, axes: Any, message: str
) -> None:
    write_seed(tmp_path / "seed2", 2, axes)
    with pytest.raises(InputError, match=message):
        load_replicates([*folders, tmp_path / "seed2"])


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 10), ("lr", 0.01), ("activations", "other"), ("n_train", 81), ("batch_size", 32)]
)
def test_folders_trained_otherwise_are_refused_with_the_difference(
    folders: list[Path], name: str, value: object
) -> None:
    for latent_dim in (64, 128):
        baselines_path(folders[1], Cell(1, 0)).unlink(missing_ok=True)  # of the activations that this cell had
        edit(
            metrics_path(folders[1], Cell(1, 0), latent_dim), lambda content: content["metadata"].update({name: value})
        )
    with pytest.raises(InputError, match=rf"at layer 1, position 0 {name} is {value} in .*seed1 and .* in .*seed0"):
        load_replicates(folders)


def test_a_folder_that_records_no_seed_is_refused_as_a_replicate_but_not_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_grid(tmp_path / name, {(0, 0, 64, 4): {}})
    assert load_replicates([tmp_path / "a"]).seeds == ()
    with pytest.raises(InputError, match="record no seed: analyse that folder alone"):
        load_replicates([tmp_path / "a", tmp_path / "b"])


def test_a_folder_of_several_seeds_is_refused(folders: list[Path]) -> None:
    edit(metrics_path(folders[0], Cell(0, 0), 64), lambda content: content["metadata"].update(seed=7))
    with pytest.raises(InputError, match=r"are of several seeds \(0, 7\): keep each seed in a folder of its own"):
        load_replicates(folders[:1])


def test_baselines_become_columns_of_the_cells_saes(folders: list[Path]) -> None:
    table = load_replicates(folders[:1]).table
    sae = table[(table["layer"] == 1) & (table["position"] == 1) & (table["latent_dim"] == 64) & (table["k"] == 8)]
    assert sae["mean_explained_variance"].item() == pytest.approx(0.911)
    assert sae["pca_fvu"].item() == pytest.approx(1 / (1 + 0.8 + 0.01))
    assert sae["untrained_fvu"].item() == 31.0
    assert sae["gamma"].item() == 6.0


def test_one_seeds_baselines_serve_all_but_for_the_untrained_sae(folders: list[Path]) -> None:
    for path in folders[1].glob("baselines_*.json"):
        path.unlink()
    table = load_replicates(folders).table
    assert table["pca_fvu"].notna().all()
    assert table["untrained_fvu"].notna().tolist() == [True, False] * 16


def test_without_any_baselines_the_columns_are_absent(tmp_path: Path) -> None:
    write_seed(tmp_path, 0, AXES, baselines=False)
    assert "gamma" not in load_replicates([tmp_path]).table


def test_a_k_that_the_baselines_lack_is_absent_not_zero(folders: list[Path]) -> None:
    write_baselines(folders[0], [(0, 0)], (64, 128), (4,))
    table = load_replicates(folders[:1]).table
    cell = table[(table["layer"] == 0) & (table["position"] == 0)]
    assert cell["pca_fvu"].notna().tolist() == [True, False, True, False]


@pytest.mark.parametrize("content", ["{", "[]", '{"metadata": {}}', '{"metadata": {}, "mean": 3}'])
def test_a_damaged_baselines_file_is_refused_in_one_line(folders: list[Path], call: Call, content: str) -> None:
    baselines_path(folders[0], Cell(0, 0)).write_text(content)
    code, output, error = call(analyze_all_layers.main, "--results", folders[0])
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "baselines" in error


def test_what_a_baselines_file_does_not_say_of_its_cell_is_missing_there_alone(folders: list[Path]) -> None:
    def lose(content: dict[str, Any]) -> None:
        del content["gamma"]
        content |= {"gaussian": None, "effective_rank": float("-inf")}

    edit(baselines_path(folders[0], Cell(0, 0)), lose)
    table = load_replicates(folders[:1]).table
    assert table["effective_rank"].isna().equals(table["gamma"].isna())
    assert table["gamma"].isna().tolist() == [
        cell == (0, 0) for cell in zip(table["layer"], table["position"], strict=True)
    ]


def test_baselines_of_other_activations_are_refused(folders: list[Path]) -> None:
    edit(baselines_path(folders[0], Cell(0, 0)), lambda content: content["metadata"].update(activations="other"))
    with pytest.raises(InputError, match=r"baselines_pos0_layer0.json is of other activations \(other\)"):
        load_replicates(folders[:1])


def test_a_path_is_shown_as_typed_or_by_its_last_name() -> None:
    assert shown(Path("results/seed0")) == "results/seed0"
    assert shown(Path("/home/someone/results/seed0")) == "seed0"
