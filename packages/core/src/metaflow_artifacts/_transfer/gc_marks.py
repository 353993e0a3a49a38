"""gc marks: objects in the store by which `gc` can delete while saves run. A save looks for them before it commits.

`gc` checks a chunk's time again and then deletes it, and no storage does both in one step. A save that renews the
chunk between the two would name a chunk that is about to be deleted. So `gc` deletes in short batches, and keeps an
`open` mark in the store during each batch. A save that has stored its chunks looks for marks, waits for the batches
that are running, and checks its chunks again. `docs/format.md` has the proof.

A listing is not a snapshot: it can miss a `done` mark that did not exist when it began, and an `open` mark that was
removed before it ended. So a `run` mark exists from before the first batch until long after the last one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from metaflow_artifacts._layout import GC_MARKS
from metaflow_artifacts._storage.base import ObjectInfo, Storage
from metaflow_artifacts._text import duration_text
from metaflow_artifacts.errors import ArtifactError, StorageError

__all__ = ["GcMarks", "demand_clock", "wait_for_gc"]

LEASE_S = 120.0
"""How long a save waits for the mark of a dead gc. A live gc starts its deletes within a quarter of this time, and a
storage retries a delete for less than the rest."""
CLOCK_SKEW_S = 900.0
"""The largest difference between the clocks of writers and of the storage; S3 refuses requests beyond it."""

_RUN, _OPEN, _DONE = ".run", ".open", ".done"
_POLL_S = 0.05


class GcMarks:
    """The gc marks of one run of `gc`."""

    def __init__(self, storage: Storage, begin: float = 0.0) -> None:
        """What is to be removed was found at `begin`, in seconds since the epoch, by the clock of this machine or of
        the one that found it."""
        self._storage = storage
        self._begin = begin
        self._run = uuid4().hex
        self._batches = 0

    @contextmanager
    def batch(self) -> Iterator[Callable[[], bool]]:
        """Mark one batch: `gc` checks and deletes chunks in the block.

        Yields a function that returns whether the batch may still delete. Raises StorageError if the clock is ahead of
        the storage's: then what is to be removed may be younger than it seems.
        """
        began = _elapsed()
        mark, before = f"{GC_MARKS}{self._run}.{self._batches}", f"{GC_MARKS}{self._run}.{self._batches - 1}"
        run = f"{GC_MARKS}{self._run}{_RUN}"
        if not self._batches:
            _write_by_clock(self._storage, run, self._begin)
        self._batches += 1
        self._storage.put(mark + _OPEN, b"")
        try:
            yield lambda: _elapsed() - began < LEASE_S / 4
        finally:
            # The order matters: the `run` mark is renewed before the batch ends, and an `open` or a `done` mark exists
            # at every moment.
            self._storage.put(run, b"")
            self._storage.put(mark + _DONE, b"")
            _remove(self._storage, [mark + _OPEN, before + _DONE])


def demand_clock(storage: Storage) -> None:
    """Raise StorageError if the clock of this machine is ahead of the storage's. It writes an object to find out."""
    # A save that meets it takes it for the mark of a gc, and looks at its chunks once more.
    mark = f"{GC_MARKS}{uuid4().hex}{_RUN}"
    _write_by_clock(storage, mark, 0.0)
    _remove(storage, [mark])


def _write_by_clock(storage: Storage, mark: str, begin: float) -> None:
    now = max(begin, storage.now())
    storage.put(mark, b"")
    written = storage.stat(mark)
    if written is not None and now - written.modified > CLOCK_SKEW_S:
        _remove(storage, [mark])
        raise StorageError(
            f"{storage.root}: the clock of this machine, or of the one that looked what can go, is "
            f"{duration_text(now - written.modified)} ahead of the storage's; set it; nothing was removed"
        )


def _elapsed() -> float:
    """Seconds since a fixed moment, by a clock that goes on while the machine sleeps, since other machines do not."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # On macOS, time.monotonic stops during sleep, and this clock does not.
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


def _remove(storage: Storage, marks: list[str]) -> None:
    # A mark that stays does no harm: saves ignore an `open` mark that has a `done` mark, and a later gc removes both.
    # The credentials of a save may not allow deletes.
    with suppress(ArtifactError):
        storage.delete(marks)


def wait_for_gc(storage: Storage, since: float) -> bool:
    """Wait for the batches that are running. Returns whether a `gc` may have deleted anything since `since`.

    `since` is in seconds since the epoch. A batch has ended when its `open` mark is gone or its `done` mark exists. If
    neither happens within LEASE_S, its gc was killed: the batch gets a `done` mark.
    """
    # A listing may show the time that a `run` mark had when its batch began.
    marks = {info.key for info in storage.list(GC_MARKS) if info.modified > since - CLOCK_SKEW_S - LEASE_S}
    waiting = _under_way(marks)
    end = time.monotonic() + LEASE_S
    while waiting and time.monotonic() < end:
        time.sleep(_POLL_S)
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
