"""All metrics as one table, for a notebook."""

from pathlib import Path

import pytest

from tests.helpers.grids import write_seed
from thought_saes.analysis import load_metrics
from thought_saes.common.errors import InputError
from thought_saes.results.names import AXES


def test_one_line_gives_a_row_an_sae_from_a_string_a_path_or_several(tmp_path: Path) -> None:
    axes = ((0, 3), (0, 1), (64,), (4, 8))
    for seed in (0, 1):
        write_seed(tmp_path / f"seed{seed}", seed, axes)
    one = load_metrics(str(tmp_path / "seed0"))
    assert len(one) == 8
    assert {*AXES, "seed", "fvu", "pca_fvu", "relative", "collapsed"} <= set(one)
    assert one["relative"].tolist() == pytest.approx((one["fvu"] / one["pca_fvu"]).tolist())
    assert load_metrics(tmp_path / "seed0").equals(one)
    assert load_metrics([str(tmp_path / "seed0"), tmp_path / "seed1"])["seed"].value_counts().to_dict() == {0: 8, 1: 8}
    with pytest.raises(InputError, match="no metrics in"):
        load_metrics(str(tmp_path / "absent"))
