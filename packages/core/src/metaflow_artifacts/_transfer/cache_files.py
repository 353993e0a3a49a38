"""The files of a node's cache: one directory, which many processes and several users may share.

    DIR/metaflow_artifacts/<sha256>         a chunk; its time of modification is that of its last use
    DIR/metaflow_artifacts/<name>.part      a chunk that a process is writing
    DIR/metaflow_artifacts/<name>.<x>.part  the same, where another user's `<name>.part` is in the way
    DIR/metaflow_artifacts/<name>.lock      held (flock) by that process, and removed by it

The kernel releases a lock when its process ends, however it ends: what is then left of the chunk is nobody's. Nothing
here is trusted: a file may be cut, changed, a link or a FIFO that somebody has put there. No link is followed, and the
caller verifies every byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["CacheFiles", "CachedChunk", "NoCache", "NoPart", "Part"]

_TOP = "metaflow_artifacts"
_PART, _LOCK = ".part", ".lock"
_NAME = re.compile(r"([0-9a-f]{64})((?:\.[0-9a-f]{32})?\.part|\.lock)?")
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | _SAFE | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_IS_SUPPORTED = fcntl is not None and {os.open, os.stat, os.mkdir, os.unlink, os.rename} <= os.supports_dir_fd


class NoCache(OSError):
    """The directory cannot be a cache: the system or the file system lacks what it needs."""


class NoPart(OSError):
    """One chunk cannot be written: what is in the place of its lock is no lock."""


@dataclass(frozen=True)
class CachedChunk:
    """One chunk in the cache: its digest (hex), its bytes, and when it was last used (seconds since the epoch)."""

    sha256: str
    size: int
    used: float


@dataclass(frozen=True)
class _Entry:
    name: str
    digest: str
    kind: str
    size: int
    used: float


class Part:
    """A file that this process writes, and whose lock it holds. In a forked child it can write nothing."""

    def __init__(self, files: CacheFiles, name: str, lock: int) -> None:
        self._files = files
        self._name = name
        self._file = ""
        self._lock: int | None = lock
        self._fd: int | None = None
        _parts.add(self)

    def restart(self) -> None:
        """Begin with an empty file. Raises OSError."""
        if self._lock is None:
            raise NoCache("the chunk is the parent process's")
        if self._fd is None:
            self._fd, self._file = self._files.create(self._name)
        else:
            os.lseek(self._fd, 0, os.SEEK_SET)
            os.ftruncate(self._fd, 0)

    def write(self, block: memoryview) -> None:
        """Append a block. Raises OSError."""
        if self._fd is None:
            raise NoCache("the chunk is the parent process's")
        while block:
            block = block[os.write(self._fd, block) :]

    def commit(self, sha256: str) -> None:
        """Make what was written the chunk with this digest. Raises OSError."""
        if self._fd is None:
            raise NoCache("the chunk is the parent process's")
        with self._files.opened() as top:
            # After somebody has emptied the cache, the file of this name may be another process's.
            if os.path.samestat(os.fstat(self._fd), os.stat(self._file, dir_fd=top, follow_symlinks=False)):
                os.rename(self._file, sha256, src_dir_fd=top, dst_dir_fd=top)
        fd, self._fd = self._fd, None
        os.close(fd)

    def drop(self) -> None:
        """Remove what was written, if it was not committed."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
            self._files.remove(self._file)

    def close(self) -> None:
        """Remove what was not committed, and release the lock."""
        self.drop()
        if self._lock is not None:
            self._files.remove(self._name + _LOCK)
            lock, self._lock = self._lock, None
            # A process that is not forked by Python may have a copy of the descriptor, with which the lock would stay.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def forget(self) -> None:
        """Close the descriptors, and leave the files and the lock to the process that has made them."""
        for fd in (self._fd, self._lock):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock = None


_parts: weakref.WeakSet[Part] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child: close its copies of the locks, which would outlive the parent with it."""
    for part in list(_parts):
        part.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class CacheFiles:
    """The files below one directory. Methods raise OSError where nothing else is said."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory that holds the files. With `make`, it is made if it does not exist."""
        if not _IS_SUPPORTED:
            raise NoCache(f"this system has no flock, or cannot open files relative to a directory: {self.directory!r}")
        if make:
            os.makedirs(self.directory, exist_ok=True)
        outer = os.open(self.directory, _DIRECTORY)
        try:
            top = _inner(outer, make)
        finally:
            os.close(outer)
        try:
            yield top
        finally:
            os.close(top)

    def holds(self, sha256: str, size: int) -> bool:
        """Whether there is a file of this chunk's name and size. Raises nothing."""
        with contextlib.suppress(OSError), self.opened() as top:
            info = os.stat(sha256, dir_fd=top, follow_symlinks=False)
            return stat.S_ISREG(info.st_mode) and info.st_size == size
        return False

    @contextmanager
    def reading(self, sha256: str, size: int) -> Iterator[Any]:
        """The chunk's file, open for unbuffered reading, and marked as used now; None where there is none.

        What is no file of this size is removed.
        """
        fd = self._open(sha256, size)
        if fd is None:
            yield None
            return
        with open(fd, "rb", buffering=0) as file:
            yield file

    def _open(self, sha256: str, size: int) -> int | None:
        try:
            with self.opened() as top:
                fd = os.open(sha256, _READ, dir_fd=top)
        except OSError:
            # What cannot be opened but looks right is another user's, and stays. A link goes.
            if not self.holds(sha256, size):
                self.remove(sha256)
            return None
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_size == size:
            with contextlib.suppress(OSError):  # another user's
                os.utime(fd)
            return fd
        os.close(fd)
        self.remove(sha256, info)
        return None

    def remove(self, name: str, only: os.stat_result | None = None) -> bool:
        """Remove a file; with `only`, if it is this one. Whether it is gone. Raises nothing."""
        error = self.obstacle(name, only)
        return error is None or isinstance(error, FileNotFoundError)

    def obstacle(self, name: str, only: os.stat_result | None = None) -> OSError | None:
        """As `remove`, but returns what was in the way."""
        try:
            with self.opened() as top:
                if only is None or os.path.samestat(only, os.stat(name, dir_fd=top, follow_symlinks=False)):
                    os.unlink(name, dir_fd=top)
        except OSError as error:
            return error
        return None

    def is_blocked(self, sha256: str, size: int) -> bool:
        """Whether a chunk can be neither read nor replaced here: in its place is what only another user may remove.

        Raises nothing.
        """
        try:
            with self.opened() as top:
                os.stat(sha256, dir_fd=top, follow_symlinks=False)
        except OSError:
            return False
        with self.reading(sha256, size) as file:
            return file is None and not self.remove(sha256)

    def create(self, name: str) -> tuple[int, str]:
        """A descriptor of a new, empty part, in place of what a killed process has left there, and the file's name."""
        file = name + _PART
        with self.opened(make=True) as top:
            try:
                os.unlink(file, dir_fd=top)
            except FileNotFoundError:
                pass
            except OSError:
                # Another user's, who alone may remove it.
                file = f"{name}.{uuid.uuid4().hex}{_PART}"
            return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666, dir_fd=top), file

    def part(self, name: str) -> Part | None:
        """The right to write the part of this name, which one process at a time has; None where another has it.

        Raises NoPart where only this part cannot be written.
        """
        try:
            return self._part(name)
        except FileNotFoundError:
            # Somebody has just removed the directory, or put his own in its place.
            return self._part(name)

    def _part(self, name: str) -> Part | None:
        with self.opened(make=True) as top:
            lock = _open_lock(top, name + _LOCK)
            if lock is None:
                return None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it removes it before the lock is released.
                same = os.path.samestat(os.fstat(lock), os.stat(name + _LOCK, dir_fd=top, follow_symlinks=False))
            except (BlockingIOError, FileNotFoundError):
                same = False
            except OSError as error:
                os.close(lock)
                raise NoCache(f"the file system has no locks: {error.strerror}: {self.directory!r}") from error
        if not same:
            os.close(lock)
            return None
        return Part(self, name, lock)

    def progress(self, name: str) -> object:
        """A value that changes while a process writes the part of this name. Raises nothing."""
        with contextlib.suppress(OSError), self.opened() as top:
            info = os.stat(name + _PART, dir_fd=top, follow_symlinks=False)
            return info.st_ino, info.st_size, info.st_mtime_ns
        return None

    def _entries(self) -> list[_Entry]:
        found = []
        with contextlib.suppress(FileNotFoundError), self.opened() as top, os.scandir(top) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match is None:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    # The time of reading is for files of other users, whose time of modification cannot be set.
                    used = max(info.st_mtime, info.st_atime)
                    found.append(_Entry(entry.name, match[1], match[2] or "", info.st_size, used))
        return found

    def chunks(self) -> list[CachedChunk]:
        """The chunks in the cache, least recently used first."""
        found = [CachedChunk(entry.digest, entry.size, entry.used) for entry in self._entries() if not entry.kind]
        return sorted(found, key=lambda chunk: chunk.used)

    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self._entries())

    def shrink(self, size: int) -> tuple[int, int]:
        """Remove what killed processes have left, then chunks, least recently used first, until `size` bytes are left.

        What belongs to another user stays where the directory's permissions do not let this one remove it. Returns how
        many bytes are left, and how many chunks were removed.
        """
        entries = self._entries()
        left = sum(entry.size for entry in entries)
        for name in {entry.digest for entry in entries if entry.kind}:
            with contextlib.suppress(NoPart):
                left -= self._remove_left(name, [entry for entry in entries if entry.kind and entry.digest == name])
        removed = 0
        for entry in sorted((entry for entry in entries if not entry.kind), key=lambda entry: entry.used):
            if left <= size:
                break
            if self.remove(entry.name):
                left -= entry.size
                removed += 1
        return left, removed

    def _remove_left(self, name: str, entries: list[_Entry]) -> int:
        """Remove what a killed process has left of one chunk. How many bytes are gone."""
        part = self.part(name)
        if part is None:
            return 0
        try:
            return sum(entry.size for entry in entries if entry.kind != _LOCK and self.remove(entry.name))
        finally:
            part.close()

    def free(self) -> tuple[int, int]:
        """The bytes of the file system that are free, and of all of it. Nothing is made."""
        info = os.statvfs(self._nearest())
        return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize

    def device(self) -> int:
        """The number of the file system that the cache is on, or will be on."""
        return os.stat(self._nearest()).st_dev

    def _nearest(self) -> str:
        nearest = self.directory
        while not os.path.lexists(nearest) and nearest != os.path.dirname(nearest):
            nearest = os.path.dirname(nearest)
        return nearest


def _inner(outer: int, make: bool) -> int:
    """A descriptor of our directory inside of the one that the user has named."""
    if make:
        with contextlib.suppress(FileNotFoundError):
            return os.open(_TOP, _DIRECTORY | _SAFE, dir_fd=outer)
        _make_inner(outer)
    return os.open(_TOP, _DIRECTORY | _SAFE, dir_fd=outer)


def _make_inner(outer: int) -> None:
    # It has its name when it has its mode: others must not find a directory that they may not use.
    name = f"{_TOP}.{uuid.uuid4().hex}"
    os.mkdir(name, 0o700, dir_fd=outer)
    try:
        made = os.open(name, _DIRECTORY | _SAFE, dir_fd=outer)
        try:
            # So the user's directory says who may share the cache: its mode may be 1777, or 2775 with a group.
            os.fchmod(made, stat.S_IMODE(os.fstat(outer).st_mode))
        finally:
            os.close(made)
        os.rename(name, _TOP, src_dir_fd=outer, dst_dir_fd=outer)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=outer)
        try:
            # Another process may have made it.
            os.stat(_TOP, dir_fd=outer, follow_symlinks=False)
            return
        except FileNotFoundError:
            pass
        raise


def _open_lock(top: int, name: str) -> int | None:
    """A descriptor of a lock; None where another has it and is just making it."""
    # O_CREAT alone fails for files of others in a directory with the sticky bit (fs.protected_regular).
    while True:
        try:
            return os.open(name, _READ, dir_fd=top)
        except FileNotFoundError:
            pass
        except PermissionError:
            # Its mode is set after it was made. Without it, nothing in the directory can be used.
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=top, follow_symlinks=False)
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise NoPart(error.errno, error.strerror, name) from error
            raise
        with contextlib.suppress(FileExistsError):
            lock = os.open(name, _READ | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=top)
            # Whatever the umask: other users must be able to wait for it.
            os.fchmod(lock, 0o644)
            return lock
