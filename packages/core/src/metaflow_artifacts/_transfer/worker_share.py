"""Whether a process of low priority gets the processor at all, on a machine where others want it."""

from __future__ import annotations

import os
import time
from contextlib import suppress

__all__ = ["Share"]

_WINDOW_S = 1.0
"""Over how long the processor's time is compared."""
_LEAST = 0.2
"""With this part of one processor, a process does not starve, however long its threads wait for more."""
_TIMES = 10
"""A process starves where its threads wait this many times longer for a processor than they run on one. Where they wait
less than that, it is the network, mostly, that the process waits for."""
_TICKS_S = os.sysconf("SC_CLK_TCK")


class Share:
    """Looks at a process again and again."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._before: tuple[float, float, float] | None = None

    def is_too_small(self) -> bool:
        """Whether, for a second, it has waited for a processor and had next to nothing of one. False if unknown."""
        now = self._now()
        before = self._before
        if now is None or before is None:
            self._before = now
            return False
        seconds, had, waited = (after - first for after, first in zip(now, before, strict=True))
        if seconds < _WINDOW_S:
            return False
        self._before = now
        return had < _LEAST * seconds and waited > max(seconds / 2, _TIMES * had)

    def forget(self) -> None:
        """Begin anew: nothing waits for the process."""
        self._before = None

    def _now(self) -> tuple[float, float, float] | None:
        """The time, and the seconds in which the process had a processor, and in which its threads waited for one."""
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self._process}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            had = (int(fields[11]) + int(fields[12])) / _TICKS_S
            waited = 0.0
            for thread in os.listdir(f"/proc/{self._process}/task"):
                with suppress(OSError), open(f"/proc/{self._process}/task/{thread}/schedstat") as file:
                    waited += int(file.read().split()[1]) / 1e9
            return time.monotonic(), had, waited
        return None
