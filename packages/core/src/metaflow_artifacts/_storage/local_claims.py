"""Mutual exclusion of the writers of one key, where the file system has no hard links.

A claim is a file that only one writer can create.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Callable

__all__ = ["Claim", "uptime"]

_HOLD_SECONDS = 15.0
_DEAD_SECONDS = 60.0
_WAIT_SECONDS = 0.01


def uptime() -> float:
    """Seconds since this machine started, including those that it slept, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Claim:
    """The right to put one key in place, which one writer at a time has.

    A claim is a file that is created with O_EXCL, `.claim-<hash of the key>.<number>`. The writer that creates it
    checks the target, puts its object there within _HOLD_SECONDS or not at all, and removes the claim. A claim older
    than _DEAD_SECONDS belongs to a writer that died: it is ignored, and the claim with the next number counts.

    Why no two writers hold claims that both count: the claims of one number exclude each other by O_EXCL. A writer
    holds number n+1 only if it found n dead. While the target is missing, a claim is removed only by its own holder,
    and only within _HOLD_SECONDS, when no writer can have found it dead; so a dead n is not removed as long as
    n+1 is held. Once the target exists, a writer that gets a claim sees the target and gives up. This rests on the file
    system's clock, and on a writer that is stopped between its last look at the clock and its next system call being
    stopped for less than _DEAD_SECONDS - _HOLD_SECONDS.
    """

    def __init__(self, directory: str, key: str, now: Callable[[], float]) -> None:
        self._stem = f"{directory}/.claim-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        self._now = now
        self._number = 0
        self._began = 0.0

    def take(self, is_decided: Callable[[], bool]) -> bool:
        """Wait until this writer holds the claim: True; False where `is_decided` says that no claim is needed."""
        while not is_decided():
            for number in itertools.count():
                path = f"{self._stem}.{number}"
                began = uptime()
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
                except FileExistsError:
                    if not self._is_dead(path):
                        break
                else:
                    self._number, self._began = number, began
                    return True
            time.sleep(_WAIT_SECONDS)
        return False

    def _is_dead(self, path: str) -> bool:
        try:
            return self._now() - os.stat(path).st_mtime > _DEAD_SECONDS
        except FileNotFoundError:
            return False

    def holds(self) -> bool:
        """Whether the object may still be put in place."""
        return uptime() - self._began < _HOLD_SECONDS

    def release(self, decided: bool) -> None:
        """Remove the claim; where the target is there (`decided`), with those of dead writers before it."""
        numbers = range(self._number, -1, -1) if decided else [self._number] if self.holds() else []
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._stem}.{number}")
