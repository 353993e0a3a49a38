"""Waiting for a change to what a lock protects, such that an interrupt can come at any moment."""

from __future__ import annotations

import threading

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
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            change.release()


class Turn:
    """A caller that waits for memory, or holds some."""

    def __init__(self) -> None:
        self.changed = Changes()
        self.held = 0
        self.has_come = False
