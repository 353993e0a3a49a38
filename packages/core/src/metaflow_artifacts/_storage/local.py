"""Objects as files below a directory."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from metaflow_artifacts._storage.base import CopyOutcome, ObjectInfo, Storage
from metaflow_artifacts._storage.local_claims import Claim, uptime
from metaflow_artifacts._storage.local_errors import DENIED, MISSING, NO_LINKS, NO_LOCKS, REASONS, raise_error
from metaflow_artifacts._storage.local_files import (
    FileReader,
    TemporaryFile,
    digest_of,
    in_directory,
    is_same_file,
    open_file,
    parents,
    read_bytes,
    sync_directory,
)
from metaflow_artifacts._storage.local_walk import refuse_broken_links, walk
from metaflow_artifacts._storage.names import TEMPORARY, check_key, check_prefix, is_key
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError, TransientStorageError

__all__ = ["LocalStorage"]

_CLOCK_SECONDS = 5.0
"""How long a measured difference between the file system's clock and this machine's is used."""
_SETTLE_SECONDS = 60.0
"""How long after the start of the machine its clock may be set, and the file system be mounted."""


class LocalStorage(Storage):
    """Objects as ordinary files below a directory, which is made at the first write.

    A write goes to a temporary name in `mf.artifacts/tmp/` below the same root, is closed, and is then renamed (or
    linked, where the key must not exist). So readers and other writers see all of an object or none of it, and a
    writer that is killed leaves only a temporary file (see `leftovers`).

    Without `sync`, nothing is synced to the disk. A killed process loses nothing, since the kernel still writes out
    what it has accepted; but after a power failure an object may be empty or truncated. `is_settled` tells which
    objects may be. With `sync`, an object's content is on the disk before the object gets its name, and the name is
    on the disk when the write returns.

    Symbolic links to directories are followed for keys and in listings, each real directory once. A dangling link is
    an error, since its target may be on a disk that is not mounted.
    """

    stages_in_memory: ClassVar[bool] = False

    def __init__(self, root: str | os.PathLike[str], sync: bool = False) -> None:
        path = os.path.expanduser(os.fspath(root))
        try:
            self.root = os.path.abspath(path)
        except OSError as error:
            raise InvalidInput(
                f"datastore root {path!r}: it is relative to the working directory, which is gone ({error.strerror}); "
                "pass an absolute path"
            ) from error
        # More threads are no faster: they compete for cores to hash, and with small files for the interpreter's lock.
        self.threads = min(4, max(2, os.cpu_count() or 1))
        self._sync = sync
        self._synced: set[str] = set()
        self._clock = -math.inf, 0.0
        self._temporary = os.path.join(self.root, *TEMPORARY.strip("/").split("/"))

    def __repr__(self) -> str:
        return f"LocalStorage({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # What was measured and made sure of here may not hold where a copy is used.
        return type(self), (self.root, self._sync)

    @property
    def trusts_put_if_absent(self) -> bool:
        return True

    def put(self, key: str, data: bytes) -> None:
        target = self._path(key, writing=True)
        with self._temporary_file(target) as file:
            file.write(memoryview(data), target)
            file.finish(target, sync=self._sync)
            self._put_in_place(os.replace, file.name, target)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self._path(key, writing=True)
        # Most keys that exist are refused here, without writing anything.
        if os.path.lexists(target):
            return self._lost_to(target)
        with self._temporary_file(target) as file:
            file.write(memoryview(data), target)
            file.finish(target, sync=self._sync)
            return self._put_in_place_if_absent(key, file.name, target)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        fd, path, end = self._opened(key, start, length)
        try:
            return read_bytes(fd, path, start, end)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[FileReader]:
        check_key(key)
        with self.open_any(key, start, length) as reader:
            yield reader

    @contextlib.contextmanager
    def open_any(self, name: str, start: int = 0, length: int | None = None) -> Iterator[FileReader]:
        fd, path, end = self._opened(name, start, length)
        try:
            yield FileReader(fd, path, start, end)
        finally:
            os.close(fd)

    def _opened(self, key: str, start: int, length: int | None) -> tuple[int, str, int]:
        """A descriptor of the file of a key, its path, and where the range ends."""
        path = f"{self.root}/{key}"
        if start < 0 or (length is not None and length < 0):
            raise InvalidInput(f"range of {key!r}: start {start} and length {length} must not be negative")
        try:
            fd = open_file(path)
        except OSError as error:
            if error.errno in MISSING:
                refuse_broken_links(path)
            raise_error(error, "read", path, key)
        try:
            try:
                status = os.fstat(fd)
            except OSError as error:
                raise_error(error, "read", path, key)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactNotFound(f"nothing is stored at {path}: it is not a file; check the key {key!r}")
        except BaseException:
            os.close(fd)
            raise
        return fd, path, status.st_size if length is None else min(status.st_size, start + length)

    @contextlib.contextmanager
    def stage(self, size: int) -> Iterator[_StagedFile]:
        with self._temporary_file(self.root) as file:
            yield _StagedFile(self, file)

    def copy_from(self, source: Storage, key: str, size: int, sha256: bytes, *, strict: bool = False) -> CopyOutcome:
        """See Storage. The file system shares the content of the two files where it can, and copies it elsewhere.

        A hard link would share the time too. The content is read and hashed before it gets its name.
        """
        target = self._path(key, writing=True)
        if not isinstance(source, LocalStorage):
            return CopyOutcome.UNABLE
        try:
            with source.open(key) as reader, self._temporary_file(target) as file:
                if reader.remaining != size:
                    return CopyOutcome.UNFIT
                if not file.copy(reader, size):
                    return CopyOutcome.UNABLE
                if digest_of(file.name) != sha256:
                    return CopyOutcome.UNFIT
                file.finish(target, sync=self._sync)
                if not self._put_in_place_if_absent(key, file.name, target):
                    return CopyOutcome.EXISTS
        except TransientStorageError:
            raise
        except (StorageError, ArtifactNotFound):
            return CopyOutcome.UNFIT
        return CopyOutcome.COPIED

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in MISSING:
                refuse_broken_links(path)
                return None
            raise_error(error, "read", path)
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (info for info in self.list_any(prefix) if is_key(info.key))

    def list_any(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        above, slash, start = prefix.rpartition("/")
        return walk(f"{self.root}/{above}" if above else self.root, above + slash, start, self._temporary)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            check_key(key)
            self.delete_any([key])

    def delete_any(self, names: Iterable[str]) -> None:
        for name in names:
            path = f"{self.root}/{name}"
            try:
                os.unlink(path)
            except OSError as error:
                if error.errno in MISSING or os.path.isdir(path):
                    continue
                raise_error(error, "delete", path)

    def touch(self, key: str, after: float = 0.0) -> bool:
        path = self._path(key)
        try:
            os.utime(path)
            status = os.stat(path)
        except OSError as error:
            # Only the owner of a file, or who may write to it, can set its time. The caller writes it again.
            if error.errno in MISSING | DENIED:
                return False
            raise_error(error, "refresh the time of", path)
        return stat.S_ISREG(status.st_mode) and status.st_mtime > after

    def now(self) -> float:
        measured, lead = self._clock
        if time.monotonic() - measured > _CLOCK_SECONDS:
            lead = self._file_time() - time.time()
            self._clock = time.monotonic(), lead
        return time.time() + lead

    def _file_time(self) -> float:
        # No directory is made for this: reading must not create a store.
        try:
            file = TemporaryFile(self._temporary_name())
        except OSError:
            return time.time()
        try:
            return file.time()
        finally:
            file.discard()

    def is_settled(self, info: ObjectInfo) -> bool:
        return info.modified > time.time() - uptime() + _SETTLE_SECONDS

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
            if error.errno not in MISSING:
                raise_error(error, "list", self._temporary)

    def _path(self, key: str, *, writing: bool = False) -> str:
        check_key(key, writing=writing)
        return f"{self.root}/{key}"

    def _temporary_name(self) -> str:
        return f"{self._temporary}/{os.getpid()}-{os.urandom(16).hex()}"

    @contextlib.contextmanager
    def _temporary_file(self, target: str) -> Iterator[TemporaryFile]:
        """A new file, which is removed at the end unless it was renamed."""
        name = self._temporary_name()
        file = in_directory(lambda: TemporaryFile(name), self._temporary, target)
        try:
            yield file
        finally:
            file.discard()

    def _put_in_place(self, operation: Callable[[str, str], None], name: str, target: str) -> None:
        directory = os.path.dirname(target)

        def place() -> None:
            try:
                operation(name, target)
            except FileNotFoundError:
                # The directory is created again, and perhaps those above it are.
                self._synced.clear()
                raise

        in_directory(place, directory, target)
        if self._sync:
            try:
                self._sync_names(directory)
            except OSError as error:
                raise_error(error, "write", target)

    def _put_in_place_if_absent(self, key: str, name: str, target: str) -> bool:
        try:
            self._put_in_place(os.link, name, target)
        except StorageError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if number == errno.EEXIST:
                # A network file system may have made the link, lost the answer, and made the request again.
                return is_same_file(name, target) or self._lost_to(target)
            if number in NO_LINKS:
                return self._put_in_place_by_claim(key, name, target)
            raise
        return True

    def _sync_names(self, directory: str) -> None:
        """Sync a directory, and those above it that this storage has not synced yet, since they may be new too."""
        sync_directory(directory)
        for above in parents(directory):
            if directory in self._synced:
                return
            try:
                sync_directory(above)
            except PermissionError:
                # It belongs to another user, so it existed before.
                return
            finally:
                self._synced.add(directory)
            directory = above

    def _lost_to(self, target: str) -> bool:
        if os.path.isdir(target):
            raise StorageError(f"cannot write {target}: {REASONS[errno.EISDIR]}")
        return False

    def _put_in_place_by_claim(self, key: str, name: str, target: str) -> bool:
        """Put a file in place where the file system has no hard links: check and rename while no other writer does.

        A lock ends when its holder dies, but not every file system has locks. So each writer makes a claim too, in
        either case: machines with and without locks exclude each other.
        """
        claim = Claim(self._temporary, key, self.now)
        while True:
            try:
                if not claim.take(lambda: os.path.lexists(target)):
                    return self._lost_to(target)
                decided = False
                try:
                    with self._locked():
                        decided = os.path.lexists(target)
                        if decided:
                            return self._lost_to(target)
                        if claim.holds():
                            self._put_in_place(os.replace, name, target)
                            decided = True
                            return True
                finally:
                    claim.release(decided)
            except OSError as error:
                raise_error(error, "lock", target)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with open(f"{self._temporary}/.lock", "ab") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            try:
                yield
            finally:
                # A child that was forked meanwhile has the file too, and would keep the lock.
                with contextlib.suppress(OSError):
                    fcntl.flock(held, fcntl.LOCK_UN)


class _StagedFile:
    def __init__(self, storage: LocalStorage, file: TemporaryFile) -> None:
        self._storage = storage
        self._file = file

    def write(self, block: memoryview, /) -> None:
        self._file.write(block, self._file.name)

    def commit(self, key: str, sha256: bytes) -> None:
        target = self._storage._path(key, writing=True)
        self._file.finish(target, sync=self._storage._sync)
        self._storage._put_in_place(os.replace, self._file.name, target)
