"""Temporary directories, which go when the task ends, and when the next process looks after one that was killed.

Their names stand in a hidden file beside them, whose lock the process holds that made them (see `_transfer/locks.py`).
Whoever makes a directory in the same place removes those of files that nobody holds.

    metaflow_models_a_1f2e3d4c/                            a directory for the user
    .metaflow_artifacts_made_5a6b7c8d-lock-local           "metaflow_models_a_1f2e3d4c\\n"
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import re
import secrets
import stat
import tempfile
import threading
import weakref
from multiprocessing.util import Finalize
from typing import Any

from metaflow_artifacts._transfer.locks import NoLocks, lock_name, take_lock
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.staging import STAGING_PREFIX
from metaflow_artifacts.errors import TargetError, UsageError

__all__ = ["TemporaryDirectories"]

_RECORD_PREFIX = f"{STAGING_PREFIX}made_"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}_[0-9a-f]{8}")
"""The name of a directory that is made here."""
_BESIDE = re.compile(r"_[a-z0-9_]{8}")
"""What is added to it for directories beside it, which take its place when they are complete."""
_LARGEST_RECORD = 16 << 20


class TemporaryDirectories:
    """Makes directories below `root`, and removes them at `close`, or at the end of the process.

    If `root` is None, they are in the system's directory for temporary files. A copy, what comes out of a pickle, and a
    forked child own only the directories that they make themselves. What a process leaves that is killed is removed
    when the next directory is made in the same place.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, until_exit: bool = False) -> None:
        """With `until_exit`, the directories outlive this object.

        Raises UsageError for a `root` that is no path, and TargetError for one that is relative to a working directory
        that is gone.
        """
        if root is not None and not isinstance(root, (str, os.PathLike)):
            raise UsageError(
                f"temp_dir_root: expected a path (str or os.PathLike), found {root!r:.80} ({type(root).__name__})"
            )
        self._root = _absolute(os.fspath(root)) if root is not None else None
        self._until_exit = until_exit
        self._made: _Made | None = None
        # Copies are made for each call of a worker, and few of them make a directory.
        if not until_exit:
            self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker may return the path of a directory, and have no other use for the copy that made it.
        return functools.partial(type(self), until_exit=True), (self._root,)

    def _begin(self) -> _Made:
        """Own nothing yet, in this process, and see to it that what is made here is removed."""
        made = self._made = _Made()
        if not self._until_exit:
            weakref.finalize(self, made.remove)
            return made
        atexit.register(made.remove)
        if multiprocessing.parent_process() is not None:
            # Workers that were forked end without Python's own clean-up.
            Finalize(None, made.remove, exitpriority=0)
        return made

    def new(self, prefix: str) -> str:
        """Make an empty directory whose name starts with `prefix`, and return its path.

        Characters of `prefix` that are unusual in file names are replaced. Raises TargetError if the directory cannot
        be made.
        """
        made = self._made
        if made is None or not made.is_of_this_process:
            self._until_exit = self._until_exit or made is not None
            made = self._begin()
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", prefix)[:99].removesuffix("_") or "_"
        try:
            if self._root is not None:
                os.makedirs(self._root, exist_ok=True)
            return made.new(self._root or tempfile.gettempdir(), safe)
        except OSError as error:
            # Without any directory for temporary files, the error names those that were tried.
            where = self._root or tempfile.tempdir
            raise TargetError(
                f"cannot make a temporary directory{f' in {where}' if where else ''}: {error.strerror or error}; "
                "set temp_dir_root to a directory that can be written"
            ) from error

    def remove(self, path: str) -> None:
        """Remove one directory with its content, if it was made here; as `close` does."""
        if self._made is not None:
            self._made.remove(path)

    def close(self) -> None:
        """Remove the directories with their content, unless this process is a fork of the one that made them.

        Nothing outside of them is changed. A directory that was removed or moved away is not an error, and what cannot
        be removed is left.
        """
        if self._made is not None:
            self._made.remove()


def _absolute(root: str) -> str:
    try:
        return os.path.abspath(root)
    except OSError as error:
        raise TargetError(
            f"cannot make a temporary directory in {root!r}: it is relative to the working directory, which is gone "
            f"({error.strerror}); set temp_dir_root to an absolute path"
        ) from error


class _Made:
    """The directories that one process has made."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._paths: list[tuple[str, os.stat_result]] = []
        self._record: _Record | None = None
        self._lock = threading.Lock()
        """Never taken in a forked child, which might inherit it held."""

    @property
    def is_of_this_process(self) -> bool:
        return os.getpid() == self._process

    def new(self, root: str, prefix: str) -> str:
        """Make a directory in `root`. Raises OSError."""
        with self._lock:
            return self._new(root, prefix)

    def _new(self, root: str, prefix: str) -> str:
        if self._record is None:
            _remove_left(root)
            self._record = _Record(root)
        while True:
            path = os.path.join(root, f"{prefix}_{secrets.token_hex(4)}")
            # First its name, then the directory: a process may be killed between the two.
            self._record.add(os.path.basename(path))
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                self._paths.append((path, os.lstat(path)))
                return path

    def remove(self, path: str | None = None) -> None:
        """Remove that directory, or all. Nothing is done in a process that was forked from this one."""
        if not self.is_of_this_process:
            return
        with self._lock:
            removed = [one for one in self._paths if path in (None, one[0])]
            for made in removed:
                _remove(*made)
                self._paths.remove(made)
            if not self._paths and self._record is not None:
                self._record.close()
                self._record = None


def _remove(path: str, status: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        # The task may have moved the directory away. What the same user then put at this path is temporary too.
        if os.path.samestat(found, status) or found.st_uid == status.st_uid:
            remove_tree(path)


class _Record:
    """The file with the names of the directories that a process makes in `root`, and its lock."""

    def __init__(self, root: str) -> None:
        self._path = ""
        self._lock: int | None = None
        # Where no lock can be had, nobody may remove what a killed process has left.
        with contextlib.suppress(OSError):
            while self._lock is None:
                path = os.path.join(root, f"{_RECORD_PREFIX}{secrets.token_hex(4)}-{lock_name(root)}")
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    # Before this has the lock, another process may take the file for one that was left.
                    self._path = path
                    self._lock = take_lock(path, os.O_CREAT | os.O_EXCL)
        if self._lock is None:
            self._unlink()
        _records.add(self)

    def add(self, name: str) -> None:
        """Add a name. Raises OSError."""
        if self._lock is not None:
            os.write(self._lock, f"{name}\n".encode())

    def close(self) -> None:
        """All directories are removed."""
        self._unlink()
        self.release()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def release(self) -> None:
        """Release the lock, and leave the file."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.close(lock)


def _remove_left(root: str) -> None:
    """Remove the directories that killed processes of this user have left in `root`."""
    with contextlib.suppress(OSError):
        with os.scandir(root) as entries:
            found = {entry.name for entry in entries}
        suffix = f"-{lock_name(root)}"
        for name in sorted(found):
            if name.startswith(_RECORD_PREFIX) and name.endswith(suffix):
                with contextlib.suppress(OSError):
                    _remove_recorded(root, name, found)


def _remove_recorded(root: str, record: str, found: set[str]) -> None:
    """Remove what a record names, if nobody holds its lock, and then the record. Raises OSError."""
    path = os.path.join(root, record)
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > _LARGEST_RECORD:
        return
    try:
        lock = take_lock(path, 0)
    except NoLocks:
        return
    if lock is None:
        return
    try:
        names = os.pread(lock, _LARGEST_RECORD, 0).decode("ascii", "replace").splitlines()
        for name in filter(_NAME.fullmatch, names):
            beside = [one for one in found if one.startswith(name) and _BESIDE.fullmatch(one, len(name))]
            for left in (os.path.join(root, one) for one in (name, *beside)):
                with contextlib.suppress(OSError):
                    if os.lstat(left).st_uid == status.st_uid:
                        remove_tree(left)
        os.unlink(path)
    finally:
        os.close(lock)


_records: weakref.WeakSet[_Record] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child: close its copies of the locks, which would outlive the parent with it."""
    for record in list(_records):
        record.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
