"""Chunks from one storage to another: by the service that holds both, or through this process, verified on the way."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from functools import partial

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.outgoing import ContentChanged
from metaflow_artifacts._transfer.chunks import (
    READ_ATTEMPTS,
    READ_BYTES,
    REFRESH_AFTER,
    chunk_key,
    damaged,
    is_stored,
    missing,
    read_chunk,
)
from metaflow_artifacts._transfer.engine import Call, engine
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.width import width_of
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["ChunkCopier"]

_BLOCK_BYTES = 512 << 10
_TRIALS = 8
"""After how many chunks that the service has not copied it is no longer asked, if it has not copied any."""


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
        self._verified: set[Chunk] = set()
        self._left = _TRIALS
        self._lock = threading.Lock()

    def copy(self, chunks: Iterable[Chunk]) -> dict[Chunk, CorruptArtifact]:
        """Copy distinct chunks, several at once; those that the target has are left, their time renewed if it is old.

        Returns why chunks cannot be copied: they are missing in the source or damaged. Raises StorageError.
        """
        failures: dict[Chunk, CorruptArtifact] = {}
        engine().run(self._calls(chunks, failures), self._width)
        return failures

    def _calls(self, chunks: Iterable[Chunk], failures: dict[Chunk, CorruptArtifact]) -> Generator[Call, None, None]:
        for chunk in chunks:
            yield READ_BYTES + _BLOCK_BYTES, partial(self._copy, chunk, failures)

    def _copy(self, chunk: Chunk, failures: dict[Chunk, CorruptArtifact]) -> None:
        try:
            new = not is_stored(self._target, chunk, self._refresh_after)
            if new:
                self._store(chunk)
            if self._verify and chunk not in self._verified:
                self._verify_stored(chunk)
        except CorruptArtifact as error:
            failures[chunk] = error
        else:
            self._progress.add(chunk.size, stored=chunk.size if new else 0)

    def _store(self, chunk: Chunk) -> None:
        if not self._copied_by_service(chunk):
            self._send(chunk)

    def _copied_by_service(self, chunk: Chunk) -> bool:
        if not self._left:
            return False
        key, digest = chunk_key(chunk.sha256), bytes.fromhex(chunk.sha256)
        copied = self._target.copy_from(self._source, key, chunk.size, digest, strict=self._verify)
        with self._lock:
            if copied:
                self._left = -1
                self.by_service += chunk.size
            elif self._left > 0:
                self._left -= 1
        if copied:
            self._width.moved(chunk.size)
        return copied

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
        with self._source.open(key) as reader:
            while count := reader.readinto(block):
                self._width.moved(count)
                yield block[:count]

    def _verify_stored(self, chunk: Chunk) -> None:
        try:
            read_chunk(self._target, chunk, _ignore, _nothing)
        except CorruptArtifact:
            self._send(chunk)
            read_chunk(self._target, chunk, _ignore, _nothing)
        with self._lock:
            self._verified.add(chunk)


def _ignore(block: memoryview) -> None:
    pass


def _nothing() -> None:
    pass
