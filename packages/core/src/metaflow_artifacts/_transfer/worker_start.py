"""What surrounds the worker process while it begins: signals, and where it finds modules."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["IGNORED", "blocked_signals", "import_paths"]

IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""To the whole group of processes, they are for the one that saves, which waits for the worker."""


@contextmanager
def blocked_signals() -> Iterator[None]:
    """A process that is started in the block has `IGNORED` blocked: one may come before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def import_paths() -> list[str]:
    """Where modules are imported from. Relative paths would mean something else in another directory."""
    found = []
    for path in sys.path:
        # The working directory may be gone, and a path may be none at all.
        with suppress(OSError, ValueError, TypeError):
            absolute = os.path.abspath(path)
            if b"\0" not in os.fsencode(absolute):
                found.append(absolute)
    return found
