"""Chunks from one storage to another: by the service that holds both, or through this process, verified on the way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage.base import CopyOutcome, Reader, Storage
from metaflow_artifacts._storage.outgoing import ContentChanged
from metaflow_artifacts._transfer.chunks import (
    READ_ATTEMPTS,
    READ_BYTES,
    REFRESH_AFTER,
    Presence,
    chunk_key,
    damaged,
    missing,
    probe_chunk,
    read_chunk,
)
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Call
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.width import width_of
from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    StorageError,
    TransientStorageError,
)

__all__ = ["ChunkCopier"]

_BLOCK_BYTES = 512 << 10
_TRIALS = 8
"""After how many answers in a row that it does not copy the service is asked for few chunks only."""
_ASKED_AGAIN = 64
"""Then it is asked for each chunk of this many."""
_LOOKS = 3
"""How often a chunk is looked for that the service says is there, and that was not there just before."""
_REMEMBERED = 100_000
"""Of how many chunks it is kept that they were verified."""


class ChunkCopier:
    """Copies chunks to `target`. Each of them is then stored there, and safe from `gc` for a while, as after a save.

    With `verify`, each chunk is read at the target too, also those that it had already; one that is damaged there is
    written again.
    """

    def __init__(
        self, source: Storage, target: Storage, verify: bool, progress: Progress, refresh_after: float = REFRESH_AFTER
    ) -> None:
        self.sent = 0
        """Bytes that passed this process."""
        self.by_service = 0
        """Bytes that the service or the file system copied."""
        self._source = source
        self._target = target
        self._verify = verify
        self._progress = progress
        self._refresh_after = refresh_after
        self._width = width_of(target, "copy")
        self._verified: dict[Chunk, None] = {}
        self._unable = 0
        """How many answers in a row have said that the service does not copy."""
        self._asked = 0
        self._lock = threading.Lock()

    def copy(self, chunks: Iterable[Chunk]) -> dict[Chunk, ArtifactError]:
        """Copy distinct chunks, several at once; those that the target has are left, their time renewed if it is old.

        Returns why chunks cannot be copied: they are missing in the source, damaged, or not to be read. Raises
        StorageError.
        """
        failures: dict[Chunk, ArtifactError] = {}
        engine().run(self._calls(chunks, failures), self._width)
        return failures

    def _calls(self, chunks: Iterable[Chunk], failures: dict[Chunk, ArtifactError]) -> Generator[Call, None, None]:
        for chunk in chunks:
            yield READ_BYTES + _BLOCK_BYTES, partial(self._copy, chunk, failures)

    def _copy(self, chunk: Chunk, failures: dict[Chunk, ArtifactError]) -> None:
        try:
            new = self._store(chunk)
            if self._verify and chunk not in self._verified:
                self._verify_stored(chunk)
        except CorruptArtifact as error:
            failures[chunk] = error
        except _Unreadable as error:
            failures[chunk] = error.reason
        else:
            self._progress.add(chunk.size, stored=chunk.size if new else 0)

    def _store(self, chunk: Chunk) -> bool:
        """Store a chunk unless it is stored. Returns whether it was not."""
        for _ in range(_LOOKS):
            presence = probe_chunk(self._target, chunk, self._refresh_after)
            if presence.stored:
                return False
            if presence is not Presence.ABSENT or not self._asks_service():
                # What is at the key may be a good chunk: only what was hashed may replace it.
                break
            outcome = self._copy_by_service(chunk)
            if outcome is CopyOutcome.COPIED:
                return True
            if outcome is not CopyOutcome.EXISTS:
                break
        self._send(chunk)
        return True

    def _asks_service(self) -> bool:
        with self._lock:
            self._asked += 1
            return self._unable < _TRIALS or self._asked % _ASKED_AGAIN == 0

    def _copy_by_service(self, chunk: Chunk) -> CopyOutcome:
        key, digest = chunk_key(chunk.sha256), bytes.fromhex(chunk.sha256)
        outcome = self._target.copy_from(self._source, key, chunk.size, digest, strict=self._verify)
        with self._lock:
            if outcome is CopyOutcome.UNABLE:
                self._unable += 1
            elif outcome is CopyOutcome.COPIED:
                self._unable = 0
                self.by_service += chunk.size
        if outcome is CopyOutcome.COPIED:
            self._width.moved(chunk.size)
        return outcome

    def _send(self, chunk: Chunk) -> None:
        """Send what is read from the source. Its last block is sent only if the digest is right."""
        key, digest = chunk_key(chunk.sha256), bytes.fromhex(chunk.sha256)
        for _ in range(READ_ATTEMPTS):
            try:
                self._target.send(key, chunk.size, digest, partial(self._blocks, key, chunk.size))
            except ArtifactNotFound as error:
                raise missing(self._source, chunk) from error
            except ContentChanged:
                # This reads it several times, and raises if its bytes stay wrong.
                read_chunk(self._source, chunk, _ignore, _nothing)
                continue
            with self._lock:
                self.sent += chunk.size
            return
        raise damaged(self._source, chunk, "a chunk of the artifact", ["right", "wrong"])

    def _blocks(self, key: str, size: int) -> Generator[memoryview, None, None]:
        block = memoryview(bytearray(min(_BLOCK_BYTES, size + 1)))
        with self._reader(key) as reader:
            while count := reader.readinto(block):
                self._width.moved(count)
                yield block[:count]

    @contextlib.contextmanager
    def _reader(self, key: str) -> Iterator[Reader]:
        """Opens an object of the source. Raises _Unreadable if only this object may be the reason that it fails."""
        with contextlib.ExitStack() as stack:
            try:
                reader = stack.enter_context(self._source.open(key))
            except TransientStorageError:
                raise
            except StorageError as error:
                raise _Unreadable(error) from error
            yield reader

    def _verify_stored(self, chunk: Chunk) -> None:
        try:
            read_chunk(self._target, chunk, _ignore, _nothing)
        except CorruptArtifact:
            self._send(chunk)
            read_chunk(self._target, chunk, _ignore, _nothing)
        with self._lock:
            self._verified[chunk] = None
            if len(self._verified) > _REMEMBERED:
                del self._verified[next(iter(self._verified))]


class _Unreadable(Exception):
    def __init__(self, reason: StorageError) -> None:
        super().__init__(reason)
        self.reason = reason


def _ignore(block: memoryview) -> None:
    pass


def _nothing() -> None:
    pass
