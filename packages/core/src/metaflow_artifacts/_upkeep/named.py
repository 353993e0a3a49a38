"""The chunks that the manifests of a store name, by prefix: the first two hex digits of their names.

Stage 1 of gc and of `check --read` collects them, stage 2 takes one prefix after the other. So memory is needed for
one prefix, a 256th of the chunks; the rest is in a temporary file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._upkeep.spill import Spill

__all__ = ["PREFIXES", "NamedChunks", "rows_of", "sizes_of"]

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""Every chunk lies in one of these directories below `mf.artifacts/chunks/sha256/`."""

_ROW = struct.Struct(">32sq")
_HELD_ROWS = 200_000
"""Rows that are held in memory, 40 bytes each, before they are appended to the file."""
_SLACK = 64 << 20
"""Bytes that the file may grow beyond twice its size without duplicates."""


class NamedChunks:
    """Digest and size of each chunk that was added, by prefix."""

    def __init__(self, held: int = _HELD_ROWS, slack: int = _SLACK) -> None:
        """At most `held` rows are kept in memory, and `slack` bytes on disk beyond twice those of distinct rows."""
        self._most_held = held
        self._slack = slack
        self._buffers = [bytearray() for _ in PREFIXES]
        self._held = 0
        self._spill = Spill()
        self._parts: list[list[tuple[int, int]]] = [[] for _ in PREFIXES]
        self._distinct = 0
        """Bytes of the file when it last held no duplicates."""

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add the chunks that one manifest names. Raises StorageError if there is no room for them."""
        for chunk in chunks:
            digest = bytes.fromhex(chunk.sha256)
            self._buffers[digest[0]] += _ROW.pack(digest, chunk.size)
            self._held += 1
            if self._held > self._most_held:
                self._flush()

    def of(self, prefix: str) -> dict[bytes, int]:
        """The size that the first manifest gave for each chunk of a prefix, by its digest. Raises StorageError."""
        number = int(prefix, 16)
        found: dict[bytes, int] = {}
        for offset, length in self._parts[number]:
            _add(found, self._spill.read(offset, length))
        _add(found, self._buffers[number])
        return found

    def _flush(self) -> None:
        for parts, buffer in zip(self._parts, self._buffers, strict=True):
            if buffer:
                # One artifact after the other often names the same chunks.
                data = rows_of(sizes_of(buffer))
                parts.append((self._spill.append(data), len(data)))
                buffer.clear()
        self._held = 0
        if self._spill.size > 2 * self._distinct + self._slack:
            self._discard_duplicates()

    def _discard_duplicates(self) -> None:
        spill = Spill()
        for prefix, parts in zip(PREFIXES, self._parts, strict=True):
            data = rows_of(self.of(prefix))
            parts[:] = [(spill.append(data), len(data))]
        self._spill = spill
        self._distinct = spill.size


def rows_of(sizes: dict[bytes, int]) -> bytes:
    """The chunks as bytes: for each of them 32 of its digest and 8 of its size, big-endian."""
    return b"".join(_ROW.pack(digest, size) for digest, size in sizes.items())


def sizes_of(rows: bytes | bytearray) -> dict[bytes, int]:
    """The size of each chunk by its digest, of what `rows_of` made; of a chunk that occurs twice, the first size."""
    found: dict[bytes, int] = {}
    _add(found, rows)
    return found


def _add(found: dict[bytes, int], rows: bytes | bytearray) -> None:
    for digest, size in _ROW.iter_unpack(rows):
        found.setdefault(digest, size)
