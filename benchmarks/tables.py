"""The benchmark's tables, and the JSON that holds the same."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Job, Measured
from benchmarks.methods import LONG_METHODS, MEBIBYTE
from thought_saes.saes.sae import n_weights

Best = dict[Job, Measured]


def with_ratios(seconds: dict[str, float]) -> dict[str, float]:
    return seconds | {
        "textbook/ours": seconds["textbook"] / seconds["ours"],
        "ours/gemm": seconds["ours"] / seconds["gemm"],
    }


def configuration_row(case: Case, best: Best, methods: Sequence[str]) -> dict[str, Any]:
    by_method = {method: best[Job(method, case)] for method in methods}
    return {
        "latent_dim": case.latent_dim,
        "k": case.k,
        **with_ratios({method: measured.seconds_per_epoch for method, measured in by_method.items()}),
        "dead_share": by_method["ours"].dead_share,
        **{f"{method}_mib": by_method[method].peak_mib for method in ("textbook", "ours")},
        "weights_and_moments_mib": 3 * 4 * n_weights(case.input_dim, case.latent_dim) / MEBIBYTE,
    }


def sum_row(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    return {"latent_dim": "sum", "k": "", **with_ratios({m: sum(row[m] for row in rows) for m in methods})}


def peer_row(case: Case, best: Best, peers: Sequence[str]) -> dict[str, Any]:
    """Empty if no public trainer was timed on this case."""
    seconds = {peer: best[Job(peer, case)].seconds_per_epoch for peer in peers if Job(peer, case) in best}
    if not seconds:
        return {}
    ours = best[Job("ours", case)].seconds_per_epoch
    return case._asdict() | {"ours": ours} | seconds | {"fastest/ours": min(seconds.values()) / ours}


def all_tables(
    cases: Sequence[Case], grown: dict[str, list[Case]], best: Best, methods: Sequence[str], peers: Sequence[str]
) -> dict[str, Any]:
    """configurations and sums by input_dim, growth by axis, peers."""
    configurations: dict[int, list[dict[str, Any]]] = {}
    for case in cases:
        configurations.setdefault(case.input_dim, []).append(configuration_row(case, best, methods))
    return {
        "configurations": configurations,
        "sums": {input_dim: sum_row(rows, methods) for input_dim, rows in configurations.items()},
        "growth": {
            axis: [
                case._asdict() | {method: best[Job(method, case)].seconds_per_epoch for method in LONG_METHODS}
                for case in along
            ]
            for axis, along in grown.items()
        },
        "peers": [row for case in cases if (row := peer_row(case, best, peers))],
    }


def print_tables(tables: dict[str, Any]) -> None:
    """What `all_tables` gives."""
    for input_dim, rows in tables["configurations"].items():
        print_table(f"input_dim {input_dim}", [*rows, tables["sums"][input_dim]])
    for axis, rows in tables["growth"].items():
        print_table(f"growth with {axis}", rows)
    if tables["peers"]:
        print_table("public trainers", tables["peers"])


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A column a key of the first row; what a row lacks stays empty."""
    lines = [list(rows[0])] + [
        [f"{row[key]:.4g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in rows[0]]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}\n")
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def cpu_name() -> str:
    """The processor's model as Linux names it; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
