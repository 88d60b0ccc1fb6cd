"""What made an SAE: recorded with each, for one file may hold SAEs of several runs."""

import functools
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thought_saes.common.command_line import package_versions


@functools.cache
def commit() -> str | None:
    """The commit of this checkout; None outside one."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def provenance(backend: str, device: str) -> dict[str, Any]:
    """For an SAE trained now by `backend` on `device`."""
    return {
        "backend": backend,
        "device": device,
        "versions": package_versions("torch", "numpy"),
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
