"""Files without a name, and hidden directories that are locked while their process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from io import FileIO

from metaflow_artifacts._transfer.locks import lock_name
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.staging import STAGING_PREFIX

__all__ = ["HiddenDirectory", "clear", "unnamed_file"]

_PREFIX = f"{STAGING_PREFIX}snapshot_"
_NEW_PREFIX = f"{STAGING_PREFIX}new_"


class HiddenDirectory:
    """A hidden directory. It is locked while its process lives, so that others remove what a killed one has left."""

    def __init__(self, parent: str) -> None:
        """Raises OSError where it cannot be made in `parent`."""
        clear(parent)
        new = tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=parent)
        try:
            self._lock = os.open(os.path.join(new, lock_name(parent)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Some file systems have no locks: there, nothing is ever removed by others.
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path = os.path.join(parent, _PREFIX + os.path.basename(new)[len(_NEW_PREFIX) :])
            os.rename(new, self.path)
        except OSError:
            remove_tree(new)
            raise
        self._closing = threading.Lock()

    def close(self) -> None:
        with self._closing:
            if self._lock >= 0:
                remove_tree(self.path)
                self._unlock()

    def unlock(self) -> None:
        """In a forked child."""
        if self._lock >= 0:
            self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, -1
        with contextlib.suppress(OSError):
            os.close(lock)


def unnamed_file(parent: str) -> FileIO:
    """A new file without a name on the file system of `parent`. Raises OSError."""
    file = tempfile.TemporaryFile(buffering=0, prefix=_NEW_PREFIX, dir=parent)  # noqa: SIM115
    assert isinstance(file, FileIO)
    return file


_cleared: set[tuple[int, str]] = set()
"""Directories in which this process has looked for what is left, with its id."""


def clear(parent: str) -> None:
    """Remove, once for each directory, what processes that were killed have moved into it."""
    key = os.getpid(), parent
    if key in _cleared:
        return
    _cleared.add(key)
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
        for path in left:
            with contextlib.suppress(OSError):
                lock = os.open(os.path.join(path, lock_name(parent)), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(path)
                finally:
                    os.close(lock)
