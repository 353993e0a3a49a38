"""Chunks that are read in several ranges at once.

A connection on a real network gives 50 to 100 MB/s. Where a load has fewer chunks than there are connections, each
chunk comes over several of them. Each range is written to its place. The thread that reads the first one hashes it as
it comes, and then reads the others back: so no chunk counts as read before all of it is verified.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._format.plan import Segment
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer import chunks
from metaflow_artifacts._transfer.engine import Group
from metaflow_artifacts.errors import ArtifactNotFound, StorageError, TransientStorageError

__all__ = ["SplitReads", "Take", "Writer", "cut", "most_ranges", "ranges_of"]

_SMALLEST_BYTES = 4 << 20
"""The smallest range. A request takes as long as some 100 kB on one connection."""
_BLOCK_BYTES = chunks.READ_BYTES // 2

Take = Callable[[memoryview], None]


class Writer(Protocol):
    """Writes blocks to the places of some parts, one after the other."""

    def restart(self) -> None:
        """The first block comes next."""

    def take(self, block: memoryview, /) -> None:
        """Write a block."""


class SplitReads:
    """The reads of one load, each in at most `most` ranges, by calls of `group`.

    `writing` gives a writer to the places of some parts, `written` reads these places.
    """

    def __init__(
        self,
        storage: Storage,
        group: Group,
        most: int,
        writing: Callable[[Sequence[Segment]], AbstractContextManager[Writer]],
        written: Callable[[Sequence[Segment]], Iterator[memoryview]],
    ) -> None:
        self.group = group
        self._storage = storage
        self._most = most
        self._writing = writing
        self._written = written

    def ranges(self, chunk: Chunk) -> int:
        """In how many ranges a chunk is read."""
        return ranges_of(chunk, self._most)

    def read(self, chunk: Chunk, parts: Sequence[Segment], writer: Writer, also: Take) -> bool:
        """Read a chunk. `writer` is given its first range, `also` the others in order when they have been written.

        Returns whether these are the chunk's bytes. Where they are not, or a range could not be read, the caller reads
        the chunk as a whole, which tells what is wrong; by then none of the calls writes any more. Raises
        TransientStorageError where the storage has been asked for long, and what writers raise.
        """
        pieces = cut(parts, self.ranges(chunk))
        reading = _Reading(self._storage, chunk)
        digest = hashlib.sha256()

        def hashed(block: memoryview) -> None:
            digest.update(block)
            writer.take(block)

        begin = size = _size(pieces[0])
        rest = []
        for piece in pieces[1:]:
            rest.append((piece, self.group.later(partial(self._write, reading, begin, piece))))
            begin += _size(piece)
        writer.restart()
        reading.pass_on(0, size, hashed)
        for piece, written in rest:
            written.result()
            if not reading.has_failed:
                try:
                    for block in self._written(piece):
                        digest.update(block)
                        also(block)
                except OSError:
                    # A chunk that is read as a whole is not read back.
                    reading.has_failed = True
        return not reading.has_failed and digest.hexdigest() == chunk.sha256

    def _write(self, reading: _Reading, begin: int, piece: Sequence[Segment]) -> None:
        if not reading.has_failed:
            with self._writing(piece) as writer:
                writer.restart()
                reading.pass_on(begin, _size(piece), writer.take)


class _Reading:
    """The reads of all ranges of one chunk. After one has failed, the others end."""

    def __init__(self, storage: Storage, chunk: Chunk) -> None:
        self.has_failed = False
        self._storage = storage
        self._chunk = chunk
        self._began = time.monotonic()

    def pass_on(self, begin: int, size: int, take: Take) -> None:
        """Pass the blocks of a range on, and no byte more than its size."""
        try:
            if self._passed_on(begin, size, take):
                self.has_failed = True
        except (ArtifactNotFound, StorageError) as error:
            self.has_failed = True
            lasted = time.monotonic() - self._began
            if isinstance(error, TransientStorageError) and lasted > chunks.RETRY_WINDOW_S:
                raise

    def _passed_on(self, begin: int, size: int, take: Take) -> int:
        """How many bytes were missing; fewer than none where there are more."""
        # Whether an object is too long shows at its end.
        more = begin + size == self._chunk.size
        with self._storage.open(chunks.chunk_key(self._chunk.sha256), begin, size + more) as reader:
            block = memoryview(bytearray(min(_BLOCK_BYTES, size + more)))
            left = size
            while not self.has_failed and (count := reader.readinto(block)):
                if count > left:
                    return left - count
                take(block[:count])
                left -= count
            return left


def most_ranges(pieces: int, connections: int) -> int:
    """In how many ranges each of the pieces of a load is read at most.

    Two thirds of the connections are enough: each further range costs more of the processor, since it is read back.
    """
    return min(connections // pieces, -(-2 * connections // (3 * pieces))) if pieces else 1


def ranges_of(chunk: Chunk, most: int) -> int:
    """In how many ranges a chunk is read where `most` connections are free for it."""
    return max(1, min(most, chunk.size // _SMALLEST_BYTES))


def _size(parts: Sequence[Segment]) -> int:
    return sum(part.length for part in parts)


def cut(parts: Sequence[Segment], ranges: int) -> list[list[Segment]]:
    """The parts of a chunk in so many ranges of about the same size."""
    total, position, number = _size(parts), 0, 1
    cuts: list[list[Segment]] = [[]]
    for part in parts:
        start, left = part.start, part.length
        while left:
            end = total * number // ranges
            length = min(left, end - position)
            if length:
                cuts[-1].append(Segment(part.file, start, length))
            start, left, position = start + length, left - length, position + length
            if position == end and number < ranges:
                cuts.append([])
                number += 1
    return cuts
