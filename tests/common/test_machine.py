"""Memory and disks are what they are said to be."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from thought_saes.common import machine
from thought_saes.common.errors import InputError
from thought_saes.common.machine import check_disk, choose_device, peak_bytes, there_already


def test_a_disk_that_is_too_small_is_named_with_what_it_has_and_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_100_000_000))
    check_disk(folder, 3_100_000_000, "-")
    with pytest.raises(InputError, match=r"yet needs 4\.7 GB more, and its disk has 3\.1 GB left: .* or fast"):
        check_disk(folder, 4_700_000_000, "fast")
    assert not folder.parent.exists()


def test_what_is_there_need_not_be_allotted_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234567")
    assert there_already([tmp_path / "a", tmp_path / "b"]) == 7


def test_the_peak_of_this_process_is_counted_in_bytes() -> None:
    before = peak_bytes()
    assert 50e6 < before < 50e9
    block = np.ones(200_000_000, np.uint8)
    assert peak_bytes() >= max(before, block.nbytes)


@pytest.mark.parametrize("name", ["meta", "hpu", "mkldnn", "cuda:99", "cpu:x", "", "gpu", "meta:0"])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="there is no device"):
        choose_device(name)


def test_the_cpu_is_a_device() -> None:
    assert choose_device("cpu").type == "cpu"
