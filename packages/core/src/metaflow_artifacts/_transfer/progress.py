"""Counting what a transfer moves, for those who watch it."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """The bytes of one save or load. Safe to be read from any thread while it goes on.

    `watch`, where given, is called with the transfer after each step, from the threads that do the work.
    """

    def __init__(self, watch: Callable[[Progress], None] | None = None) -> None:
        self.total = 0
        """Bytes of content."""
        self.done = 0
        """Bytes of content that are dealt with so far."""
        self.stored = 0
        """Bytes that were new to the store and had to be written (saves only)."""
        self._watch = watch
        self._lock = threading.Lock()

    def start(self, total: int) -> None:
        """Begin: `total` bytes of content."""
        with self._lock:
            self.total, self.done, self.stored = total, 0, 0

    def more(self, total: int) -> None:
        """`total` bytes of content are dealt with once more, since files changed."""
        with self._lock:
            self.total += total

    def add(self, done: int, stored: int = 0) -> None:
        """`done` more bytes are dealt with, `stored` of which were written to the store."""
        with self._lock:
            self.done += done
            self.stored += stored
        if self._watch is not None:
            self._watch(self)
