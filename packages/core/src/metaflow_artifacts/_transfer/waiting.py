"""Waiting for a change to what a lock protects, such that an interrupt can come at any moment."""

from __future__ import annotations

import threading

from metaflow_artifacts._storage.job import current

__all__ = ["Changes", "Turn"]


class Changes:
    """What threads wait for that had the lock and gave it up.

    The thread that waits takes the lock afterwards, as at any other time. A `threading.Condition` takes it within its
    `wait`: an interrupt (KeyboardInterrupt) at that moment would leave the thread without it, and then release what
    another thread holds.
    """

    def __init__(self) -> None:
        self._waiting: list[threading.Lock] = []

    def next(self) -> threading.Lock:
        """A lock that can be had at the next change."""
        change = threading.Lock()
        change.acquire()
        self._waiting.append(change)
        return change

    def notify_all(self) -> None:
        for change in self._waiting:
            # An interrupt may have ended the last call here.
            if change.locked():
                change.release()
        self._waiting.clear()


class Turn:
    """A caller that makes a call itself, and waits for memory or holds some."""

    def __init__(self) -> None:
        self.changed = Changes()
        self.job = current()
        """What the caller works for otherwise."""
        self.held = 0
        self.has_come = False
        self.is_over = False
        """Whether the memory was given back, and who waits for it knows."""
