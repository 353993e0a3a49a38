"""Where the stream of an artifact's files is cut into chunks. Pure: sizes and names in, sizes out.

The stream is the contents of all files, in path order. Cuts depend on names and sizes alone, so that the same
files are cut the same way by every save, and one file more or less moves only the cuts around it:

- a file of at least half a chunk starts a chunk, is cut at every chunk size, and ends its last chunk;
- smaller files are packed whole. A pack ends before the file that would take it over the chunk size, and after
  a file that a hash of its path picks, with a chance of its size in half chunks: packs come out near half a
  chunk, and where they end does not depend on what came long before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Segment", "is_packed", "plan", "segments"]


@dataclass(frozen=True)
class Segment:
    """Part of one file within one chunk: `length` bytes from `start` of the file number `file`."""

    file: int
    start: int
    length: int


def is_packed(size: int, chunk_size: int) -> bool:
    """Whether a file of `size` bytes shares its chunk with others."""
    return size < chunk_size // 2


def plan(files: Sequence[tuple[str, int]], chunk_size: int) -> list[int]:
    """The sizes in bytes of the chunks that hold `files`, given as (path, size in bytes) in stream order."""
    chunks = []
    pack = 0
    for path, size in files:
        if not is_packed(size, chunk_size):
            if pack:
                chunks.append(pack)
                pack = 0
            whole, rest = divmod(size, chunk_size)
            chunks += [chunk_size] * whole + ([rest] if rest else [])
            continue
        if pack + size > chunk_size:
            chunks.append(pack)
            pack = 0
        pack += size
        if size and _ends_pack(path, size, chunk_size):
            chunks.append(pack)
            pack = 0
    if pack:
        chunks.append(pack)
    return chunks


def _ends_pack(path: str, size: int, chunk_size: int) -> bool:
    draw = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big")
    return draw * (chunk_size // 2) < size << 64


def segments(file_sizes: Sequence[int], chunk_sizes: Sequence[int]) -> Iterator[list[Segment]]:
    """For each chunk, the parts of files it holds, in order. Sizes in bytes; both sides add up to the same."""
    file, start = 0, 0
    for size in chunk_sizes:
        parts = []
        left = size
        while left:
            length = min(left, file_sizes[file] - start)
            if length:
                parts.append(Segment(file, start, length))
            start += length
            left -= length
            if start == file_sizes[file]:
                file, start = file + 1, 0
        yield parts
