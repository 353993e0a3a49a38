"""Where the stream of an artifact's files is cut into chunks, computed from names and sizes only.

The stream is the contents of all files, in the order of their paths. Every save cuts the same files in the same way,
and an added or removed file moves only the cuts near it:

- a large file (from 1/32 of the chunk size: 512 KiB of 16 MiB) shares no chunk; it is cut at each multiple of the chunk
  size;
- smaller files are packed, each whole. A pack holds at most a quarter of the chunk size, and ends before the file that
  would exceed this. It also ends after a file that a hash of its path selects, with a probability that grows with the
  size of the file. So packs hold about an eighth of the chunk size, and an early change does not move all later ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metaflow_artifacts._format.paths import path_bytes

__all__ = ["INLINE_LIMIT", "Group", "Segment", "is_packed", "plan", "plan_groups", "segments"]

INLINE_LIMIT = 64 << 10
"""Content of at most this many bytes is part of the manifest, so that saving a small checkpoint is one write."""
_LARGE = 32
"""A file of at least chunk size / 32 shares no chunk, so that equal large files are stored once."""
_PACK = 4
"""A pack holds at most chunk size / 4: a changed small file stores its pack again."""


@dataclass(frozen=True)
class Group:
    """Files that are saved together: one large file, or a pack of small ones."""

    files: range
    """Their numbers in the stream."""
    sizes: Sequence[int]
    """Bytes of each chunk that holds them, in order; empty if all files are empty."""


class Segment(NamedTuple):
    """Part of one file within one chunk: `length` bytes from `start` of the file number `file`."""

    file: int
    start: int
    length: int


def is_packed(size: int, chunk_size: int) -> bool:
    """Whether a file of `size` bytes shares its chunk with others."""
    return size < chunk_size // _LARGE


def plan(files: Sequence[tuple[str, int]], chunk_size: int) -> list[int]:
    """The sizes in bytes of the chunks that hold `files`, given as (path, size in bytes) in stream order."""
    return [size for group in plan_groups(files, chunk_size) for size in group.sizes]


def plan_groups(files: Sequence[tuple[str, int]], chunk_size: int) -> Iterator[Group]:
    """`files`, given as (path, size in bytes) in stream order, in groups that hold every file once and in order."""
    begin, pack = 0, 0
    for number, (path, size) in enumerate(files):
        if not is_packed(size, chunk_size):
            yield from _pack(begin, number, pack)
            whole, rest = divmod(size, chunk_size)
            yield Group(range(number, number + 1), [chunk_size] * whole + [rest] * bool(rest))
            begin, pack = number + 1, 0
            continue
        if pack + size > chunk_size // _PACK:
            yield from _pack(begin, number, pack)
            begin, pack = number, 0
        pack += size
        if size and _ends_pack(path, size, chunk_size):
            yield from _pack(begin, number + 1, pack)
            begin, pack = number + 1, 0
    yield from _pack(begin, len(files), pack)


def _pack(begin: int, end: int, size: int) -> Iterator[Group]:
    if begin < end:
        yield Group(range(begin, end), [size] if size else [])


def _ends_pack(path: str, size: int, chunk_size: int) -> bool:
    draw = int.from_bytes(hashlib.sha256(path_bytes(path)).digest()[:8], "big")
    return draw * (chunk_size // _PACK // 2) < size << 64


def segments(file_sizes: Sequence[int], chunk_sizes: Sequence[int], first: int = 0) -> Iterator[list[Segment]]:
    """For each chunk, the parts of files it holds, in order. Sizes in bytes; both sides add up to the same.

    `first` is the number of the first file.
    """
    file, start = 0, 0
    for size in chunk_sizes:
        parts = []
        left = size
        while left:
            length = min(left, file_sizes[file] - start)
            if length:
                parts.append(Segment(first + file, start, length))
            start += length
            left -= length
            if start == file_sizes[file]:
                file, start = file + 1, 0
        yield parts
