"""A progress bar, which is shown on a terminal when a command takes longer than a second."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from metaflow_artifacts._text import count_text, size_text
from metaflow_artifacts._transfer.progress import Progress

__all__ = ["Bar", "bar"]

_AFTER = 1.0
_EVERY = 0.1
_WIDTH = 30
_COLUMNS = 80


class Bar(Progress):
    """A `Progress` that is shown: the bytes of a transfer, before one how many artifacts were read, and before that,
    while keys are listed, the seconds that have passed."""

    def __init__(self, what: str, stream: TextIO) -> None:
        """On another stream than a terminal, nothing is shown."""
        super().__init__(self._draw if stream.isatty() else None)
        self._what = what
        self._stream = stream
        self._drawing = threading.Lock()
        self._began = time.monotonic()
        self._drawn = self._began + _AFTER - _EVERY
        self._shown = False

    def _draw(self, _: Progress) -> None:
        now = time.monotonic()
        if now - self._drawn < _EVERY or not self._drawing.acquire(blocking=False):
            return
        try:
            self._drawn = now
            self._stream.write(f"\r{self._line(now - self._began)[: self._space()]}\x1b[K")
            self._stream.flush()
            self._shown = True
        finally:
            self._drawing.release()

    def _space(self) -> int:
        """How long a line may be. A longer one would go on in the next line, where the cursor does not come back."""
        try:
            return (os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS) - 1
        except (AttributeError, OSError, ValueError):
            return _COLUMNS - 1

    def tick(self) -> None:
        """Show how much time has passed, where no step has been shown for a while."""
        self._draw(self)

    def _line(self, seconds: float) -> str:
        if not self.total and not self.artifacts:
            return f"{self._what}: {seconds:.0f} s"
        if not self.total:
            return f"{self._what}: {count_text(self.artifacts, 'artifact')} read, {self.artifacts / seconds:,.0f}/s"
        part = self.done / self.total
        full = round(part * _WIDTH)
        rate = size_text(round((self.done - self.found - self.cached) / seconds))
        return f"{self._what} [{'#' * full}{'.' * (_WIDTH - full)}] {part:4.0%} of {size_text(self.total)}, {rate}/s"

    def hide(self) -> None:
        """Remove the bar, so that something can be printed in its place. The next step shows it again."""
        with self._drawing:
            if self._shown:
                self._shown = False
                self._stream.write("\r\x1b[K")
                self._stream.flush()


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    """Yield a `Progress` for a transfer. While the block runs, its progress is shown if stderr is a terminal."""
    shown = Bar(what, sys.stderr)
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_AFTER):
            shown.tick()

    ticks = threading.Thread(target=tick, name="metaflow-artifacts-bar", daemon=True)
    if sys.stderr.isatty():
        ticks.start()
    try:
        yield shown
    finally:
        ended.set()
        if ticks.is_alive():
            ticks.join()
        shown.hide()
