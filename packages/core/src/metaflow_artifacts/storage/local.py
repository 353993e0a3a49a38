"""Objects as files below a directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, NoReturn, TypeVar

from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    InvalidReference,
    StorageError,
    TransientStorageError,
)
from metaflow_artifacts.storage._names import TEMPORARY, check_key, check_prefix, is_key
from metaflow_artifacts.storage.base import ObjectInfo, Storage

__all__ = ["LocalStorage"]

_T = TypeVar("_T")

# Not to wait for a writer where somebody left a named pipe; files are not concerned.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# Another process may remove an empty directory between its making and its use; this often, it is a fault.
_ATTEMPTS = 20

_REASONS = {
    errno.ENOSPC: "the disk is full; free space there or choose another datastore root",
    errno.EDQUOT: "the disk quota is used up; free space there or choose another datastore root",
    errno.EACCES: "permission denied; check owner and mode, or choose another datastore root",
    errno.EPERM: "permission denied; check owner and mode, or choose another datastore root",
    errno.EROFS: "the file system is read-only; remount it or choose another datastore root",
    errno.ENOENT: "it is not there, or was removed meanwhile; try again when the store is there",
    errno.ENOTDIR: "a file lies where a directory is needed; move it away",
    errno.EISDIR: "a directory lies where a file is needed; move it away",
    errno.EXDEV: "it lies on another file system than the rest of the store; keep the store on one",
    errno.ELOOP: "its symbolic links lead in a circle; remove them",
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n)",
    errno.EIO: "the disk or the network file system reports an input/output error",
}
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_PASSING = frozenset({errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE})


class LocalStorage(Storage):
    """Objects as ordinary files below a directory, which is made at the first write.

    A write goes to a temporary name in `mf.artifacts/tmp/` below the same root and is then renamed (or linked,
    where the key must not exist), so that readers and other writers see all of an object or none of it, and a
    writer that is killed leaves only a temporary file (see `leftovers`).

    Nothing is synced to the disk: a killed process loses nothing, since what it had written is the kernel's. After
    a power loss an object may be empty or cut short; every chunk is verified by its hash when it is loaded, so
    this is noticed, and the price of a sync for each chunk would be paid by every save.

    Directories that are symbolic links are followed for a key, and not when keys are listed below them.
    """

    stages_in_memory: ClassVar[bool] = False

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.path.expanduser(os.fspath(root)))
        # More would only take turns: at hashing, and with small files at the interpreter's lock.
        self.threads = min(4, max(2, os.cpu_count() or 1))
        self._temporary = os.path.join(self.root, *TEMPORARY.strip("/").split("/"))

    def __repr__(self) -> str:
        return f"LocalStorage({self.root!r})"

    def put(self, key: str, data: bytes) -> None:
        target = self._path(key, writing=True)
        with self._temporary_file(target) as (fd, name):
            _write(fd, memoryview(data), target)
            self._place(os.replace, name, target)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self._path(key, writing=True)
        # The usual answer for a retry, without writing anything.
        if os.path.lexists(target):
            return self._lost_to(target)
        with self._temporary_file(target) as (fd, name):
            _write(fd, memoryview(data), target)
            try:
                self._place(os.link, name, target)
            except StorageError as error:
                number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
                if number == errno.EEXIST:
                    # A network file system may have made the link and lost the answer, and then tried again.
                    return os.fstat(fd).st_nlink > 1 or self._lost_to(target)
                if number in _NO_LINKS:
                    return self._place_under_lock(name, target)
                raise
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self.open(key, start, length) as reader:
            data = bytearray(reader.remaining)
            view = memoryview(data)
            done = 0
            while done < len(data) and (count := reader.readinto(view[done:])):
                done += count
        return bytes(view[:done])

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[_FileReader]:
        path = self._path(key)
        if start < 0 or (length is not None and length < 0):
            raise InvalidReference(f"range of {key!r}: start {start} and length {length} must not be negative")
        try:
            fd = os.open(path, _READ)
        except OSError as error:
            _raise(error, "read", path, key)
        try:
            try:
                status = os.fstat(fd)
            except OSError as error:
                _raise(error, "read", path, key)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactNotFound(f"nothing is stored at {path}: it is not a file; check the key {key!r}")
            end = status.st_size if length is None else min(status.st_size, start + length)
            yield _FileReader(fd, path, start, end)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def stage(self, size: int) -> Iterator[_StagedFile]:
        with self._temporary_file(self.root) as (fd, name):
            yield _StagedFile(self, fd, name)

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in _MISSING:
                return None
            _raise(error, "read", path)
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        above, slash, start = prefix.rpartition("/")
        return self._walk(f"{self.root}/{above}" if above else self.root, above + slash, start)

    def _walk(self, directory: str, prefix: str, start: str = "") -> Iterator[ObjectInfo]:
        if prefix == TEMPORARY:
            return
        directories = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = entry.name
                    if not name.startswith(start):
                        continue
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            directories.append(name)
                            continue
                        status = entry.stat()
                    except OSError as error:
                        if error.errno in _MISSING:
                            continue
                        raise
                    key = prefix + name
                    if stat.S_ISREG(status.st_mode) and is_key(key):
                        yield ObjectInfo(key, status.st_size, status.st_mtime)
        except OSError as error:
            if error.errno in _MISSING:
                return
            _raise(error, "list", directory)
        for name in directories:
            yield from self._walk(f"{directory}/{name}", f"{prefix}{name}/")

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            try:
                os.unlink(path)
            except OSError as error:
                if error.errno in _MISSING or os.path.isdir(path):
                    continue
                _raise(error, "delete", path)

    def touch(self, key: str, after: float = 0.0) -> bool:
        path = self._path(key)
        try:
            os.utime(path)
        except OSError as error:
            if error.errno in _MISSING:
                return False
            _raise(error, "refresh the time of", path)
        return not os.path.isdir(path)

    def url(self, key: str) -> str:
        return f"{self.root}/{key}" if self.root != "/" else f"/{key}"

    def identity(self) -> object:
        try:
            info = os.stat(self.root)
        except OSError:
            return None
        return info.st_dev, info.st_ino

    def leftovers(self) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._temporary) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                            yield ObjectInfo(TEMPORARY + entry.name, status.st_size, status.st_mtime)
        except OSError as error:
            if error.errno not in _MISSING:
                _raise(error, "list", self._temporary)

    def _path(self, key: str, *, writing: bool = False) -> str:
        check_key(key, writing=writing)
        return f"{self.root}/{key}"

    @contextlib.contextmanager
    def _temporary_file(self, target: str) -> Iterator[tuple[int, str]]:
        """A new file that is gone at the end unless it was renamed; mode and owner are those of any new file."""
        name = f"{self._temporary}/{os.getpid()}-{uuid.uuid4().hex}"
        fd = _in_directory(lambda: os.open(name, _CREATE, 0o666), self._temporary, target)
        try:
            yield fd, name
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(name)

    def _place(self, operation: Callable[[str, str], None], name: str, target: str) -> None:
        _in_directory(lambda: operation(name, target), os.path.dirname(target), target)

    def _lost_to(self, target: str) -> bool:
        if os.path.isdir(target):
            raise StorageError(f"cannot write {target}: {_REASONS[errno.EISDIR]}")
        return False

    def _place_under_lock(self, name: str, target: str) -> bool:
        """Where the file system has no hard links: look and rename while no other writer does."""
        import fcntl

        lock = f"{self._temporary}/.lock"
        try:
            with open(lock, "ab") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                if os.path.lexists(target):
                    return self._lost_to(target)
                self._place(os.replace, name, target)
        except OSError as error:
            _raise(error, "lock", lock)
        return True


class _FileReader:
    def __init__(self, fd: int, path: str, start: int, end: int) -> None:
        self._fd = fd
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
                count = os.preadv(self._fd, [buffer[done:wanted]], self._position)
                if not count:
                    # Shorter than when it was opened: objects are replaced, never rewritten.
                    self.remaining = done
                    break
                done += count
                self._position += count
        except OSError as error:
            _raise(error, "read", self._path)
        self.remaining -= done
        return done


class _StagedFile:
    def __init__(self, storage: LocalStorage, fd: int, name: str) -> None:
        self._storage = storage
        self._fd = fd
        self._name = name

    def write(self, block: memoryview, /) -> None:
        _write(self._fd, block, self._name)

    def commit(self, key: str, sha256: bytes) -> None:
        target = self._storage._path(key, writing=True)
        self._storage._place(os.replace, self._name, target)


def _write(fd: int, data: memoryview, path: str) -> None:
    try:
        while len(data):
            data = data[os.write(fd, data) :]
    except OSError as error:
        _raise(error, "write", path)


def _in_directory(operation: Callable[[], _T], directory: str, path: str) -> _T:
    """Run `operation`, which makes an entry of `directory`, making the directory first where it is missing."""
    for attempt in range(_ATTEMPTS):
        try:
            return operation()
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS - 1:
                _raise(error, "write", path)
        except OSError as error:
            _raise(error, "write", path)
        try:
            os.makedirs(directory, exist_ok=True)
        except FileNotFoundError:
            # Another process removed a directory above it meanwhile.
            continue
        except FileExistsError as error:
            raise StorageError(f"cannot write {path}: {_REASONS[errno.ENOTDIR]}") from error
        except OSError as error:
            _raise(error, "make the directory", error.filename or directory)
    raise AssertionError("unreachable")


def _raise(error: OSError, action: str, path: str, key: str | None = None) -> NoReturn:
    """Raise what an operating system's error means to the user of a store, chained to it."""
    number = error.errno
    if key is not None and number in _MISSING:
        raise ArtifactNotFound(f"nothing is stored at {path}; check the key {key!r} and the datastore") from error
    if number == errno.ENAMETOOLONG:
        raise InvalidReference(f"cannot {action} {path}: the path is too long for the file system") from error
    reason = _REASONS.get(number or 0) or error.strerror or str(error)
    kind: type[ArtifactError] = TransientStorageError if number in _PASSING else StorageError
    raise kind(f"cannot {action} {path}: {reason}") from error
