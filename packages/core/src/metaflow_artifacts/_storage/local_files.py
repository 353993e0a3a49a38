"""Files of a store on a disk while they are read and written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from metaflow_artifacts._storage.job import check
from metaflow_artifacts._storage.local_errors import REASONS, raise_error
from metaflow_artifacts.errors import StorageError

__all__ = [
    "FileReader",
    "TemporaryFile",
    "digest_of",
    "in_directory",
    "is_same_file",
    "open_file",
    "parents",
    "read_bytes",
    "sync_directory",
]

_T = TypeVar("_T")

_BLOCK_BYTES = 512 << 10

# O_NONBLOCK: opening a named pipe must not wait for a writer. It has no effect on files.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# Another process may remove an empty directory before it is used.
_DIRECTORY_ATTEMPTS = 20


def open_file(path: str) -> int:
    """Open a file for reading: a descriptor."""
    return os.open(path, _READ)


def read_bytes(fd: int, path: str, start: int, end: int) -> bytes:
    """What an open file holds from `start` to `end`, or less where it became shorter."""
    data = b""
    try:
        while start + len(data) < end and (more := os.pread(fd, end - start - len(data), start + len(data))):
            data = data + more if data else more
    except OSError as error:
        raise_error(error, "read", path)
    return data


def digest_of(path: str) -> bytes:
    """The SHA-256 of a file. Raises StorageError."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                check()
                digest.update(block[:count])
    except OSError as error:
        raise_error(error, "read", path)
    return digest.digest()


def is_same_file(name: str, target: str) -> bool:
    """Whether both are names of one file; False where that cannot be asked."""
    with contextlib.suppress(OSError):
        return os.path.samefile(name, target)
    return False


class FileReader:
    """Reads an open file from `start` to `end`."""

    def __init__(self, fd: int, path: str, start: int, end: int) -> None:
        self.fd = fd
        self._path = path
        self._position = start
        self.remaining = max(0, end - start)
        if self.remaining > 1 << 20 and hasattr(os, "posix_fadvise"):
            # Advice only: some file systems refuse it.
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, start, self.remaining, os.POSIX_FADV_SEQUENTIAL)

    def readinto(self, buffer: memoryview, /) -> int:
        done = 0
        wanted = min(len(buffer), self.remaining)
        try:
            while done < wanted:
                count = os.preadv(self.fd, [buffer[done:wanted]], self._position)
                if not count:
                    # The file became shorter since it was opened, which no writer of a store does.
                    self.remaining = done
                    break
                done += count
                self._position += count
        except OSError as error:
            raise_error(error, "read", self._path)
        self.remaining -= done
        return done


class TemporaryFile:
    """A new file that is written and closed, and then renamed or linked to its key.

    Some file systems (NFS, those with quotas) report only at the close that the content was not stored. So a file is
    closed, and that error raised, before it gets its name.
    """

    def __init__(self, name: str) -> None:
        """Create the file; its mode and owner are those of any new file."""
        self.name = name
        self._fd = os.open(name, _CREATE, 0o666)

    def write(self, data: memoryview, target: str) -> None:
        """Append a block. Errors name `target`, the path that the file will have."""
        try:
            while len(data):
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise_error(error, "write", target)

    def copy(self, source: FileReader, size: int) -> bool:
        """Append what is left of another file, without reading it here, if that is `size` bytes and the system can."""
        if source.remaining != size or not hasattr(os, "copy_file_range"):
            return False
        done = 0
        try:
            while done < size and (count := os.copy_file_range(source.fd, self._fd, size - done, done)):
                done += count
        except OSError:
            # File systems of which one cannot do this, or a full disk: writing it will show.
            return False
        return done == size

    def finish(self, target: str, *, sync: bool) -> None:
        """Close the file; with `sync`, its content is on the disk then. Raises StorageError where that fails."""
        fd, self._fd = self._fd, -1
        try:
            try:
                if sync:
                    os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise_error(error, "write", target)

    def time(self) -> float:
        """When the file was written last, by the file system's clock."""
        return os.fstat(self._fd).st_mtime

    def discard(self) -> None:
        """Remove the file, unless it was renamed."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self.name)


def in_directory(operation: Callable[[], _T], directory: str, path: str) -> _T:
    """Run `operation`, which makes an entry of `directory`, making the directory first where it is missing."""
    for attempt in range(_DIRECTORY_ATTEMPTS):
        try:
            return operation()
        except FileNotFoundError as error:
            if attempt == _DIRECTORY_ATTEMPTS - 1:
                raise_error(error, "write", path)
        except OSError as error:
            raise_error(error, "write", path)
        try:
            os.makedirs(directory, exist_ok=True)
        except FileNotFoundError:
            # Another process removed a directory above it meanwhile.
            continue
        except FileExistsError as error:
            raise StorageError(f"cannot write {path}: {REASONS[errno.ENOTDIR]}") from error
        except OSError as error:
            raise_error(error, "make the directory", error.filename or directory)
    raise AssertionError("unreachable")


def sync_directory(path: str) -> None:
    """Sync the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems cannot sync directories.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def parents(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first."""
    while (above := os.path.dirname(path)) != path:
        yield above
        path = above
