"""Counting the bytes of a save or load, and the artifacts of a listing, for progress bars and logs."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """The bytes of one save or load. Any thread may read it while the save or load runs.

    `watch`, where given, is called with this object after each step, in the threads that do the work.
    """

    def __init__(self, watch: Callable[[Progress], None] | None = None) -> None:
        self.total = 0
        """Bytes of content."""
        self.done = 0
        """Bytes of content that are saved or loaded so far."""
        self.stored = 0
        """Bytes that were new to the store and had to be written (saves only)."""
        self.found = 0
        """Bytes that earlier loads had left at the target, and that were not fetched (loads only)."""
        self.cached = 0
        """Bytes that came from the node's cache, and that were not fetched (loads only)."""
        self.artifacts = 0
        """Artifacts whose manifests were read (listings only)."""
        self._watch = watch
        self._lock = threading.Lock()

    def start(self, total: int) -> None:
        """Begin: `total` bytes of content."""
        with self._lock:
            self.total, self.done, self.stored, self.found, self.cached = total, 0, 0, 0, 0

    def more(self, total: int) -> None:
        """Add to `total`: files changed, and this many bytes are read or loaded again."""
        with self._lock:
            self.total += total

    def lose(self, found: int) -> None:
        """Take this many bytes back that were found at the target: they changed since, and are fetched."""
        with self._lock:
            self.done -= found
            self.found -= found

    def add(self, done: int, stored: int = 0, found: int = 0, cached: int = 0) -> None:
        """Add to `done`: of these bytes, `stored` were written to the store, `found` were at the target, and `cached`
        came from the node's cache."""
        with self._lock:
            self.done += done
            self.stored += stored
            self.found += found
            self.cached += cached
        if self._watch is not None:
            self._watch(self)

    def read(self) -> None:
        """Count an artifact whose manifest was read."""
        with self._lock:
            self.artifacts += 1
        if self._watch is not None:
            self._watch(self)
