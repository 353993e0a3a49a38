"""How many threads of a save read files at a time.

A chunk is sent when its digest is known. If all threads hash at the same time, all chunks are ready late and together.
The client is late too: to make it takes a processor some 0.2 s. So few threads read what has to be sent; all threads
read what turns out to be stored already, since it is not sent. Reading a small file is more work for Python than for
the system: more than two threads would mostly wait for the interpreter's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FewReaders"]

_LONGEST_S = 0.3


class FewReaders:
    """Lets so many threads read at a time, at least one."""

    def __init__(self, threads: int) -> None:
        self._free = max(1, threads)
        self._expects_new = True
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Read in the block. From a slow disk, whose reads take no processor, more threads read after a while."""
        with self._changed:
            is_mine = self._changed.wait_for(lambda: self._free > 0 or not self._expects_new, _LONGEST_S)
            self._free -= is_mine
        try:
            yield
        finally:
            with self._changed:
                self._free += is_mine
                self._changed.notify()

    def found(self, is_new: bool) -> None:
        """Say whether what was read has to be sent. The next is expected to be like it: all may read what is not."""
        with self._changed:
            self._expects_new = is_new
            if not is_new:
                self._changed.notify_all()
