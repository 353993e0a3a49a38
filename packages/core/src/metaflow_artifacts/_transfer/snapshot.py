"""Snapshots: the caller may change the source as soon as there is one, and it is stored later.

What is in memory stays there. Files are cloned into a hidden directory on their own file system: by reflink, else by
copy_file_range, else by read and write. With `consume` they are moved there. Each clone is one state that its file had,
which is found out as in a save (see `source.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace

from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again, scan
from metaflow_artifacts._transfer.source import (
    FILE_ATTEMPTS,
    Changed,
    has_grown,
    is_unchanged,
    keeps_changing,
    open_for_reading,
    read_inline,
    unreadable,
    wait_for_tick,
)
from metaflow_artifacts._transfer.staging import STAGING_PREFIX

__all__ = ["NoSnapshot", "Snapshot", "take_snapshot"]

_IN_MEMORY_BYTES = 1 << 20
"""Files of at most this many bytes in all are read into memory instead."""
_BLOCK_BYTES = 1 << 20
_MARGIN = 1.05
"""A snapshot is made where at least this many times its size is free."""
_PREFIX = f"{STAGING_PREFIX}snapshot_"
_NEW_PREFIX = f"{STAGING_PREFIX}new_"
_LOCK = "lock"
_FICLONE = 0x40049409
"""Linux: make a file share the blocks of another one."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSnapshot(Exception):
    """There can be no snapshot, for the reason in the message: store the source itself. Nothing was changed."""


class Snapshot:
    """What is to be stored, and the hidden directory that holds its files."""

    def __init__(self, source: Source, directory: _Directory | None = None, moved: list[tuple[str, str]] | None = None):
        self.source = source
        self._directory = directory
        self._moved = moved or []

    def close(self) -> None:
        """Remove the directory. Nothing is raised."""
        if self._directory is not None:
            self._directory.close()

    def give_back(self) -> None:
        """Move what was consumed back to where it was, unless something else is there; then `close`."""
        for path, location in self._moved:
            with contextlib.suppress(OSError):
                if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
                    os.rename(location, path)
        self.close()


def take_snapshot(
    content: Content, *, consume: bool = False, temp_root: str | os.PathLike[str] | None = None
) -> Snapshot:
    """A snapshot of a file, directory or mapping. The caller closes it.

    With `consume`, files and directories are moved, and buffers are not copied. `temp_root` is where a snapshot is made
    if the source's file system cannot be written to. Raises NoSnapshot where there is no room, or where `consume` would
    have to copy; else as `source_of`, and SourceError for a file that changes each time it is cloned.
    """
    source = source_of(content, keeps_buffers=consume)
    if all(file.content is not None for file in source.files):
        # Nobody can change a mapping of bytes, nor a directory without files.
        return Snapshot(source)
    if consume:
        return _move(content, source)
    if sum(file.size for file in source.files if file.content is None) <= _IN_MEMORY_BYTES:
        source = _read(source) or source
        if all(file.content is not None for file in source.files):
            return Snapshot(source)
    directory = _Directory.near(content, source, temp_root)
    try:
        return Snapshot(_clone_all(source, directory), directory)
    except BaseException:
        directory.close()
        raise


def _read(source: Source) -> Source | None:
    """The source with the content of its files in memory; None where they have become large."""
    on_disk = Source([file for file in source.files if file.content is None], source.dirs)
    content = read_inline(on_disk, _IN_MEMORY_BYTES)
    if content is None:
        return None
    files = [file for file in source.files if file.content is not None]
    view, offset = memoryview(content), 0
    for file in on_disk.files:
        if not file.gone:
            files.append(replace(file, content=view[offset : offset + file.size]))
            offset += file.size
    files.sort(key=lambda file: os.fsencode(file.path))
    return Source(files, source.dirs)


class _Directory:
    """A hidden directory. It is locked while its process lives, so that others remove what a killed one has left."""

    _cleared: set[tuple[int, str]] = set()  # noqa: RUF012
    """Directories in which this process has looked for what is left, with its id."""

    def __init__(self, parent: str) -> None:
        """Raises OSError where it cannot be made in `parent`."""
        key = os.getpid(), parent
        if key not in self._cleared:
            self._cleared.add(key)
            _remove_leftovers(parent)
        new = tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=parent)
        try:
            self._lock = os.open(os.path.join(new, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Some file systems have no locks: there, nothing is ever removed by others.
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path = os.path.join(parent, _PREFIX + os.path.basename(new)[len(_NEW_PREFIX) :])
            os.rename(new, self.path)
        except OSError:
            remove_tree(new)
            raise
        self._closing = threading.Lock()

    @classmethod
    def near(cls, content: Content, source: Source, temp_root: str | os.PathLike[str] | None) -> _Directory:
        """One on the file system of the source, else in `temp_root`. Raises NoSnapshot."""
        problem: OSError | None = None
        for parent in [*_parents(content, source), os.fspath(temp_root or tempfile.gettempdir())]:
            try:
                return cls(parent)
            except OSError as error:
                problem = error
        raise NoSnapshot(f"no directory can be made for it: {problem}")

    def close(self) -> None:
        with self._closing:
            if self._lock >= 0:
                remove_tree(self.path)
                os.close(self._lock)
                self._lock = -1


def _parents(content: Content, source: Source) -> list[str]:
    """Where a hidden directory may be: beside the source, or in it if it is where a file system is mounted."""
    if isinstance(content, (str, os.PathLike)):
        real = os.path.realpath(content)
        parent = os.path.dirname(real)
        if not os.path.isdir(real):
            return [parent]
        with contextlib.suppress(OSError):
            if os.stat(parent).st_dev != os.stat(real).st_dev:
                return [real]
        return [parent, real]
    largest = max((file for file in source.files if file.content is None), key=lambda file: file.size)
    return [os.path.dirname(os.path.realpath(largest.location))]


def _remove_leftovers(parent: str) -> None:
    """Remove snapshots of processes that were killed."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
        for path in left:
            with contextlib.suppress(OSError):
                lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(path)
                finally:
                    os.close(lock)


def _clone_all(source: Source, directory: _Directory) -> Source:
    cloner = _Cloner(source, directory.path)
    files = []
    for number, file in enumerate(source.files):
        clone = file if file.content is not None else cloner.clone(file, number)
        if clone is not None:
            files.append(clone)
    return Source(files, source.dirs)


class _Cloner:
    """Clones files into a directory."""

    def __init__(self, source: Source, directory: str) -> None:
        self._directory = directory
        self._left = sum(file.size for file in source.files if file.content is None)
        self._links = True
        """Whether blocks can be shared, as far as is known."""
        self._has_room = False

    def clone(self, file: SourceFile, number: int) -> SourceFile | None:
        """A file's clone; None where the file was removed. Raises SourceError, NoSnapshot."""
        location = os.path.join(self._directory, str(number))
        for attempt in range(FILE_ATTEMPTS):
            if file.gone:
                return None
            try:
                self._clone(file, number, location, may_grow=attempt == FILE_ATTEMPTS - 1)
            except Changed:
                file = look_again(file)
                continue
            self._left -= file.size
            info = os.stat(location)
            times = info.st_mtime_ns, info.st_ctime_ns
            return SourceFile(file.path, location, file.size, file.mode, *times, info.st_ino, 1, named=True)
        raise keeps_changing(file)

    def _clone(self, file: SourceFile, number: int, location: str, *, may_grow: bool) -> None:
        fd = open_for_reading(file, number)
        try:
            out = os.open(location, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                self._copy(file, number, fd, out)
                now = os.fstat(fd)
                if not is_unchanged(file, now) and not (may_grow and has_grown(file, now) and _begins_as(fd, out)):
                    raise Changed(number)
            finally:
                os.close(out)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoSnapshot(f"there is no room for a copy in {self._directory}: {error.strerror}") from error
            raise unreadable(file, error) from error
        finally:
            os.close(fd)

    def _copy(self, file: SourceFile, number: int, fd: int, out: int) -> None:
        if self._links:
            try:
                # All of the file, at one moment.
                fcntl.ioctl(out, _FICLONE, fd)
                os.ftruncate(out, file.size)
                return
            except OSError:
                self._links = False
        if not self._has_room:
            self._demand_room(out)
        wait_for_tick([file])
        at = 0
        copies = hasattr(os, "copy_file_range")
        while at < file.size:
            if copies:
                try:
                    count = os.copy_file_range(fd, out, file.size - at, at, at)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
                    copies = False
                    continue
            else:
                block = os.pread(fd, min(_BLOCK_BYTES, file.size - at), at)
                count = os.pwrite(out, block, at) if block else 0
            if not count:
                raise Changed(number)
            at += count

    def _demand_room(self, out: int) -> None:
        disk = os.fstatvfs(out)
        free = disk.f_bavail * disk.f_frsize
        if free < self._left * _MARGIN:
            raise NoSnapshot(f"a copy needs {self._left} bytes and 5 %, and {self._directory} has {free} free")
        self._has_room = True


def _begins_as(fd: int, out: int) -> bool:
    """Whether a file that has grown still begins with what was copied."""
    at = 0
    while block := os.pread(out, _BLOCK_BYTES, at):
        if os.pread(fd, len(block), at) != block:
            return False
        at += len(block)
    return True


def _move(content: Content, source: Source) -> Snapshot:
    """Move what the caller named into a hidden directory beside it. Raises NoSnapshot where that cannot be."""
    named: list[tuple[str, str | os.PathLike[str]]]
    if isinstance(content, Mapping):
        named = [(path, value) for path, value in content.items() if isinstance(value, (str, os.PathLike))]
    else:
        assert isinstance(content, (str, os.PathLike))
        named = [("", content)]
    paths = [os.path.abspath(value) for _, value in named]
    try:
        directory = _Directory(os.path.dirname(paths[0]))
    except OSError as error:
        raise NoSnapshot(f"no directory can be made beside {paths[0]!r}: {error}") from error
    moved: list[tuple[str, str]] = []
    try:
        for number, path in enumerate(paths):
            if os.path.islink(path):
                raise NoSnapshot(f"{path!r} is a link")
            location = os.path.join(directory.path, str(number))
            os.rename(path, location)
            moved.append((path, location))
        files = [file for file in source.files if file.content is not None]
        for (name, _), (path, location) in zip(named, moved, strict=True):
            files += _found_again(name, path, scan(location, warns=False), source)
        if len(files) < len(source.files):
            raise NoSnapshot(f"{paths[0]!r} holds links that lead out of it")
    except BaseException as error:
        Snapshot(source, directory, moved).give_back()
        if isinstance(error, OSError):
            raise NoSnapshot(f"{paths[0]!r} cannot be moved: {error}") from error
        raise
    files.sort(key=lambda file: os.fsencode(file.path))
    return Snapshot(Source(files, source.dirs), directory, moved)


def _found_again(name: str, original: str, there: Source, source: Source) -> list[SourceFile]:
    """The files of `source` that are in `there` since `original` was moved, at their new locations."""
    known = {(file.path, file.inode, file.size) for file in source.files}
    found = []
    for file in there.files:
        below = f"{name}/{file.path}" if name else file.path
        path = (name or os.path.basename(original)) if file.named else below
        if (path, file.inode, file.size) in known:
            found.append(replace(file, path=path, named=True))
    return found
