"""Several recipes side by side, on numbers worked out by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import compare_runs
from tests.helpers.concept_scores import make_scores
from tests.helpers.grids import write_grid
from thought_saes.analysis.recipes import common, differences, read_recipes, summary, winners
from thought_saes.common.errors import InputError
from thought_saes.reporting.comparison import compare

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two cells, k 4: the second recipe halves the fvu of cell 0 and leaves that of cell 1; the third doubles all."""
    metrics = {(0, 0, 64, 4): 0.4, (0, 0, 128, 4): 0.8, (1, 0, 64, 4): 0.2, (1, 0, 128, 4): 0.2}
    factors = {"published": (1.0, 1.0), "improved": (0.5, 1.0), "worse": (2.0, 2.0)}
    for name, factor in factors.items():
        for seed in (0, 1):
            own = {sae: {"fvu": fvu * factor[sae[0]], "num_active_features": 40} for sae, fvu in metrics.items()}
            write_grid(tmp_path / name / f"seed{seed}", own, seed=seed)
    return [tmp_path / name for name in factors]


def test_recipes_are_compared_by_what_their_features_tell(folders: list[Path], call: Call) -> None:
    assert "Coverage of known" not in compare(read_recipes(folders))
    for folder, shift in zip(folders[:2], (0.0, -0.125), strict=True):
        coverages = {(0, 0, 64, 4): 0.5 + shift, (1, 0, 64, 4): 0.75 + shift * 2}
        (folder / "features").mkdir()
        scores = make_scores(coverages, dict.fromkeys(coverages, 0.5))
        (folder / "features" / "concept_scores.json").write_text(json.dumps(scores))
    # Cells differ by -0.125 and -0.25: a resample has the mean of both, or one of them twice.
    code, output, _ = call(compare_runs.main, "--recipes", *folders)
    assert code == 0
    (row,) = (line for line in output.split("Coverage of known")[1].splitlines() if line.startswith("| improved"))
    assert [cell.strip() for cell in row.split("|")][2:5] == ["0.438", "-0.188", "-0.250 to -0.125"]


def test_the_paired_difference_is_the_geometric_mean_of_ratios_with_an_interval_over_cells(
    folders: list[Path],
) -> None:
    better, worse = differences(common(read_recipes(folders)))
    # Ratios 0.5, 0.5, 1, 1: their geometric mean is sqrt(0.5). A resample of two cells has none, one or both of cell 0.
    assert (better.first, better.second, better.pairs) == ("published", "improved", 4)
    assert better.ratio == pytest.approx(math.sqrt(0.5))
    assert (better.low, better.high) == (pytest.approx(0.5), pytest.approx(1.0))
    assert (better.wins, better.cells) == (1, 2)
    # All ratios are 2: there is nothing to vary.
    assert (worse.ratio, worse.low, worse.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    assert worse.wins == 0


def test_cells_are_won_by_the_lowest_error_over_latent_dim(folders: list[Path]) -> None:
    won = winners(common(read_recipes(folders)))
    # Cell 0: 0.4, 0.2, 0.8. Cell 1: 0.2, 0.2, 0.4; of equal ones the first.
    assert won.loc[4].to_dict() == {"published": 1, "improved": 1, "worse": 0}


def test_a_recipe_is_summed_up_at_each_k(folders: list[Path]) -> None:
    table = summary(common(read_recipes(folders))).set_index("recipe")
    assert table.loc["published", "error"] == pytest.approx((0.4 + 0.8 + 0.2 + 0.2) / 4)
    assert table.loc["improved", "error"] == pytest.approx((0.2 + 0.4 + 0.2 + 0.2) / 4)
    assert (table["off_k"] == 0).all()
    assert table.loc["worse", ["collapsed", "can_collapse", "alive"]].tolist() == [0, 8, 40]


def test_only_what_all_recipes_have_is_compared(folders: list[Path], tmp_path: Path) -> None:
    fewer = write_grid(tmp_path / "fewer", {(0, 0, 64, 4): {"fvu": 0.1}})
    sizes = [len(saes) for saes in common(read_recipes([*folders, fewer])).values()]
    assert sizes == [2, 2, 2, 1]  # it records no seed, so the others keep both of theirs
    other = write_grid(tmp_path / "other", {(5, 0, 64, 4): {"fvu": 0.1}})
    with pytest.raises(InputError, match="the recipes have no SAE in common"):
        common(read_recipes([*folders, other]))


def test_the_command_line_writes_the_tables_and_the_figure(folders: list[Path], tmp_path: Path, call: Call) -> None:
    written = ["--output", tmp_path / "table.md", "--figure", tmp_path / "figure.png"]
    code, out, err = call(compare_runs.main, "--recipes", *folders, *written)
    assert (code, err) == (0, "")
    assert (tmp_path / "table.md").read_text() == out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "# published against improved against worse" in out
    assert "published is better" in out  # than the one that doubles all
    assert "not told apart" in out  # the interval of the other reaches 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "a"], "--recipes needs two folders at least"),
        (["--recipes", "a", "b", "--results", "c", "d"], "--recipes stands alone"),
        (["--results", "a", "b"], "--against is missing"),
        (["--recipes", "absent", "absent2"], "no metrics in absent, nor in the folders in it"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(words: list[str], message: str, call: Call) -> None:
    code, out, err = call(compare_runs.main, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_recipe_of_more_seeds_is_no_worse_for_it(tmp_path: Path) -> None:
    # Of seed 0 both have 0.2; the arithmetic mean of 0.2 and 0.8 would be 0.5, and seed 1 has nothing to pair with.
    for seed, fvu in ((0, 0.2), (1, 0.8)):
        write_grid(tmp_path / "both" / f"seed{seed}", {(0, 0, 64, 4): {"fvu": fvu}}, seed=seed)
    write_grid(tmp_path / "one", {(0, 0, 64, 4): {"fvu": 0.2}}, seed=0)
    write_grid(tmp_path / "other", {(0, 0, 64, 4): {"fvu": 0.4}}, seed=2)
    same = differences(common(read_recipes([tmp_path / "both", tmp_path / "one"])))
    assert same[0].ratio == pytest.approx(1)
    # Without a shared seed: sqrt(0.2 * 0.8) = 0.4, the geometric mean.
    unshared = differences(common(read_recipes([tmp_path / "both", tmp_path / "other"])))
    assert unshared[0].ratio == pytest.approx(1)


def test_a_recipe_whose_rows_hold_other_than_k_latents_is_marked(folders: list[Path], tmp_path: Path) -> None:
    write_grid(tmp_path / "loose" / "seed0", {(0, 0, 64, 4): {"fvu": 0.1, "l0_mean": 4.5}}, seed=0)
    text = compare(read_recipes([folders[0], tmp_path / "loose"]))
    marked = [line.strip("| ").split("|")[1].strip() for line in text.splitlines() if "1.125*" in line]
    assert marked == ["loose"]
    assert "1.000*" not in text
    assert "by over 5 % on validation rows" in text
    assert "over 5 %" not in compare(read_recipes(folders))
