"""What others do to a file while it is saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts._transfer import source

__all__ = ["after_reads", "before_opening"]


def after_reads(
    monkeypatch: pytest.MonkeyPatch, path: Path, call: Callable[[int], object], most_bytes: int = 1 << 30
) -> None:
    """Have `call(offset)` made whenever a part of a file was read. No more than `most_bytes` are read at once."""
    real = os.preadv
    names = (str(path), f"{path} (deleted)")

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") not in names:
            return real(fd, buffers, offset)
        (buffer,) = buffers
        count = real(fd, [buffer[:most_bytes]], offset)
        call(offset)
        return count

    monkeypatch.setattr(os, "preadv", preadv)


def before_opening(monkeypatch: pytest.MonkeyPatch, path: Path, call: Callable[[], object]) -> None:
    """Have a call made whenever a file is about to be opened."""
    real = source.open_for_reading

    def open_for_reading(file: Any, number: int) -> int:
        if file.location == str(path):
            call()
        return real(file, number)

    monkeypatch.setattr(source, "open_for_reading", open_for_reading)
