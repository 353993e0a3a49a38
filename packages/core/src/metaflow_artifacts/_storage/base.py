"""What the store needs of a place that keeps objects, and nothing more.

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
from typing import ClassVar, Protocol

from metaflow_artifacts._storage.names import PROBE
from metaflow_artifacts.errors import StorageError

__all__ = ["PATIENCE", "ObjectInfo", "Reader", "Staged", "Storage"]

PATIENCE = 40.0
"""Seconds after which a storage begins no new attempt of a request that failed, unless it is told otherwise."""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size in bytes, and when it was last written (seconds since the epoch,
    by the storage's own clock; S3 gives whole seconds)."""

    key: str
    size: int
    modified: float


class Reader(Protocol):
    """An open object, read from front to back."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from the front; the number of bytes read, 0 at the end."""
        ...


class Staged(Protocol):
    """Bytes on their way into the storage under a name that is not known yet."""

    def write(self, block: memoryview, /) -> None:
        """Append a block; it is copied, so the caller may reuse the buffer."""
        ...

    def commit(self, key: str, sha256: bytes) -> None:
        """Make what was written the object `key`, whole and at once, replacing what is there.

        `sha256` is the digest of all blocks. It is handed to a server, and not all servers verify it: what is read
        must be verified by its reader.
        """
        ...


class Storage(ABC):
    """A key-value store of immutable objects below one root."""

    root: str
    """The URL or absolute path below which all keys lie; no trailing slash."""

    stages_in_memory: ClassVar[bool]
    """Whether `stage` holds its bytes in memory (S3) or writes them out at once (disk)."""

    resolution: ClassVar[float] = 2.0
    """Seconds that two objects' times must differ by to tell which was written first."""

    threads: int
    """How many requests at once serve this storage best."""

    _refuses_existing_keys = False

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object whole and at once, replacing what is there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists, atomically among any number of writers.

        Returns False, and changes nothing, where the key exists. A server may not keep this promise: see
        `require_put_if_absent`.
        """

    @property
    def trusts_put_if_absent(self) -> bool:
        """Whether this storage is known to keep the promise of `put_if_absent`, so that it need not be asked."""
        return False

    @property
    def server(self) -> str:
        """What serves the root, for error messages: an endpoint, or the root itself."""
        return self.root

    def require_put_if_absent(self) -> None:
        """Make sure that `put_if_absent` refuses a key that exists, before anything relies on it.

        The fixed key `mf.artifacts/probe` is written with `put_if_absent`: refused, all is well, with one request.
        Accepted, it was the first to come, and the same again must be refused. A storage object asks once, whatever
        its threads do, and `trusts_put_if_absent` spares even that. Raises StorageError, each time that it is called,
        where the second write was accepted too: nothing of the user's was overwritten. Errors of the requests
        themselves are raised as they come.
        """
        if self._refuses_existing_keys or self.trusts_put_if_absent:
            return
        # One lock an object and process: a child of fork must not wait for a thread that only its parent has.
        with self.__dict__.setdefault(f"_probing_{os.getpid()}", threading.Lock()):
            if self._refuses_existing_keys:
                return
            # Content that differs: put_if_absent must not take the first write for a lost answer of the second.
            if any(not self.put_if_absent(PROBE, uuid.uuid4().bytes) for _ in range(2)):
                self._refuses_existing_keys = True
                return
        raise StorageError(
            f"cannot save to {self.root}: {self.server} wrote {PROBE} a second time, although it was told to write it"
            " only where it does not exist, so that saves at one time could overwrite each other; nothing else was"
            " written. Use a server that keeps If-None-Match (AWS S3, MinIO, SeaweedFS), or another datastore root"
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
        """Take about `size` bytes whose key is decided once they were read; without a commit nothing remains."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None where the key does not exist."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix` (any string, not only whole path parts), in no set order.

        Temporary objects of writers are never listed.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a key that does not exist is no error."""

    @abstractmethod
    def touch(self, key: str, after: float = 0.0) -> bool:
        """Set an object's time to now, without sending its content.

        True only if the object's time is now later than `after`, in seconds since the epoch by the storage's clock
        (see ObjectInfo). False where the key does not exist, where the storage does not move the time, or where this
        user may not renew the object: the caller then writes the object again.
        """

    def now(self) -> float:
        """The time by the clock that sets the objects' times, as well as it can be told; seconds since the epoch."""
        return time.time()

    def keeps_versions(self) -> bool:
        """Whether objects that are deleted or replaced stay stored as old versions, and cost what they did."""
        return False

    def is_settled(self, info: ObjectInfo) -> bool:
        """Whether the object's bytes are past what a power failure of this machine could have cut.

        One that is not settled must be read and verified before it is trusted; `touch` settles it then.
        """
        return True

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Temporary objects of writers that are at work or were killed; `delete` takes their keys.

        None where a storage needs no temporary objects.
        """
        return iter(())

    def identity(self) -> object:
        """An opaque id of the root. A change during a save means that the store was replaced. None if unknown."""
        return None

    @abstractmethod
    def url(self, key: str) -> str:
        """The full address of a key, for people and for references."""
