"""Snapshots: the caller may change the source as soon as there is one, and it is stored later.

What is in memory stays there. Files are cloned on their own file system: by reflink, else by copy_file_range, else by
read and write. Each clone is one state that its file had, which is found out as in a save (see `source.py`). Clones
have no name, and are read from descriptors: nothing is left when the process is killed, and the caller may remove the
directory. Where there are too many for descriptors, the smallest are together in one file, which is mapped into memory.
With `consume`, files are moved into a hidden directory, and the largest are held open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import FileIO

from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.locks import lock_name
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
from metaflow_artifacts.errors import SourceError

__all__ = ["NoSnapshot", "Snapshot", "take_snapshot"]

_IN_MEMORY_BYTES = 1 << 20
"""Files of at most this many bytes in all are read into memory instead."""
_BLOCK_BYTES = 1 << 20
_DESCRIPTORS = 256
"""How many files of a snapshot are held open at most; fewer where the process may open few."""
_MARGIN = 1.05
"""A snapshot is made where at least this many times its size is free."""
_PREFIX = f"{STAGING_PREFIX}snapshot_"
_NEW_PREFIX = f"{STAGING_PREFIX}new_"
_FICLONE = 0x40049409
"""Linux: make a file share the blocks of another one."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSnapshot(Exception):
    """There can be no snapshot, for the reason in the message: store the source itself. Nothing was changed."""


class Snapshot:
    """What is to be stored, with its open files and the hidden directory of what was moved."""

    def __init__(
        self,
        source: Source,
        directory: _Directory | None = None,
        moved: list[tuple[str, str]] | None = None,
        opened: Iterable[FileIO] = (),
    ):
        self.source = source
        self._directory = directory
        self._moved = moved or []
        self._opened = list(opened)
        if self._opened or directory is not None:
            _snapshots.add(self)

    def close(self) -> None:
        """Close the files, and remove the directory. Nothing is raised."""
        self._close_files()
        if self._directory is not None:
            self._directory.close()

    def _close_files(self) -> None:
        for file in self._opened:
            with contextlib.suppress(OSError):
                file.close()

    def give_back(self) -> None:
        """Move what was consumed back to where it was, unless something else is there; then `close`."""
        for path, location in self._moved:
            with contextlib.suppress(OSError):
                if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
                    os.rename(location, path)
        self.close()

    def forget(self) -> None:
        """In a forked child: close its copies of the descriptors, which would outlive the parent with it."""
        self._close_files()
        if self._directory is not None:
            self._directory.unlock()


_snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()


def _forget() -> None:
    for snapshot in list(_snapshots):
        snapshot.forget()


os.register_at_fork(after_in_child=_forget)


def take_snapshot(
    content: Content, *, consume: bool = False, temp_root: str | os.PathLike[str] | None = None
) -> Snapshot:
    """A snapshot of a file, directory or mapping. The caller closes it.

    With `consume`, files and directories are moved. `temp_root` is where a snapshot is made
    if the source's file system cannot be written to. Raises NoSnapshot where there is no room, or where `consume` would
    have to copy; else as `source_of`, and SourceError for a file that changes each time it is cloned.
    """
    source = source_of(content)
    if all(file.content is not None for file in source.files):
        # Nobody can change a mapping of bytes, nor a directory without files.
        return Snapshot(source)
    if consume:
        return _move(content, source)
    if sum(file.size for file in source.files if file.content is None) <= _IN_MEMORY_BYTES:
        source = _read(source) or source
        if all(file.content is not None for file in source.files):
            return Snapshot(source)
    cloner = _Cloner(source, _writable(content, source, temp_root))
    try:
        return Snapshot(cloner.clone_all(), opened=cloner.opened)
    except BaseException:
        for file in cloner.opened:
            file.close()
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

    def __init__(self, parent: str) -> None:
        """Raises OSError where it cannot be made in `parent`."""
        _clear(parent)
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


def _writable(content: Content, source: Source, temp_root: str | os.PathLike[str] | None) -> str:
    """A directory on the file system of the source in which files can be made, else `temp_root`. Raises NoSnapshot."""
    problem: OSError | None = None
    for parent in [*_parents(content, source), os.fspath(temp_root or tempfile.gettempdir())]:
        try:
            _unnamed(parent).close()
            _clear(parent)
            return parent
        except OSError as error:
            problem = error
    raise NoSnapshot(f"no file can be made for it: {problem}")


def _unnamed(parent: str) -> FileIO:
    """A new file without a name on the file system of `parent`. Raises OSError."""
    file = tempfile.TemporaryFile(buffering=0, prefix=_NEW_PREFIX, dir=parent)  # noqa: SIM115
    assert isinstance(file, FileIO)
    return file


def _parents(content: Content, source: Source) -> list[str]:
    """Directories on the file system of the source: that which it is in, and itself."""
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


_cleared: set[tuple[int, str]] = set()
"""Directories in which this process has looked for what is left, with its id."""


def _clear(parent: str) -> None:
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


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Three snapshots may be there at a time.
    return _DESCRIPTORS if soft == resource.RLIM_INFINITY else min(_DESCRIPTORS, soft // 8)


def _largest(files: Iterable[tuple[int, SourceFile]]) -> set[int]:
    """The numbers of the files that get a descriptor each."""
    by_size = sorted(((file.size, number) for number, file in files if file.content is None), reverse=True)
    return {number for _, number in by_size[: _descriptors()]}


class _Cloner:
    """Clones files to where they have no name."""

    def __init__(self, source: Source, directory: str) -> None:
        self.opened: list[FileIO] = []
        self._source = source
        self._directory = directory
        self._left = sum(file.size for file in source.files if file.content is None)
        self._links = True
        """Whether blocks can be shared, as far as is known."""
        self._has_room = False
        self._shared: FileIO | None = None
        """Holds the files that have no descriptor of their own."""
        self._shared_size = 0

    def clone_all(self) -> Source:
        """Clones of all files; those that were removed are left out. Raises SourceError, NoSnapshot."""
        files: list[SourceFile] = []
        shared: dict[int, int] = {}
        """Offsets by place in `files`."""
        apart = _largest(enumerate(self._source.files))
        for number, file in enumerate(self._source.files):
            if file.content is not None:
                files.append(file)
                continue
            at = 0 if number in apart else self._shared_size
            clone = self._clone_one(file, number, None if number in apart else self._shared_file())
            if clone is None:
                continue
            if number not in apart:
                shared[len(files)] = at
                self._shared_size += clone.size
            files.append(clone)
        if self._shared is not None:
            view = memoryview(b"")
            if self._shared_size:
                view = memoryview(mmap.mmap(self._shared.fileno(), self._shared_size, prot=mmap.PROT_READ))
            for place, at in shared.items():
                content = view[at : at + files[place].size]
                files[place] = replace(files[place], content=content, shared=(self._shared, at))
        return Source(files, self._source.dirs)

    def _shared_file(self) -> FileIO:
        if self._shared is None:
            self._shared = self._make()
        return self._shared

    def _make(self) -> FileIO:
        try:
            file = _unnamed(self._directory)
        except OSError as error:
            raise NoSnapshot(f"no file can be made in {self._directory}: {error.strerror}") from error
        self.opened.append(file)
        return file

    def _clone_one(self, file: SourceFile, number: int, shared: FileIO | None) -> SourceFile | None:
        """A file's clone, in a file of its own or at the end of `shared`; None where the file was removed."""
        if file.gone:
            return None
        out, base = (self._make(), 0) if shared is None else (shared, self._shared_size)
        for attempt in range(FILE_ATTEMPTS):
            if file.gone:
                return None
            try:
                self._clone(file, number, out.fileno(), base, may_grow=attempt == FILE_ATTEMPTS - 1)
            except Changed:
                file = look_again(file)
                continue
            self._left -= file.size
            info = os.fstat(out.fileno())
            times = info.st_mtime_ns, info.st_ctime_ns
            inode, links = info.st_ino, info.st_nlink
            fd = out.fileno() if shared is None else None
            return SourceFile(file.path, file.location, file.size, file.mode, *times, inode, links, named=True, fd=fd)
        raise keeps_changing(file)

    def _clone(self, file: SourceFile, number: int, out: int, base: int, *, may_grow: bool) -> None:
        fd = open_for_reading(file, number)
        try:
            os.ftruncate(out, base)
            self._copy(file, number, fd, out, base)
            now = os.fstat(fd)
            if is_unchanged(file, now):
                return
            if not (may_grow and has_grown(file, now) and _begins_as(fd, out, base)):
                raise Changed(number)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoSnapshot(f"there is no room for a copy in {self._directory}: {error.strerror}") from error
            raise unreadable(file, error) from error
        finally:
            os.close(fd)

    def _copy(self, file: SourceFile, number: int, fd: int, out: int, base: int) -> None:
        if self._links and not base:
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
                    count = os.copy_file_range(fd, out, file.size - at, at, base + at)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
                    copies = False
                    continue
            else:
                block = os.pread(fd, min(_BLOCK_BYTES, file.size - at), at)
                count = os.pwrite(out, block, base + at) if block else 0
            if not count:
                raise Changed(number)
            at += count

    def _demand_room(self, out: int) -> None:
        disk = os.fstatvfs(out)
        free = disk.f_bavail * disk.f_frsize
        if free < self._left * _MARGIN:
            raise NoSnapshot(f"a copy needs {self._left} bytes and 5 %, and {self._directory} has {free} free")
        self._has_room = True


def _begins_as(fd: int, out: int, base: int) -> bool:
    """Whether a file that has grown still begins with what was copied to the end of `out`, from `base` on."""
    at = 0
    while block := os.pread(out, _BLOCK_BYTES, base + at):
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
            there = scan(location, warns=False)
            if _leads_out(location, there):
                raise NoSnapshot(f"{path!r} holds links that lead out of it")
            files += _found_again(name, path, there, source)
        if len(files) < len(source.files):
            raise NoSnapshot(f"{paths[0]!r} holds links that lead out of it")
    except BaseException as error:
        Snapshot(source, directory, moved).give_back()
        if isinstance(error, OSError):
            raise NoSnapshot(f"{paths[0]!r} cannot be moved: {error}") from error
        raise
    files.sort(key=lambda file: os.fsencode(file.path))
    opened = _hold(files)
    return Snapshot(Source(files, source.dirs), directory, moved, opened)


def _hold(files: list[SourceFile]) -> list[FileIO]:
    """Open the largest of `files`, and replace their entries: the caller may remove the directory they are in."""
    opened = []
    for number in _largest(enumerate(files)):
        with contextlib.suppress(OSError, Changed, SourceError):
            fd = open_for_reading(files[number], number)
            opened.append(FileIO(fd))
            files[number] = replace(files[number], fd=fd)
    return opened


def _leads_out(location: str, there: Source) -> bool:
    """Whether a link leads to what was not moved, and may be written to."""
    above = os.path.join(os.path.realpath(location), "")
    real: dict[str, str] = {}
    for file in there.files:
        if file.named:
            continue
        directory, name = os.path.split(file.location)
        if directory not in real:
            real[directory] = os.path.join(os.path.realpath(directory), "")
        path = os.path.realpath(file.location) if os.path.islink(file.location) else real[directory] + name
        if not path.startswith(above):
            return True
    return False


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
