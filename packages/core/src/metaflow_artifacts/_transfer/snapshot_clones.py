"""Clones of files, which the caller may then change: files without a name, on the same file system.

By reflink, else by copy_file_range, else by read and write. Each clone is one state that its file had, which is found
out as in a save (see `source.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
from io import FileIO

from metaflow_artifacts._transfer.content import Content
from metaflow_artifacts._transfer.hidden_files import clear, unnamed_file
from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again
from metaflow_artifacts._transfer.snapshot_parts import NoSnapshot, largest
from metaflow_artifacts._transfer.source import (
    FILE_ATTEMPTS,
    Changed,
    has_grown,
    is_unchanged,
    keeps_changing,
    open_for_reading,
    unreadable,
    wait_for_tick,
)

__all__ = ["Cloner", "writable_directory"]

_BLOCK_BYTES = 1 << 20
_MARGIN = 1.05
"""Clones are made where at least this many times their size is free."""
_FICLONE = 0x40049409
"""Linux: make a file share the blocks of another one."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def writable_directory(content: Content, source: Source, temp_root: str | os.PathLike[str] | None) -> str:
    """A directory on the file system of the source in which files can be made, else `temp_root`. Raises NoSnapshot."""
    problem: OSError | None = None
    for found in [*_parents(content, source), None]:
        try:
            # Where no directory for temporary files can be written to, this raises OSError.
            parent = found or os.fspath(temp_root or tempfile.gettempdir())
            unnamed_file(parent).close()
            clear(parent)
            return parent
        except OSError as error:
            problem = error
    raise NoSnapshot(f"no file can be made for it: {problem}")


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


class Cloner:
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
        apart = largest(enumerate(self._source.files))
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
                files[place] = files[place]._replace(content=content, shared=(self._shared, at))
        return Source(files, self._source.dirs)

    def _shared_file(self) -> FileIO:
        if self._shared is None:
            self._shared = self._make()
        return self._shared

    def _make(self) -> FileIO:
        try:
            file = unnamed_file(self._directory)
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
