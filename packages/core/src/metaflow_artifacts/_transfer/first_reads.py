"""How many threads of a save hash chunks that are not on their way yet.

A chunk is sent when its digest is known. Where all threads hash at the same time, all chunks are ready late and
together, and the client, which takes a processor for some 0.2 s to be made, is late too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FirstReads"]

_LONGEST_S = 0.3


class FirstReads:
    """Lets as many threads at a time read and hash as there are processors but one, and at least one."""

    def __init__(self, threads: int | None = None) -> None:
        self._turns = threading.Semaphore(threads or max(1, (os.cpu_count() or 1) - 1))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Read in the block. From a slow disk, whose reads take no processor, more threads read after a while."""
        is_mine = self._turns.acquire(timeout=_LONGEST_S)
        try:
            yield
        finally:
            if is_mine:
                self._turns.release()
