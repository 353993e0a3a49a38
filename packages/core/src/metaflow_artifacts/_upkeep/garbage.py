"""Stage 2 of a gc: of some prefixes, the chunks that no manifest names, and their removal beside saves.

`docs/format.md` has the proof. It needs that the manifests were listed after the moment from which the grace period
counts. When the chunks are listed does not matter, and each prefix can be swept by itself, by any process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import overload

from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.gc_marks import GcMarks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.spill import Spill
from metaflow_artifacts._upkeep.survey import chunk_objects
from metaflow_artifacts.errors import TransientStorageError

__all__ = ["Found", "Garbage", "Removed", "Waiting", "find_garbage", "remove_garbage"]

_BATCH = 256
_ROW = struct.Struct(">32sqd")
_PREFIX = slice(len(CHUNKS), len(CHUNKS) + 2)
_ROWS = 4096
"""Rows that are read at once."""


@dataclass(frozen=True)
class Waiting:
    """Chunks that no artifact names and that the grace period keeps."""

    chunks: int
    size: int
    """Bytes of them."""
    first: float | None
    """Seconds since the epoch: when the grace period of the oldest ends. None where there is no such chunk."""
    last: float | None
    """The same for the youngest."""

    def __add__(self, other: Waiting) -> Waiting:
        """Both together."""
        times = [time for time in (self.first, self.last, other.first, other.last) if time is not None]
        return Waiting(
            self.chunks + other.chunks,
            self.size + other.size,
            min(times, default=None),
            max(times, default=None),
        )


class Garbage(Sequence[ObjectInfo]):
    """Chunks to remove, in the order in which they were added: 48 bytes for each, on disk if they are many.

    A copy that is pickled is a tuple.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the chunks."""
        self._rows = Spill()

    def add(self, digest: bytes, info: ObjectInfo) -> None:
        """Add a chunk. Raises StorageError if there is no room."""
        self._rows.append(_ROW.pack(digest, info.size, info.modified))
        self.size += info.size

    def __len__(self) -> int:
        return self._rows.size // _ROW.size

    @overload
    def __getitem__(self, index: int) -> ObjectInfo: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ObjectInfo, ...]: ...
    def __getitem__(self, index: int | slice) -> ObjectInfo | tuple[ObjectInfo, ...]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return tuple(self[number] for number in numbers)
        return _info(*_ROW.unpack(self._rows.read(numbers * _ROW.size, _ROW.size)))

    def __iter__(self) -> Iterator[ObjectInfo]:
        for start in range(0, self._rows.size, _ROWS * _ROW.size):
            length = min(_ROWS * _ROW.size, self._rows.size - start)
            for row in _ROW.iter_unpack(self._rows.read(start, length)):
                yield _info(*row)

    def __reduce__(self) -> tuple[type[tuple[ObjectInfo, ...]], tuple[list[ObjectInfo]]]:
        return tuple, (list(self),)


def _info(digest: bytes, size: int, modified: float) -> ObjectInfo:
    return ObjectInfo(chunk_key(digest.hex()), size, modified)


@dataclass(frozen=True)
class Found:
    """What some prefixes hold."""

    chunks: int
    """Chunks in the store."""
    stored: int
    """Bytes of all these chunks."""
    garbage: Garbage
    """Chunks that no artifact names and that are older than the limit."""
    waiting: Waiting


def find_garbage(
    storage: Storage,
    named: Callable[[str], dict[bytes, int]],
    begin: float,
    limit: float,
    prefixes: Iterable[str] | None = None,
) -> Found:
    """List the chunks of some prefixes (all, by one listing, if None), and find those that no artifact names.

    `named` gives what manifests name of a prefix. They must have been listed after `begin`; `limit` is `begin` without
    the grace period; both in seconds since the epoch, by the storage's clock. Raises StorageError.
    """
    garbage = Garbage()
    chunks = stored = 0
    prefix, there = "", dict[bytes, int]()
    young = young_size = 0
    first, last = float("inf"), float("-inf")
    listed = ("",) if prefixes is None else prefixes
    for info, digest in chain.from_iterable(chunk_objects(storage, each) for each in listed):
        chunks += 1
        stored += info.size
        # A listing gives all chunks of a prefix one after the other. If one does not, this is right, and slower.
        if info.key[_PREFIX] != prefix:
            prefix = info.key[_PREFIX]
            there = named(prefix)
        if digest in there:
            continue
        if info.modified < limit:
            garbage.add(digest, info)
        elif info.modified <= begin + storage.resolution:
            # A younger one may be named by a manifest that was written since.
            young += 1
            young_size += info.size
            first, last = min(first, info.modified), max(last, info.modified)
    grace = begin - limit
    ends = (first + grace, last + grace) if young else (None, None)
    return Found(chunks, stored, garbage, Waiting(young, young_size, *ends))


@dataclass(frozen=True)
class Removed:
    """What was removed."""

    chunks: int
    size: int
    """Bytes of them."""


def remove_garbage(
    store: Store, garbage: Sequence[ObjectInfo], limit: float, progress: Progress, begin: float = 0.0
) -> Removed:
    """Remove chunks in batches, except those that were written or renewed after `limit`.

    Raises StorageError, also if the clock of this machine, or the one that gave `begin` elsewhere, is ahead of the
    storage's.
    """
    storage = store.storage
    marks = GcMarks(storage, begin)
    remaining = iter(garbage)
    waiting: list[ObjectInfo] = []
    chunks = removed = 0
    size = _BATCH
    while True:
        waiting += islice(remaining, max(0, size - len(waiting)))
        batch, waiting = waiting[:size], waiting[size:]
        if not batch:
            return Removed(chunks, removed)
        with marks.batch() as in_time:
            now = list(ordered(storage, lambda info: storage.stat(info.key), batch))
            doomed = [info for info in now if info is not None and info.modified < limit]
            if not in_time():
                # Saves will not wait for this batch much longer. Check again under a new mark, in a smaller batch.
                if size == 1:
                    raise TransientStorageError(f"{store.root} answers too slowly for a gc beside saves; try later")
                waiting, size = doomed + waiting, size // 2
                continue
            storage.delete([info.key for info in doomed])
        chunks += len(doomed)
        removed += sum(info.size for info in doomed)
        progress.add(sum(info.size for info in batch))
