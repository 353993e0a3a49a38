"""The interface of a storage of objects: what the store needs of it, and nothing more.

Objects are written once and whole: a reader sees all of an object or none of it. Keys are relative,
`/`-separated and made of printable ASCII (the store percent-encodes what users choose). `docs/format.md`
lists what a storage must guarantee; `metaflow_artifacts.testing.StorageConformance` checks it.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from metaflow_artifacts._storage.names import PROBE
from metaflow_artifacts._storage.outgoing import Blocks, verified
from metaflow_artifacts.errors import StorageError

__all__ = ["PATIENCE_S", "CopyOutcome", "ObjectInfo", "Reader", "Staged", "Storage"]

PATIENCE_S = 40.0
"""Default number of seconds without a successful request after which a storage makes no new attempt of one that
failed."""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size in bytes, and when it was last written (seconds since the epoch,
    by the storage's own clock; S3 gives whole seconds)."""

    key: str
    size: int
    modified: float


class CopyOutcome(Enum):
    """What `Storage.copy_from` has done. Only after COPIED is the object known to be there and right."""

    COPIED = "copied"
    EXISTS = "exists"
    """The key is taken, or the source was replaced at this moment. The caller looks again."""
    UNFIT = "unfit"
    """This object was not copied: it is missing, wrong, or nothing shows that it is right."""
    UNABLE = "unable"
    """The service does not copy, or this user has no right to have it copy. This will hold for other objects too."""


class Reader(Protocol):
    """An open object, read from front to back."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from the front; the number of bytes read, 0 at the end."""
        ...


class Staged(Protocol):
    """An object that is being written, whose key is not known yet."""

    def write(self, block: memoryview, /) -> None:
        """Append a block; it is copied, so the caller may reuse the buffer."""
        ...

    def commit(self, key: str, sha256: bytes) -> None:
        """Store what was written as the object `key`, atomically, replacing what is there.

        `sha256` is the digest of all blocks. It is sent to a server, but not every server verifies it. So readers
        must verify what they read.
        """
        ...


class Storage(ABC):
    """A key-value store of immutable objects below one root."""

    root: str
    """The URL or absolute path below which all keys lie; no trailing slash."""

    stages_in_memory: ClassVar[bool]
    """Whether `stage` holds its bytes in memory (a cloud) or writes them out at once (a disk)."""

    resolution: ClassVar[float] = 2.0
    """Seconds that two objects' times must differ by to tell which was written first."""

    threads: int
    """The number of concurrent requests to begin with."""

    most_threads: int = 0
    """Up to how many requests a transfer makes at once where that is faster; where it is below `threads`, a transfer
    makes `threads` requests at once, however fast they are."""

    _refuses_existing_keys = False

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically, replacing what is there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists, atomically among any number of writers.

        Returns False, and changes nothing, where the key exists. Not every server keeps this promise: see
        `require_put_if_absent`.
        """

    def connect(self) -> None:  # noqa: B027
        """Get ready for the first request, where that takes some time. Nothing is sent, and nothing is raised."""

    @property
    def trusts_put_if_absent(self) -> bool:
        """Whether this storage is known to keep the promise of `put_if_absent`, so that no test is needed."""
        return False

    @property
    def server(self) -> str:
        """What serves the root, for error messages: an endpoint, or the root itself."""
        return self.root

    def require_put_if_absent(self) -> None:
        """Make sure that `put_if_absent` refuses a key that exists, before anything relies on it.

        The fixed key `mf.artifacts/probe` is written with `put_if_absent`. If that is refused, the storage keeps its
        promise; this is the usual case, and costs one request. If it is accepted, the key may have been new: a second
        write must be refused. A storage object tests this once for all its threads, and not at all where
        `trusts_put_if_absent` is true. Raises StorageError where the second write was accepted too; no object of the
        user was overwritten then. Raises the errors of the requests.
        """
        if self._refuses_existing_keys or self.trusts_put_if_absent:
            return
        # One lock for each object and process: a forked child must not wait for a thread that only its parent has.
        with self.__dict__.setdefault(f"_probing_{os.getpid()}", threading.Lock()):
            if self._refuses_existing_keys:
                return
            # Two different contents: put_if_absent returns True for a key with equal content, which an attempt whose
            # answer was lost may have written.
            if any(not self.put_if_absent(PROBE, uuid.uuid4().bytes) for _ in range(2)):
                self._refuses_existing_keys = True
                return
        raise StorageError(
            f"cannot save to {self.root}: {self.server} ignores If-None-Match (it wrote {PROBE} a second time), so"
            " saves that run at the same time could overwrite each other; nothing else was written. Use a server that"
            " supports If-None-Match (AWS S3, MinIO, SeaweedFS), or another datastore root"
        )

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Read an object, or `length` bytes of it from `start` (fewer where it ends).

        Raises ArtifactNotFound where the key does not exist.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractContextManager[Reader]:
        """Open an object, or a range of it, for reading in blocks. Raises as `get` does, on entry or while reading."""

    @abstractmethod
    def stage(self, size: int) -> AbstractContextManager[Staged]:
        """Write an object of about `size` bytes, whose key is given at the commit. Without a commit nothing remains."""

    def put_hashed(self, key: str, data: memoryview, sha256: bytes) -> None:
        """Write an object from memory, whose digest is known, atomically, replacing what is there."""
        with self.stage(len(data)) as staged:
            staged.write(data)
            staged.commit(key, sha256)

    def send(self, key: str, size: int, sha256: bytes, blocks: Blocks) -> None:
        """Write an object of `size` bytes with this digest, atomically, replacing what is there.

        `blocks` is called once for each attempt. What it gives is hashed again as it is sent, and the object is written
        only if size and digest are right. Else this raises ContentChanged; it also raises what `blocks` raises.
        """
        with self.stage(size) as staged:
            for block in verified(size, sha256, blocks):
                staged.write(block)
            staged.commit(key, sha256)

    def copy_from(self, source: Storage, key: str, size: int, sha256: bytes, *, strict: bool = False) -> CopyOutcome:
        """Copy an object of another storage to the same key here, without its content passing this process, if nothing
        is there. Its time is now.

        `sha256` is the digest that the content should have. A service that can keep a SHA-256 of its objects (S3) is
        asked for it first, and copies nothing without the right one. Of the others, a service that keeps another
        digest (MD5, CRC) shows that the copy is like the source; with `strict`, that is not enough. The size must be
        right, too.

        Where this was not done, the caller writes the object by `send`. Not every server looks at the condition that
        the key is free, so the caller asks `stat` first. Raises TransientStorageError.
        """
        return CopyOutcome.UNABLE

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None where the key does not exist."""

    def stat_before_write(self, key: str) -> ObjectInfo | None:
        """As `stat`, for a caller that writes the object if there is none. Where the whole bucket is missing, this may
        return None: the write raises."""
        return self.stat(key)

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix` (any string, not only whole path parts), in any order.

        Temporary objects of writers are never listed.
        """

    def list_any(self, prefix: str) -> Iterator[ObjectInfo]:
        """As `list`, also with objects of other programs whose names no key has."""
        return self.list(prefix)

    def open_any(self, name: str, start: int = 0, length: int | None = None) -> AbstractContextManager[Reader]:
        """As `open`, of an object that `list_any` gave. The caller makes sure that no part is empty, `.` or `..`."""
        return self.open(name, start, length)

    def delete_any(self, names: Iterable[str]) -> None:
        """As `delete`, of objects that `list_any` gave. The caller makes sure of the same as for `open_any`."""
        self.delete(names)

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a key that does not exist is no error."""

    @abstractmethod
    def touch(self, key: str, after: float = 0.0) -> bool:
        """Set an object's time to now, without sending its content.

        True only if the object's time is now later than `after`, in seconds since the epoch by the storage's clock
        (see ObjectInfo). False where the key does not exist, where the storage does not change the time, or where this
        user has no permission to change it. The caller then writes the object again.
        """

    def now(self) -> float:
        """The time by the clock that sets the objects' times, as exactly as it is known; seconds since the epoch."""
        return time.time()

    def keeps_versions(self) -> bool:
        """Whether objects that are deleted or replaced stay stored as old versions, which still cost space."""
        return False

    def is_settled(self, info: ObjectInfo) -> bool:
        """Whether the object is so new that no power failure of this machine can have damaged it.

        An object that is not settled must be read and verified before it is trusted; then `touch` settles it.
        """
        return True

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Temporary objects of writers that are still writing or were killed; `delete` accepts their keys.

        Empty where a storage needs no temporary objects.
        """
        return iter(())

    def identity(self) -> object:
        """An opaque id of the root. A change during a save means that the store was replaced. None if unknown."""
        return None

    @abstractmethod
    def url(self, key: str) -> str:
        """The full address of a key, for messages and for references."""
