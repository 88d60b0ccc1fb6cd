"""Two sets of runs side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest

import compare_runs
from tests.helpers.grids import write_grid

Call = Callable[..., tuple[int, str, str]]


def write_seeds(folder: Path, values: list[float]) -> list[Path]:
    """A folder for each value, the explained variance of its first SAE; the second SAE is the same in all."""
    return [
        write_grid(
            folder / f"seed{seed}",
            {(3, 1, 64, 5): {"explained_variance": value}, (3, 1, 64, 10): {}},
            seed=seed,
        )
        for seed, value in enumerate(values)
    ]


def test_a_difference_is_told_in_units_of_the_spread_over_seeds(tmp_path: Path, call: Call) -> None:
    # Means 0.5 and 0.7; standard deviations sqrt(2 * 0.1^2) = 0.14142 each, so 0.2 / sqrt(0.02 + 0.02) = 1.
    first, second = write_seeds(tmp_path / "a", [0.4, 0.6]), write_seeds(tmp_path / "b", [0.59, 0.81])
    code, out, _ = call(compare_runs.main, "--results", *first, "--against", *second, "--output", tmp_path / "table.md")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("| 3, 1, 64, 5 "))
    # 0.2 / sqrt(0.02 + 2 * 0.11^2) = 0.2 / 0.21024 = 0.95
    assert [cell.strip() for cell in line.split("|")[2:5]] == ["0.50000 ± 0.14142", "0.70000 ± 0.15556", "0.95"]
    assert out.splitlines()[-1] == "4 of 4 differ by no more than the seeds do, the most by 0.95."
    assert (tmp_path / "table.md").read_text() == out


def test_a_larger_difference_counts(tmp_path: Path, call: Call) -> None:
    first, second = write_seeds(tmp_path / "a", [0.4, 0.6]), write_seeds(tmp_path / "b", [0.89, 0.91])
    _, out, _ = call(compare_runs.main, "--results", *first, "--against", *second)
    assert out.splitlines()[-1] == "3 of 4 differ by no more than the seeds do, the most by 2.81."


@pytest.mark.parametrize("flag", ["--results", "--against"])
def test_one_seed_has_no_spread(flag: str, tmp_path: Path, call: Call) -> None:
    folders = {"--results": write_seeds(tmp_path / "a", [0.4, 0.6]), "--against": write_seeds(tmp_path / "b", [0, 1])}
    folders[flag] = folders[flag][:1]
    code, _, err = call(compare_runs.main, "--results", *folders["--results"], "--against", *folders["--against"])
    assert (code, err) == (2, f"error: {flag} needs two folders at least: one seed has no spread\n")


def test_sets_without_a_common_sae_are_refused(tmp_path: Path, call: Call) -> None:
    first = write_seeds(tmp_path / "a", [0.4, 0.6])
    second = [write_grid(tmp_path / f"b{seed}", {(4, 1, 64, 5): {}}, seed=seed) for seed in range(2)]
    code, _, err = call(compare_runs.main, "--results", *first, "--against", *second)
    assert (code, err) == (2, "error: the two sets of folders have no SAE in common\n")
