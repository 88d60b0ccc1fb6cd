"""Check and time everything that runs on a GPU, in one command of less than ten minutes.

    python -m benchmarks.gpu_check --output gpu_check.json          on a machine with a GPU
    python -m benchmarks.gpu_check --rehearse --output check.json   every part at tiny sizes, on the CPU

It needs torch, transformers, tqdm, filelock, NumPy and msgspec, and no network; neither Numba nor Ray nor anything that
reads data sets. Each part is a process of its own with a limit in seconds, and the JSON file is written anew after
each: a part that hangs or breaks costs nothing but itself. Exit code 1 if a check or a part fails.

Deliberately missing: several GPUs, and the quality of SAEs beyond their agreement with the CPU's.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS, ROOT
from benchmarks.gpu_sizes import PUBLISHED, REHEARSED
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_json
from thought_saes.common.flags import keep_once, option, parse_config


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    output: Path = option(Path("gpu_check.json"), help="JSON file for everything that is found")
    rehearse: bool = option(False, help="run every part at tiny sizes on the CPU")
    parts: tuple[str, ...] = option(tuple(PARTS), help=f"what to run: {', '.join(PARTS)}")
    only: str | None = option(None, help="run one part in this process, as the others are run in theirs")

    def __post_init__(self) -> None:
        keep_once(self, "parts")
        for part in (*self.parts, *([self.only] if self.only else [])):
            if part not in PARTS:
                raise InputError(f"there is no part '{part}'; there are {', '.join(PARTS)}")
        if not self.output.parent.is_dir():
            raise InputError(f"no folder {self.output.parent} for --output")
        if not self.rehearse and not torch.cuda.is_available():
            raise InputError("there is no CUDA device here: --rehearse runs every part on the CPU")


def run_part(part: str, config: CheckConfig) -> dict[str, Any]:
    """In a process of its own: its figures and checks, seconds, and the error that ended it, if one did."""
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        words = ["--only", part, "--output", str(output), *(["--rehearse"] if config.rehearse else [])]
        error = None
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu_check", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PARTS[part][1],
                check=False,
            )
            if ended.returncode or not output.exists():
                error = f"exit code {ended.returncode}: {ended.stderr[-3000:]}"
        except subprocess.TimeoutExpired:
            error = f"not done after {PARTS[part][1]} s"
        found = json.loads(output.read_text()) if output.exists() else {"figures": {}, "checks": {}}
    return found | {"seconds": time.perf_counter() - started, "error": error}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Everything in lines, the checks last."""
    lines = []
    for part, report in found.items():
        lines.append(f"{part} ({report['seconds']:.0f} s)")
        for name, value in report["figures"].items():
            values = value if isinstance(value, list) else [f"{value:.4g}" if isinstance(value, float) else str(value)]
            lines += (
                [f"    {name}: {values[0]}"] if len(values) == 1 else [f"    {name}:", *(f"    {v}" for v in values)]
            )
    for part, report in found.items():
        lines += [f"{'holds ' if holds else 'FAILS '} {part}: {check}" for check, holds in report["checks"].items()]
        if report["error"]:
            lines.append(f"BROKEN {part}: {report['error']}")
    return lines


def main() -> int:
    config = parse_config(CheckConfig, __doc__ or "")
    sizes = REHEARSED if config.rehearse else PUBLISHED
    if config.only:
        write_json(config.output, PARTS[config.only][0](sizes)._asdict())
        return 0
    found: dict[str, dict[str, Any]] = {}
    for part in config.parts:
        print(f"{part} …", file=sys.stderr, flush=True)
        found[part] = run_part(part, config)
        settings = {"rehearsed": config.rehearse, "sizes": sizes._asdict()}
        write_json(config.output, settings | {"parts": found})
    print("\n".join(table(found)))
    return int(any(report["error"] or not all(report["checks"].values()) for report in found.values()))


if __name__ == "__main__":
    run(main, interrupted="interrupted: a check begins anew")
