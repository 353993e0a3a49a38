"""What lets `gc` delete while saves run: marks in the store that a save looks for before it commits.

`gc` looks at a chunk's time once more and then deletes it, and no storage does both in one step. A save that
renews the chunk in between would name one that is about to go. So `gc` deletes in short batches and keeps an
`open` mark in the store during each. A save whose chunks are in place looks for marks, waits for the batches that
are under way, and looks at its chunks again. `docs/format.md` has the proof.

A listing is not of one moment: it can miss the `done` mark that was not there yet when it began, and the `open` mark
that is gone when it ends. So a `run` mark stays from before the first batch until long after the last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from metaflow_artifacts._layout import GC_MARKS
from metaflow_artifacts._storage.base import ObjectInfo, Storage
from metaflow_artifacts.errors import ArtifactError

__all__ = ["GcMarks", "wait_for_gc"]

LEASE = 120.0
"""Seconds that a batch's mark holds a save up, where `gc` was killed. It begins to delete within a quarter of them;
the rest is more than a storage tries to delete for."""
SKEW = 900.0
"""Seconds that the clocks of writers and of the storage may differ by; S3 refuses requests beyond that."""

_RUN, _OPEN, _DONE = ".run", ".open", ".done"
_POLL = 0.05


class GcMarks:
    """One run of `gc`, as other processes see it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._run = uuid4().hex
        self._batches = 0

    @contextmanager
    def batch(self) -> Iterator[Callable[[], bool]]:
        """A stretch of looking and deleting. Gives a function that tells whether it may still delete."""
        began = _elapsed()
        mark, before = f"{GC_MARKS}{self._run}.{self._batches}", f"{GC_MARKS}{self._run}.{self._batches - 1}"
        run = f"{GC_MARKS}{self._run}{_RUN}"
        if not self._batches:
            self._storage.put(run, b"")
        self._batches += 1
        self._storage.put(mark + _OPEN, b"")
        try:
            yield lambda: _elapsed() - began < LEASE / 4
        finally:
            # In this order: the `run` mark has a new time before the batch has ended, and at every moment there is an
            # `open` or a `done` mark.
            self._storage.put(run, b"")
            self._storage.put(mark + _DONE, b"")
            _remove(self._storage, [mark + _OPEN, before + _DONE])


def _elapsed() -> float:
    """Seconds since some moment, by a clock that also counts while the machine sleeps: the others are awake."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # There, time.monotonic stands still in sleep, and this clock does not.
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


def _remove(storage: Storage, marks: list[str]) -> None:
    # A mark that stays harms nobody: the `done` mark beside an `open` one counts, and a later gc removes both. Whoever
    # saves may have no right to delete.
    with suppress(ArtifactError):
        storage.delete(marks)


def wait_for_gc(storage: Storage, since: float) -> bool:
    """Whether a `gc` may have deleted anything since the time `since` (seconds since the epoch).

    Returns when the batches that were under way have ended: the `open` mark is gone, or the `done` mark is there.
    One whose marks stay otherwise for longer than a live `gc` would leave them is taken for dead.
    """
    # The time that a listing has of a `run` mark may be that of its batch's beginning.
    marks = {info.key for info in storage.list(GC_MARKS) if info.modified > since - SKEW - LEASE}
    waiting = _under_way(marks)
    end = time.monotonic() + LEASE
    while waiting and time.monotonic() < end:
        time.sleep(_POLL)
        waiting &= _under_way({info.key for info in storage.list(GC_MARKS)})
    for key in waiting:
        storage.put(key.removesuffix(_OPEN) + _DONE, b"")
        _remove(storage, [key])
    return bool(marks)


def _under_way(marks: set[str]) -> set[str]:
    return {key for key in marks if key.endswith(_OPEN) and key.removesuffix(_OPEN) + _DONE not in marks}


def old_marks(storage: Storage, before: float) -> list[ObjectInfo]:
    """The marks that were last written before a time (seconds since the epoch), for `gc` to remove."""
    return [
        info for info in storage.list(GC_MARKS) if info.modified < before and info.key.endswith((_RUN, _OPEN, _DONE))
    ]
