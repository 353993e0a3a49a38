"""The private directory of a load, inside of its target; and those that killed loads have left there.

A load holds a lock on a file in its private directory (see `locks.py`). So a directory whose lock can be had is
nobody's. Where there are no locks, there is no such file, and nobody takes the directory.

    .metaflow_artifacts_ab12cd34/lock-local    held by the process that loads; or lock-<kernel>-<device>. It holds which
                                               load it is: the same one, done again, uses the files
    .metaflow_artifacts_ab12cd34/files/        the files of the artifact
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator

from metaflow_artifacts._transfer.locks import NoLocks, lock_name, take_lock
from metaflow_artifacts._transfer.removal import remove_tree

__all__ = ["STAGING_PREFIX", "Stage", "left_stages", "make_stage"]

STAGING_PREFIX = ".metaflow_artifacts_"
"""How the name of a private directory begins."""

_FILES = "files"
_MADE = re.compile(re.escape(STAGING_PREFIX) + r"[a-z0-9_]{8}")
_CONTENT = re.compile(r"files|mode|lock-[A-Za-z0-9-]+")
"""What may be in a private directory. A directory with anything else was made by somebody else."""
_KEPT_S = 24 * 3600.0
"""Seconds for which what another load has left is kept: until then, that load may be done again."""


_stages: weakref.WeakSet[Stage] = weakref.WeakSet()


class Stage:
    """A private directory whose lock this process holds. Threads that write to it do so in a block of `used`."""

    def __init__(self, path: str, lock: int | None) -> None:
        self.files = os.path.join(path, _FILES)
        """The directory with the files of the artifact."""
        self.holds_content = False
        """Whether a part of the artifact is in it that the same load, done again, can use."""
        self.inherits = False
        """Whether a part of that comes from a load that was killed."""
        self._path = path
        self._lock = lock
        self._users = 1
        self._counting = threading.Lock()
        _stages.add(self)

    def is_of(self, load: str) -> bool:
        """Whether it was made by that load (see `make_stage`)."""
        return bool(load) and self._load() == _digest(load)

    def is_outdated(self) -> bool:
        """Whether it is so old that the load that has left it will hardly be done again, or is of no known load."""
        try:
            return not self._load() or time.time() - os.stat(self._path).st_mtime > _KEPT_S
        except OSError:
            return False

    def _load(self) -> bytes:
        return b"" if self._lock is None else os.pread(self._lock, 64, 0)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The lock is held until the block ends, also if `leave` is called meanwhile."""
        with self._counting:
            self._users += 1
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Leave the directory to a later load, as soon as no thread uses it."""
        with self._counting:
            self._users -= 1
            if self._users or self._lock is None:
                return
            lock, self._lock = self._lock, None
        os.close(lock)

    def clear(self) -> None:
        """Remove the directory. What cannot be removed stays, and nothing is raised."""
        # The lock goes last: without it, nobody would remove what is left where this is killed.
        remove_tree(self.files)
        remove_tree(self._path)

    def remove(self) -> None:
        """`clear` and `leave`."""
        self.clear()
        self.leave()


def _forget() -> None:
    """In a forked child: close its copies of the locks, which would outlive the parent with it."""
    for stage in list(_stages):
        if stage._lock is not None:
            with contextlib.suppress(OSError):
                os.close(stage._lock)
            stage._lock = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _digest(load: str) -> bytes:
    return hashlib.sha256(load.encode("utf-8", "surrogatepass")).hexdigest().encode()


def make_stage(target: str, load: str = "") -> Stage:
    """A new private directory in the directory `target`. `load` says what is loaded; an equal text is the same load.

    Raises OSError.
    """
    name = lock_name(target)
    while True:
        path = tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target)
        try:
            lock = take_lock(os.path.join(path, name), os.O_CREAT | os.O_EXCL)
            if lock is not None:
                stage = Stage(path, lock)
                os.mkdir(stage.files)
                if load:
                    os.write(lock, _digest(load))
                return stage
        except NoLocks:
            os.mkdir(os.path.join(path, _FILES))
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))
            return Stage(path, None)
        except FileNotFoundError:
            pass
        except OSError:
            remove_tree(path)
            raise
        # Before this had the lock, another load took the directory for one that was left, and removes it.


def left_stages(target: str) -> Iterator[Stage]:
    """The private directories in `target` that no process uses any more. The caller removes each."""
    with os.scandir(target) as entries:
        paths = [entry.path for entry in entries if _is_ours(entry)]
    name = lock_name(target) if paths else ""
    for path in paths:
        try:
            lock = take_lock(os.path.join(path, name), 0)
        except FileNotFoundError:
            # Killed before it had a lock, or by another machine: removed if it is empty.
            with contextlib.suppress(OSError):
                os.rmdir(path)
            continue
        except OSError:
            continue
        if lock is not None:
            yield Stage(path, lock)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether it is a private directory of this user."""
    if not _MADE.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
        return False
    try:
        if hasattr(os, "geteuid") and entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
        return all(_CONTENT.fullmatch(name) for name in os.listdir(entry.path))
    except OSError:
        return False
