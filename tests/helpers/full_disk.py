"""A disk without room: what is written begins, and fails before it is safe."""

import os

import pytest


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file fail with ENOSPC when it is flushed, its bytes half written in a temporary file."""

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
