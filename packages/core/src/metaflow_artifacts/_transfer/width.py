"""How many calls of one kind run at once with one storage: found while they run.

One connection on a real network gives 50 to 100 MB/s, so a transfer begins with many. While all of them are busy, the
bytes that they move are counted in windows; the first window after a change does not count. More connections are tried
first, for as long as they move more; then fewer, for as long as they move as much. A server that asks to slow down
halves their number; a transfer that begins when it has not done so for a minute has as many as the first one.

The first windows of loads are short, and twice as many connections are tried: over slow connections, each chunk takes
seconds, and most chunks of an artifact have begun before long windows tell anything. What a short window says against
more connections is not believed: long ones follow. Saves grow slowly: of what is sent, the system takes megabytes at
once, and a slow server that has too many chunks to store answers none of them in time.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from metaflow_artifacts._storage.base import Storage

__all__ = ["Width", "width_of"]

_WINDOW_S = 1.0
_FIRST_WINDOW_S = 0.25
_MORE = 1.1
"""More connections must move more than this many times as much, or they are given up."""
_SAME = 0.97
"""Fewer connections must move at least this part of it, or they are given up."""
_FEWEST = 4
"""Down to how many connections fewer are tried; a server that asks to slow down gets down to one."""
_PARTLY = 0.1
"""A window counts if at most this part of the reports came while not exactly `now` calls ran."""
_REST_WINDOWS = 30
"""After how many windows the search begins again."""
_QUIET_S = 10.0
"""After how long without a request to slow down more connections are tried again."""
_FORGOTTEN_S = 60.0
"""After how long without a request to slow down a transfer begins with as many connections as the first one."""


class Width:
    """At most `now` calls run at once: `start` at first, then from 1 to `most`. With `most` <= `start`, always `start`.
    With `quick`, the first windows are short.

    The engine counts `running`, and the calls report what they move.
    """

    def __init__(
        self, start: int, most: int = 0, clock: Callable[[], float] = time.monotonic, *, quick: bool = False
    ) -> None:
        self.now = self._start = max(1, start)
        self.running = 0
        self.when_wider: set[Callable[[], None]] = set()
        """What to call when more calls may run at once."""
        self._most = most
        self._searches = most > start
        self._clock = clock
        self._lock = threading.Lock()
        self._slowed = -math.inf
        self._window = _FIRST_WINDOW_S if quick else _WINDOW_S
        self._begin: float | None = None
        self._begin_window()
        self._before: tuple[int, float] | None = None
        """The width before the one that is tried now, and its bytes a second."""
        self._narrowing = False
        self._rest = 0

    def begin(self) -> None:
        """A transfer begins."""
        if not self._searches or self.running:
            return
        with self._lock:
            # The time since the last transfer says nothing about the connections.
            self._begin_window()
            if _FORGOTTEN_S <= self._clock() - self._slowed < math.inf:
                # Transfers that are short would never find out that there can be more again.
                self._slowed = -math.inf
                if self.now < self._start:
                    self.now = self._start
                    self._search_on()
                    self._rest = 0

    def moved(self, count: int) -> None:
        """Count bytes that were sent or received; none for a call that is done and that moves few."""
        if not self._searches:
            return
        with self._lock:
            if self._begin is None:
                # A window lasts from one report to another, and has what was moved between them.
                self._begin = self._clock()
                return
            before = self.now
            self._moved += count
            self._reports += 1
            self._partly += self.running != self.now
            passed = self._clock() - self._begin
            if passed < self._window:
                return
            if self._partly <= _PARTLY * self._reports:
                self._judge(self._moved / passed)
            self._begin_window()
            wider = self.now > before
        if wider:
            for call in tuple(self.when_wider):
                call()

    def slow_down(self) -> None:
        """The server asks for fewer requests."""
        if not self._searches:
            return
        with self._lock:
            now = self._clock()
            # All that run at the same moment are told so; that is one sign and not many.
            if now >= self._slowed + _WINDOW_S:
                self.now = max(1, self.now // 2)
                self._slowed = now
                self._search_on()
                self._rest = 0
                self._begin_window()

    def _begin_window(self) -> None:
        self._begin = None
        self._moved = self._reports = self._partly = 0

    def _judge(self, rate: float) -> None:
        if self._rest or self._clock() < self._slowed + _QUIET_S:
            self._rest = max(0, self._rest - 1)
            return
        if not rate:
            # A server that stalls, bytes that the system has taken before, or calls that have none: more connections
            # than at first are no answer to it.
            if math.isfinite(self._slowed) and self.now < self._start:
                self.now, self._rest = min(self._start, 2 * self.now), 1
            return
        if self._window == _FIRST_WINDOW_S:
            self._judge_first(rate)
            return
        if self._before is None:
            self._narrowing = self.now >= self._most
        elif rate < self._before[1] * (_SAME if self._narrowing else _MORE):
            self.now, rate = self._before
            if self._narrowing:
                self._settle()
                return
            self._narrowing = True
        self._before = self.now, rate
        wider = min(self._most, self.now * 3 // 2 + 1)
        narrower = max(_FEWEST, self.now * 2 // 3)
        following = narrower if self._narrowing else wider
        if (following >= self.now) if self._narrowing else (following <= self.now):
            self._settle()
            return
        self.now, self._rest = following, 1

    def _judge_first(self, rate: float) -> None:
        if self._before is not None and rate < self._before[1] * _MORE:
            self._search_on()
        elif self.now >= self._most:
            self._search_on()
            self._settle()
        else:
            self._before = self.now, rate
            self.now, self._rest = min(self._most, 2 * self.now), 1

    def _search_on(self) -> None:
        """Go on with long windows, from the width that there is."""
        self._before, self._window = None, _WINDOW_S

    def _settle(self) -> None:
        self._before, self._narrowing, self._rest = None, False, _REST_WINDOWS


_widths: WeakKeyDictionary[Storage, dict[tuple[str, int, int], Width]] = WeakKeyDictionary()
_widths_lock = threading.Lock()


def _renew() -> None:
    global _widths, _widths_lock
    _widths, _widths_lock = WeakKeyDictionary(), threading.Lock()


# What runs in the parent does not run in a forked child.
os.register_at_fork(after_in_child=_renew)


def width_of(storage: Storage, action: str) -> Width:
    """The width of all transfers of one kind with one storage: `save`, `load`, `ranges`, `copy` or `small requests`."""
    # Ranges are small, and no more bytes are on their way at once than with half as many chunks.
    start = min(2 * storage.threads, storage.most_threads) if action == "ranges" else storage.threads
    with _widths_lock:
        widths = _widths.setdefault(storage, {})
        found = action, storage.threads, storage.most_threads
        return widths.setdefault(found, Width(start, storage.most_threads, quick=action in ("load", "ranges")))
