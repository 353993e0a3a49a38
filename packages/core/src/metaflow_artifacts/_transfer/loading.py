"""From chunks in a storage into files, in parallel. Every byte is verified before it may be used."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.job import check, pause
from metaflow_artifacts._transfer.cache import Cache, Filling, Patience
from metaflow_artifacts._transfer.chunks import READ_BYTES, read_chunk
from metaflow_artifacts._transfer.engine import engine
from metaflow_artifacts._transfer.packs import MAX_HELD_BYTES, Run, cached_run, read_run, runs
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.reuse import Leftovers
from metaflow_artifacts._transfer.staging import Stage
from metaflow_artifacts._transfer.target import create, seek, write_all, write_file
from metaflow_artifacts._transfer.width import Width, width_of

__all__ = ["fetch_chunks", "read_range"]

_ROUND_S = 0.05
"""How long a load waits where all that it lacks is being fetched by others."""


def fetch_chunks(
    storage: Storage,
    files: Sequence[FileEntry],
    chunks: Sequence[Chunk],
    stage: Stage,
    wanted: set[int],
    progress: Progress,
    found: Leftovers | None = None,
    cache: Cache | None = None,
) -> None:
    """Write the files with the numbers in `wanted` to `stage`, except for what is `found` already.

    What the `cache` has is taken from it. A chunk that another process fetches into the cache is waited for.
    The directories of the files exist already. Every byte is verified before this returns. If it raises, the content
    of `stage` must not be used.
    """
    parts = segments([file.size for file in files], [chunk.size for chunk in chunks])
    pieces = [
        _Piece(chunk, mine, runs(chunk, mine, files, wanted), sum(part.length for part in mine if part.file in wanted))
        for chunk, mine in zip(chunks, parts, strict=True)
        if any(part.file in wanted for part in mine)
    ]
    _Load(storage, files, stage, wanted, progress, found, cache).run(pieces)


@dataclass(frozen=True)
class _Piece:
    """A chunk of which a load wants something."""

    chunk: Chunk
    parts: list[Segment]
    runs: list[Run] | None
    """Its files that are read alone; None where the whole chunk is read."""
    size: int
    """The bytes that are wanted."""

    @property
    def memory(self) -> int:
        return READ_BYTES if self.runs is None else 2 * max(run.size for run in self.runs)


class _Load:
    """One load. With a cache, in rounds: what another process is fetching comes in a later round."""

    def __init__(
        self,
        storage: Storage,
        files: Sequence[FileEntry],
        stage: Stage,
        wanted: set[int],
        progress: Progress,
        found: Leftovers | None,
        cache: Cache | None,
    ) -> None:
        self._storage = storage
        self._files = files
        self._stage = stage
        self._wanted = wanted
        self._progress = progress
        self._found = found
        self._cache = cache
        self._full = None if cache is None else functools.partial(cache.give_way, stage.files)
        """What is called where the disk of the target is full."""
        self._width = width_of(storage, "load")
        self._locks = {number: threading.Lock() for number in wanted}
        self._left: list[_Piece] = []
        """What this round could not get."""

    def run(self, pieces: Sequence[_Piece]) -> None:
        cache = self._cache
        if cache is None:
            self._make(pieces, self._from_storage, self._width)
            return
        patience = Patience(cache)
        while pieces:
            there: list[_Piece] = []
            rest: list[_Piece] = []
            for piece in pieces:
                (there if cache.holds(piece.chunk) else rest).append(piece)
            self._left = []
            self._make(there, lambda piece: self._from_cache(cache, piece), Width(os.cpu_count() or 1))
            rest += self._left
            self._left = []
            self._make(rest, lambda piece: self._into_cache(cache, piece, patience), self._width)
            if len(self._left) == len(pieces):
                pause(_ROUND_S)
            # What had been left in the target was looked for once.
            self._found = None
            pieces = self._left

    def _make(self, pieces: Sequence[_Piece], get: Callable[[_Piece], None], width: Width) -> None:
        def call(piece: _Piece) -> None:
            with self._stage.used():
                if self._found is not None and self._found.fill(piece.chunk, piece.parts, self._wanted):
                    self._stage.holds_content = True
                    self._progress.add(piece.size, found=piece.size)
                else:
                    get(piece)

        engine().run(((piece.memory, functools.partial(call, piece)) for piece in pieces), width)

    def _from_cache(self, cache: Cache, piece: _Piece) -> None:
        if not self._take_cached(cache, piece):
            self._left.append(piece)

    def _take_cached(self, cache: Cache, piece: _Piece) -> bool:
        if piece.runs is None:
            with self._writer(piece, None) as writer:
                if not cache.read(piece.chunk, writer.take, writer.restart):
                    return False
        else:
            for run in piece.runs:
                content = cached_run(cache, piece.chunk, run.start, self._files_of(run))
                if content is None:
                    return False
                self._write_run(run, content)
        self._stage.holds_content = True
        self._progress.add(piece.size, cached=piece.size)
        return True

    def _into_cache(self, cache: Cache, piece: _Piece, patience: Patience) -> None:
        # Only whole chunks can be put into the cache.
        filling = cache.fill(piece.chunk) if piece.runs is None else Filling()
        if filling is None:
            if not patience.is_over(piece.chunk):
                self._left.append(piece)
                return
            filling = Filling()
        with filling:
            # Another process may have put it there meanwhile.
            if not (cache.holds(piece.chunk) and self._take_cached(cache, piece)):
                self._from_storage(piece, filling)

    def _from_storage(self, piece: _Piece, filling: Filling | None = None) -> None:
        if piece.runs is None:
            with self._writer(piece, self._width, filling) as writer:
                read_chunk(self._storage, piece.chunk, writer.take, writer.restart)
            if filling is not None:
                filling.commit(piece.chunk.sha256)
        else:
            for run in piece.runs:
                content = read_run(self._storage, piece.chunk, run.start, self._files_of(run))
                self._width.moved(run.size)
                self._write_run(run, content)
        self._stage.holds_content = True
        self._progress.add(piece.size)

    def _files_of(self, run: Run) -> list[FileEntry]:
        return [self._files[number] for number in run.files]

    def _write_run(self, run: Run, content: bytes) -> None:
        rest = memoryview(content)
        for file in self._files_of(run):
            write_file(self._stage.files, file, rest[: file.size], self._full)
            rest = rest[file.size :]

    def _writer(self, piece: _Piece, width: Width | None, filling: Filling | None = None) -> _Writer:
        return _Writer(self._files, piece.parts, self._stage.files, self._locks, width, filling, self._full)


def read_range(
    storage: Storage, chunks: Sequence[Chunk], file: FileEntry, start: int, end: int, cache: Cache | None = None
) -> bytes:
    """The bytes from `start` to `end` of a file, verified.

    Reads only the file where the manifest has its digest, else the chunks that hold the range. Chunks that the `cache`
    has are read there, and none is put there. Raises the errors of `read_chunk`.
    """
    found = bytearray()
    begin = 0
    for chunk in chunks:
        first, last = max(file.offset + start, begin), min(file.offset + end, begin + chunk.size)
        if first < last:
            alone = begin <= file.offset and file.offset + file.size <= begin + chunk.size
            if file.sha256 is not None and alone and file.size < min(chunk.size, MAX_HELD_BYTES):
                at = file.offset - begin
                content = cached_run(cache, chunk, at, [file]) or read_run(storage, chunk, at, [file])
                return content[start:end]
            piece = _Range(first - begin, last - begin)
            if cache is None or not cache.read(chunk, piece.take, piece.restart):
                read_chunk(storage, chunk, piece.take, piece.restart)
            found += piece.content
        begin += chunk.size
    return bytes(found)


class _Range:
    """Keeps the bytes from `start` to `end` of what it takes."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.restart()

    def restart(self) -> None:
        self.content = bytearray()
        self._position = 0

    def take(self, block: memoryview) -> None:
        self.content += block[max(0, self.start - self._position) : max(0, self.end - self._position)]
        self._position += len(block)


class _Writer:
    """Writes the blocks of one chunk to the files whose parts it holds."""

    def __init__(
        self,
        files: Sequence[FileEntry],
        parts: list[Segment],
        directory: str,
        locks: dict[int, threading.Lock],
        width: Width | None,
        filling: Filling | None,
        full: Callable[[], None] | None,
    ) -> None:
        """`width` counts what comes; `filling` is given it too. `full` is called where the disk is full. `locks` has a
        lock for each file that is wanted. Linux lets one thread at a time write to a file; without the locks the other
        threads would spin, on cores that could hash."""
        self.files = files
        self.parts = parts
        self.directory = directory
        self.locks = locks
        self.width = width
        self.filling = filling
        self.full = full

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def restart(self) -> None:
        """The chunk's first block comes next."""
        self._close()
        if self.filling is not None:
            self.filling.restart()
        self._next = iter(self.parts)
        self._left = 0

    _file: Any = None
    _file_lock: threading.Lock

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, block: memoryview) -> None:
        """Write a block."""
        check()
        if self.width is not None:
            self.width.moved(len(block))
        if self.filling is not None:
            self.filling.write(block)
        while block:
            if not self._left:
                self._close()
                part = next(self._next)
                self._left = part.length
                if part.file in self.locks:
                    self._file_lock = self.locks[part.file]
                    file = self.files[part.file]
                    self._file = create(os.path.join(self.directory, file.path), file.mode, self.full)
                    seek(self._file, part.start)
            count = min(self._left, len(block))
            if self._file is not None:
                with self._file_lock:
                    write_all(self._file, block[:count], self.full)
            self._left -= count
            block = block[count:]
