"""How many bytes a process may add to the node's cache, beside what its own loads still write to the same disk."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator

from metaflow_artifacts._transfer.cache_files import CacheFiles

__all__ = ["Room"]

_DEFAULT_LIMIT = 50_000_000_000
_SHARE = 16
"""A process may fill this part of the room that it found before it looks again: others fill the cache too."""
_FULL_S = 5.0
"""How long a process does not look again after it found no room: a look lists the whole cache."""


class _State:
    """What one process has promised, and may still promise."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.allowance = 0
        """Bytes that may be promised before the directory is looked at again."""
        self.unwritten = 0
        """Bytes that are promised and not written yet."""
        self.added = False
        """Whether room was promised to a chunk since this process last shrank the cache to its limit."""
        self.full_until = -math.inf
        self.loads: dict[object, Callable[[], int]] = {}
        """For each load onto the cache's disk, the bytes that it still has to write."""


class Room:
    """The room in one cache. Methods raise OSError where nothing else is said."""

    def __init__(self, files: CacheFiles, limit: int | None) -> None:
        self._files = files
        self._limit = limit
        self._states: dict[int, _State] = {}

    @property
    def _state(self) -> _State:
        # One for each process: a forked child must not wait for a thread that only its parent has.
        return self._states.setdefault(os.getpid(), _State())

    def lacks(self, size: int) -> bool:
        """Whether it is known, without a look, that there is no room for `size` bytes. Raises nothing."""
        state = self._state
        return state.allowance < size and time.monotonic() < state.full_until

    def take(self, size: int) -> bool:
        """Whether `size` bytes may be written. Chunks that were not used for long are removed for them."""
        state = self._state
        with state.lock:
            if state.allowance < size:
                if time.monotonic() < state.full_until:
                    return False
                room = self._look(state, size)
                state.allowance = max(room // _SHARE, size if size <= room else 0)
                if state.allowance < size:
                    state.full_until = time.monotonic() + _FULL_S
                    return False
            state.allowance -= size
            state.unwritten += size
            state.added = True
            return True

    def wrote(self, size: int) -> None:
        """`size` bytes of what was taken are written, or never will be; below 0 to take them again."""
        state = self._state
        with state.lock:
            state.unwritten = max(0, state.unwritten - size)

    def is_beside(self, directory: str) -> bool:
        """Whether a directory is on the cache's disk."""
        return os.stat(directory).st_dev == self._files.device()

    @contextlib.contextmanager
    def load(self, left: Callable[[], int]) -> Iterator[None]:
        """While the block runs, a load writes to the cache's disk. `left` says how many bytes it still has to write."""
        state, load = self._state, object()
        with state.lock:
            state.loads[load] = left
            state.allowance = 0
        try:
            yield
        finally:
            with state.lock:
                del state.loads[load]

    def make(self) -> None:
        """Make the room that the running loads need, where the disk has hardly more."""
        state = self._state
        with state.lock:
            if self._files.free()[0] < 2 * sum(left() for left in state.loads.values()):
                self._look(state, 0)

    def settle(self) -> None:
        """Shrink to the limit, if this process has added something: others may have done so at the same time."""
        state = self._state
        with state.lock:
            if state.added:
                state.added = bool(state.unwritten)
                state.allowance = 0
                self._look(state, 0)

    def _look(self, state: _State, size: int) -> int:
        """How many bytes the cache may grow by. It first shrinks where that is less than `size`, and near the limit."""
        left = sum(left() for left in state.loads.values())
        held = self._files.size()
        free, whole = self._files.free()
        limit = self._most(free - left, whole, held)
        # Loads of other processes may need the disk as well, and nobody knows how much.
        spare = free - state.unwritten - 2 * left if left else free
        fits = size <= limit - state.unwritten and size <= spare + held
        if held > limit - limit // 16 or (fits and limit - held - state.unwritten < size):
            goal = limit - limit // 8
            if fits:
                goal = min(goal, limit - state.unwritten - size)
            before = held
            held, _ = self._files.shrink(max(0, goal))
            spare += before - held
        return max(0, min(limit - held - state.unwritten, spare))

    def limit(self, held: int) -> int:
        """The most bytes that the cache may hold, where it holds `held` of them now."""
        return self._most(*self._files.free(), held)

    def _most(self, free: int, whole: int, held: int) -> int:
        room = max(0, free + held)
        if self._limit is None:
            return min(_DEFAULT_LIMIT, room // 2)
        # The last twentieth of the disk is not taken.
        return max(0, min(self._limit, room - whole // 20))
