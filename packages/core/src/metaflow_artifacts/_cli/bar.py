"""A progress bar, which is shown on a terminal when a command takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from metaflow_artifacts._text import size_text
from metaflow_artifacts._transfer.progress import Progress

__all__ = ["bar"]

_AFTER = 1.0
_EVERY = 0.1
_WIDTH = 30


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """Yield a `Progress` for a transfer. While the block runs, its progress is shown if stderr is a terminal."""
    stream = sys.stderr
    if not stream.isatty():
        yield Progress()
        return
    lock = threading.Lock()
    began = time.monotonic()
    drawn = began + _AFTER - _EVERY

    def draw(transfer: Progress) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < _EVERY or not lock.acquire(blocking=False):
            return
        try:
            drawn = now
            part = transfer.done / transfer.total if transfer.total else 1.0
            full = round(part * _WIDTH)
            rate = size_text(round((transfer.done - transfer.found - transfer.cached) / (now - began)))
            line = f"{what} [{'#' * full}{'.' * (_WIDTH - full)}] {part:4.0%} of {size_text(transfer.total)}, {rate}/s"
            stream.write(f"\r{line}\x1b[K")
            stream.flush()
        finally:
            lock.release()

    try:
        yield Progress(draw)
    finally:
        if drawn > began + _AFTER - _EVERY:
            stream.write("\r\x1b[K")
            stream.flush()
