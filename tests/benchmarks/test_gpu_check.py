"""The check of a GPU, rehearsed on the CPU at tiny sizes: every part, and the command around them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_parts
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_sizes import PUBLISHED, REHEARSED
from tests.helpers.paths import ROOT

Call = Callable[..., tuple[int, str, str]]
ABSENT = ("datasets", "ray", "gguf", "numba")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_on_the_cpu_and_its_checks_hold(part: str) -> None:
    report = PARTS[part][0](REHEARSED)
    assert report.figures
    assert all(report.checks.values()), report
    json.dumps(report._asdict())
    numbers = [value for value in report.figures.values() if isinstance(value, float)]
    assert numbers
    assert all(number >= 0 for number in numbers)


def test_the_limits_of_all_parts_are_near_ten_minutes_and_the_sizes_are_the_published_ones() -> None:
    assert sum(seconds for _, seconds in PARTS.values()) <= 800
    assert PUBLISHED.latent_dims == (512, 1024, 2048)
    assert PUBLISHED.k_values == (5, 10, 20, 100)


def test_a_device_that_computes_otherwise_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of = gpu_parts.rows_of

    def one_cell_of_another_device(*arguments: object) -> object:
        train, validation = rows_of(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(train, "cpu", lambda: 1.5 * train, raising=False)
        return train, validation

    monkeypatch.setattr(gpu_parts, "rows_of", one_cell_of_another_device)
    assert not all(gpu_parts.agreement(REHEARSED).checks.values())


def test_the_command_runs_parts_in_processes_and_writes_what_each_found(call: Call, tmp_path: Path) -> None:
    output = tmp_path / "check.json"
    code, out, err = call(gpu_check.main, "--rehearse", "--parts", "machine", "--output", output)
    assert code == 0, err
    content = json.loads(output.read_text())
    assert content["rehearsed"] is True
    assert content["parts"]["machine"]["error"] is None
    assert "copy GB/s" in content["parts"]["machine"]["figures"]
    assert "copy GB/s" in out


def test_a_part_that_hangs_or_breaks_or_finds_a_fault_costs_only_itself_and_ends_with_code_1(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "machine", (PARTS["machine"][0], 0))
    code, out, _ = call(gpu_check.main, "--rehearse", "--parts", "machine", "--output", tmp_path / "check.json")
    assert code == 1
    assert "BROKEN machine: not done after 0 s" in out
    found = {"figures": {}, "checks": {"it holds": True, "it fails": False}, "seconds": 1.0, "error": None}
    monkeypatch.setattr(gpu_check, "run_part", lambda part, config: found)
    code, out, _ = call(gpu_check.main, "--rehearse", "--parts", "machine", "--output", tmp_path / "check.json")
    assert code == 1
    assert out.splitlines()[-2:] == ["holds  machine: it holds", "FAILS  machine: it fails"]


def test_nothing_that_it_runs_needs_what_a_bare_machine_lacks() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "import train_all_layers_positions, benchmarks.gpu_check\n"
        "from benchmarks.gpu_parts import agreement, extraction\n"
        "from benchmarks.gpu_sizes import REHEARSED\n"
        "assert all(agreement(REHEARSED).checks.values()) and extraction(REHEARSED).figures\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rehearse", "--parts", "nothing"], "there is no part 'nothing'"),
        (["--rehearse", "--output", "nowhere/check.json"], "no folder nowhere"),
        ([], "there is no CUDA device here"),
    ],
)
def test_bad_flags_are_one_line(call: Call, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    code, out, err = call(gpu_check.main, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
