"""The content of packs that are saved: small files, read one after the other into memory."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._format.plan import Segment
from metaflow_artifacts._storage.job import check
from metaflow_artifacts._storage.memory import memory
from metaflow_artifacts._transfer.few_readers import FewReaders

__all__ = ["PackContents", "digests"]

_READERS = 2
_KEPT = 4
"""How many buffers are kept at most that no pack uses: a few more than there are readers."""


class PackContents:
    """Memory for the packs of one save.

    `read(number, buffer)` reads a whole file, by its number. For each pack that is in use at the same time, and for a
    few more, as much memory is used as the largest one needs.
    """

    def __init__(self, read: Callable[[int, memoryview], None]) -> None:
        self.largest = 0
        """The size of the largest pack that is known, in bytes."""
        self._read = read
        self._readers = FewReaders(_READERS)
        self._free: list[mmap.mmap] = []

    @contextmanager
    def content(self, parts: Sequence[Segment]) -> Iterator[memoryview]:
        """The content of some whole files, for as long as the block runs. Raises what `read` raises."""
        size = sum(part.length for part in parts)
        with self._readers.turn():
            # What was used before is used again: the system clears new memory, which takes as long as reading into it.
            buffer = self._free.pop() if self._free else None
            if buffer is None or len(buffer) < size:
                buffer = memory(max(size, self.largest))
            content = memoryview(buffer)[:size]
            begin = 0
            for part in parts:
                check()
                end = begin + part.length
                self._read(part.file, content[begin:end])
                begin = end
        yield content
        if len(self._free) < _KEPT:
            self._free.append(buffer)


def digests(parts: Sequence[Segment], content: memoryview, block_bytes: int) -> tuple[Chunk, dict[int, str]]:
    """The chunk of a pack, and the SHA-256 (hex) of each of its files by the file's number.

    A file that has the chunk for itself, as beside empty files, has the chunk's digest and needs none.
    """
    whole = hashlib.sha256()
    found = {}
    hashed = begin = 0
    for part in parts:
        end = begin + part.length
        if len(parts) > 1:
            found[part.file] = hashlib.sha256(content[begin:end]).hexdigest()
        begin = end
        # While the processor's cache has it.
        if begin - hashed >= block_bytes:
            check()
            whole.update(content[hashed:begin])
            hashed = begin
    whole.update(content[hashed:])
    return Chunk(whole.hexdigest(), len(content)), found
