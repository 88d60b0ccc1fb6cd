"""Memory and disks are what they are said to be."""

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers.paths import ROOT
from thought_saes.common import machine
from thought_saes.common.errors import InputError
from thought_saes.common.machine import (
    check_disk,
    choose_device,
    float32_products,
    has_lost_device,
    is_out_of_memory,
    peak_bytes,
    there_already,
)


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


@pytest.mark.parametrize(
    ("problem", "memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True, False),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (InputError("out of memory"), False, False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_gpu_that_is_lost(problem: Exception, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(problem), has_lost_device(problem)) == (memory, lost)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_precision_of_products_is_set_whichever_way_the_process_has_set_it_and_put_back(before: str) -> None:
    matmul = torch.backends.cuda.matmul
    kept = matmul.fp32_precision
    try:
        matmul.fp32_precision = before
        for precision in ("tf32", "ieee"):
            with contextlib.suppress(InputError), float32_products(precision):
                assert matmul.fp32_precision == precision
                raise InputError("-")
            assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = kept


def test_the_older_setting_of_the_precision_does_no_harm() -> None:
    code = (
        "import torch; from thought_saes.common.machine import float32_products\n"
        "torch.backends.cuda.matmul.allow_tf32 = True\n"
        "with float32_products('ieee'): assert torch.backends.cuda.matmul.fp32_precision == 'ieee'\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
