"""Chunks as objects of a storage: finding them, protecting them from gc, writing them, reading and verifying them.

A chunk is an object named by the SHA-256 of its content, shared by all that is saved below a root.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from enum import Enum

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._storage.base import Reader, Storage
from metaflow_artifacts._storage.job import pause
from metaflow_artifacts._transfer.gc_marks import wait_for_gc
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, TransientStorageError

__all__ = [
    "READ_ATTEMPTS",
    "READ_BYTES",
    "REFRESH_AFTER",
    "RETRY_WINDOW_S",
    "Presence",
    "are_safe_from_gc",
    "chunk_key",
    "damaged",
    "drain",
    "is_stored",
    "missing",
    "probe_chunk",
    "put_chunk",
    "read_chunk",
]

REFRESH_AFTER = 24 * 3600.0
"""Seconds after which a save that needs a chunk again renews its time, so that `gc` leaves it alone."""
READ_ATTEMPTS = 4
"""How often a chunk is read before its bytes count as wrong."""

_BLOCK_BYTES = 512 << 10
READ_BYTES = 2 * _BLOCK_BYTES
"""The memory of reading a chunk: a block, and what the storage has received of it."""
RETRY_WINDOW_S = 5.0
"""A chunk is read again only if it failed within this time; the storage has already retried slower failures."""


def chunk_key(sha256: str) -> str:
    """The key of the chunk with this digest (hex)."""
    return f"{CHUNKS}{sha256[:2]}/{sha256[2:]}"


def is_stored(storage: Storage, chunk: Chunk, refresh_after: float = REFRESH_AFTER) -> bool:
    """Whether a chunk is stored with its size, and safe from `gc` for a while; the time of an old one is renewed.

    If so, a save may name the chunk in its manifest, provided that `are_safe_from_gc` is true before the commit.
    """
    return probe_chunk(storage, chunk, refresh_after).stored


class Presence(Enum):
    """Whether a chunk is stored, as `is_stored` finds it."""

    ABSENT = 0
    UNUSABLE = 1
    """An object is at its key, with another size or content, or its time cannot be renewed: it is written again."""
    YOUNG = 2
    RENEWED = 3

    @property
    def stored(self) -> bool:
        return self in (Presence.YOUNG, Presence.RENEWED)


def probe_chunk(storage: Storage, chunk: Chunk, refresh_after: float) -> Presence:
    """As `is_stored`, with the reason."""
    info = storage.stat_before_write(chunk_key(chunk.sha256))
    if info is None:
        return Presence.ABSENT
    if info.size != chunk.size:
        return Presence.UNUSABLE
    if storage.is_settled(info):
        if storage.now() - info.modified < refresh_after:
            return Presence.YOUNG
    elif not _has_its_content(storage, chunk):
        # A power failure has truncated it or filled it with zeros.
        return Presence.UNUSABLE
    return Presence.RENEWED if storage.touch(info.key, info.modified) else Presence.UNUSABLE


def _has_its_content(storage: Storage, chunk: Chunk) -> bool:
    try:
        read_chunk(storage, chunk, lambda block: None, lambda: None)
    except CorruptArtifact:
        return False
    return True


def are_safe_from_gc(
    storage: Storage, chunks: Sequence[Chunk], since: float | None, refresh_after: float = REFRESH_AFTER
) -> bool:
    """Whether a manifest may name these chunks, each of which was stored, or was found stored, after `since`.

    `since` is in seconds since the epoch; None where it is not known. This is called right before the commit of the
    manifest. It costs one listing where no `gc` runs and `since` is recent, else it checks each chunk. False where a
    chunk is gone: its content must be stored again.
    """
    distinct = list(dict.fromkeys(chunks))
    while since is None or wait_for_gc(storage, since) or storage.now() - since > refresh_after:
        since = storage.now()
        found = set(ordered(storage, lambda chunk: probe_chunk(storage, chunk, refresh_after), distinct))
        if not all(presence.stored for presence in found):
            return False
        # A chunk younger than refresh_after cannot be in any later batch. A chunk that was renewed just now may be in
        # a batch that checked its time before: check again.
        if Presence.RENEWED not in found:
            return True
    return True


def put_chunk(storage: Storage, data: bytes | memoryview, refresh_after: float = REFRESH_AFTER) -> tuple[Chunk, bool]:
    """Store content from memory as one chunk. Returns the chunk, and whether it was new to the storage."""
    digest = hashlib.sha256(data)
    chunk = Chunk(digest.hexdigest(), len(data))
    if is_stored(storage, chunk, refresh_after):
        return chunk, False
    storage.put_hashed(chunk_key(chunk.sha256), memoryview(data), digest.digest())
    return chunk, True


def read_chunk(storage: Storage, chunk: Chunk, take: Callable[[memoryview], None], restart: Callable[[], None]) -> None:
    """Pass the blocks of a chunk to `take`, and verify them.

    Data passed to `take` is unverified until this returns; `restart` is called before each attempt. Raises
    CorruptArtifact where the chunk is missing, of another size, or does not have the content of its name.
    """
    key = chunk_key(chunk.sha256)
    began = time.monotonic()
    found: list[str] = []
    for left in range(READ_ATTEMPTS - 1, -1, -1):
        restart()
        try:
            with storage.open(key) as reader:
                digest = drain(reader, chunk.size, take)
        except ArtifactNotFound as error:
            raise missing(storage, chunk) from error
        except TransientStorageError:
            if not left or time.monotonic() - began > RETRY_WINDOW_S:
                raise
            pause(0.1 * (READ_ATTEMPTS - left))
            continue
        if digest == chunk.sha256:
            return
        found.append(digest)
    raise damaged(storage, chunk, "a chunk of the artifact", found)


def missing(storage: Storage, chunk: Chunk) -> CorruptArtifact:
    """The error for a chunk that does not exist."""
    url = storage.url(chunk_key(chunk.sha256))
    return CorruptArtifact(f"{url}: a chunk of the artifact is missing; restore it, or save the same content again")


def damaged(storage: Storage, chunk: Chunk, what: str, found: Sequence[str]) -> CorruptArtifact:
    """The error for content that was wrong in every read; `found` are the digests of what was read.

    Corruption in transit differs between reads; corruption at rest does not.
    """
    url = storage.url(chunk_key(chunk.sha256))
    if len(set(found)) > 1:
        return CorruptArtifact(
            f"{url}: {what} has different bytes at each read: something between the storage and this process "
            "changes them; check the network and proxies, and load again"
        )
    return CorruptArtifact(
        f"{url}: {what} has changed (its content has SHA-256 {found[0]}); if `check --read` finds it damaged from "
        "another machine too, restore it, or delete the object and save the same content again"
    )


def drain(reader: Reader, size: int, take: Callable[[memoryview], None]) -> str:
    """Pass what is read to `take`. Its digest (hex); if it was not `size` bytes, a text that no digest equals."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK_BYTES, size + 1)))
    left = size
    while count := reader.readinto(block):
        # Bytes beyond `size` are not passed on: they would overwrite what follows in the file.
        if count > left:
            return f"{digest.hexdigest()} over the first of more than {size} bytes"
        digest.update(block[:count])
        take(block[:count])
        left -= count
    return f"{digest.hexdigest()} over only {size - left} of {size} bytes" if left else digest.hexdigest()
