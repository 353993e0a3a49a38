"""What the store needs of a place that keeps objects, and nothing more.

Objects are written once and whole: a reader sees all of an object or none of it. Keys are relative,
`/`-separated and made of printable ASCII (the store percent-encodes what users choose). `docs/format.md`
lists what a storage must guarantee; `metaflow_artifacts.testing.StorageConformance` checks it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

__all__ = ["ObjectInfo", "Reader", "Staged", "Storage"]


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
        """Append a block; it is taken before the call returns."""
        ...

    def commit(self, key: str, sha256: bytes) -> None:
        """Make what was written the object `key`, whole and at once, replacing what is there.

        `sha256` is the digest of all blocks; a storage that can verify it on the way does.
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

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object whole and at once, replacing what is there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists, atomically among any number of writers.

        Returns False, and changes nothing, where the key exists.
        """

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

    def now(self) -> float:
        """The time by the storage's own clock, in seconds since the epoch."""
        return time.time()

    def keeps_versions(self) -> bool:
        """Whether deleted objects stay as old versions."""
        return False

    def is_settled(self, info: ObjectInfo) -> bool:
        """Whether no power failure can have cut this object."""
        return True

    def require_put_if_absent(self) -> None:  # noqa: B027
        """Raise unless put-if-absent is kept."""

    @abstractmethod
    def touch(self, key: str, after: float = 0.0) -> bool:
        """Set an object's time to now, without sending its content; False where the key does not exist."""

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Temporary objects of writers that are at work or were killed; `delete` takes their keys.

        None where a storage needs no temporary objects.
        """
        return iter(())

    def identity(self) -> object:
        """What is at the root, as far as the storage can tell: another value after a while means that the place was
        removed or replaced, and what was written to it with it. None where there is nothing yet, or no telling."""
        return None

    @abstractmethod
    def url(self, key: str) -> str:
        """The full address of a key, for people and for references."""
