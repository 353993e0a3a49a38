"""The rows of chunks of a large manifest, decoded piece by piece and kept in 40 bytes each.

What json.loads makes of a row takes some 300 bytes: gc would need 300 MB for an artifact of a million chunks.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import overload

from metaflow_artifacts._format.manifest import MAX_SIZE, Chunk, Front

__all__ = ["ChunkRows", "PackedChunks"]

_ROW = re.compile(rb'\["([0-9a-f]{64})",([1-9][0-9]{0,18})\]([,\]])')
_LONGEST_ROW = 88
_PACKED = struct.Struct(">32sq")


class PackedChunks(Sequence[Chunk]):
    """Chunks whose objects are made when they are asked for."""

    def __init__(self, rows: bytearray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // _PACKED.size

    def __iter__(self) -> Iterator[Chunk]:
        return (Chunk(digest.hex(), size) for digest, size in _PACKED.iter_unpack(self._rows))

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        digest, size = _PACKED.unpack_from(self._rows, number * _PACKED.size)
        return Chunk(digest.hex(), size)


class ChunkRows:
    """Takes the bytes of the list of chunks, in order and in pieces of any size.

    It knows the rows only as `encode` writes them. Where `chunks` returns None, the list may be valid JSON all the
    same: decode all of the manifest then.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._hash = hashlib.sha256()
        self._fed = 0
        self._rest = b""
        self._rows = bytearray()
        self._size = 0
        self._fails = False
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        begin = 0
        if not self._fed:
            begin = 1
            self._fails = data[:1] != b"["
        self._fed += len(data)
        if self._fails:
            return
        data = self._rest + data
        for row in _ROW.finditer(data, begin):
            if row.start() != begin or self._ended:
                break
            size = int(row[2])
            self._fails = self._fails or size >= MAX_SIZE
            self._size += size
            self._rows += _PACKED.pack(bytes.fromhex(row[1].decode()), min(size, MAX_SIZE))
            self._ended = row[3] == b"]"
            begin = row.end()
        self._rest = data[begin:]
        self._fails = self._fails or len(self._rest) > _LONGEST_ROW or (self._ended and bool(self._rest))

    def chunks(self, size: int) -> PackedChunks | None:
        """All chunks, of an artifact of `size` bytes; None if the bytes are not those that the front names."""
        where = self._front.chunks
        if self._fails or not self._ended or self._size != size or self._fed != where.stop - where.start:
            return None
        return PackedChunks(self._rows) if self._hash.hexdigest() == self._front.chunks_sha256 else None
