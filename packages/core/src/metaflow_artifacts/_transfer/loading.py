"""From chunks in a storage into files, in parallel. Every byte is verified before it may be used."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._format.manifest import Chunk, FileEntry, begins_of
from metaflow_artifacts._format.plan import Segment, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.job import check, current, pause
from metaflow_artifacts._transfer.cache import Cache, Filling, Patience
from metaflow_artifacts._transfer.chunks import READ_BYTES, read_chunk
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Group
from metaflow_artifacts._transfer.holes import leave_hole, only_zeros, zero_sha256
from metaflow_artifacts._transfer.packs import MAX_HELD_BYTES, Run, cached_run, read_run, runs
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.reuse import Leftovers
from metaflow_artifacts._transfer.split_reads import SplitReads, most_ranges, ranges_of
from metaflow_artifacts._transfer.staging import Stage
from metaflow_artifacts._transfer.target import create, seek, write_all, write_file
from metaflow_artifacts._transfer.width import Width, width_of

__all__ = ["fetch_chunks", "read_range"]

_ZEROS = memoryview(bytes(512 << 10))
_SMALL_BYTES = 64 << 10
"""Smaller files have no holes (see `only_zeros`)."""
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

    def memory(self, split: SplitReads | None) -> int:
        if self.runs is not None:
            return 2 * max(run.size for run in self.runs)
        return READ_BYTES * (split.ranges(self.chunk) if split else 1)


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
        self._split: SplitReads | None = None
        """What reads the chunks of this round, if they are few."""

    def run(self, pieces: Sequence[_Piece]) -> None:
        once, again, zeros, first = self._sorted(pieces)
        self._run(once)
        if again or zeros:
            local = Width(os.cpu_count() or 1)
            self._make(zeros, self._leave_holes, local)
            self._make(again, lambda piece: self._from_stage(piece, first[piece.chunk]), local)

    def _sorted(self, pieces: Sequence[_Piece]) -> tuple[list[_Piece], list[_Piece], list[_Piece], dict[Chunk, _Piece]]:
        """What is fetched; what then is in the stage already, since a chunk occurs again; repeated zeros; and for each
        repeated chunk the piece that is fetched.

        Only repeated chunks are compared with zeros, for which they would have to be hashed.
        """
        repeated = {chunk for chunk, times in Counter(piece.chunk for piece in pieces).items() if times > 1}
        zeros = {chunk for chunk in repeated if chunk.sha256 == zero_sha256(chunk.size)}
        first: dict[Chunk, _Piece] = {}
        rest, again, holes = [], [], []
        for piece in pieces:
            if piece.runs is None and piece.chunk in zeros:
                holes.append(piece)
            elif piece.chunk in first and piece.runs is None:
                again.append(piece)
            else:
                # Only from files that are written here can it be read again.
                if piece.chunk in repeated and all(part.file in self._wanted for part in piece.parts):
                    first.setdefault(piece.chunk, piece)
                rest.append(piece)
        return rest, again, holes, first

    def _leave_holes(self, piece: _Piece) -> None:
        for part in piece.parts:
            if part.file in self._wanted:
                entry = self._files[part.file]
                location = os.path.join(self._stage.files, entry.path)
                with create(location, entry.mode, self._full) as file, self._locks[part.file]:
                    seek(file, part.start)
                    if not leave_hole(file, part.length, entry.size):
                        for begin in range(0, part.length, len(_ZEROS)):
                            write_all(file, _ZEROS[: part.length - begin], self._full)
        self._stage.holds_content = True
        self._progress.add(piece.size)

    def _from_stage(self, piece: _Piece, first: _Piece) -> None:
        """Write a chunk again that was written elsewhere in the stage. It is hashed, since a disk may be damaged."""
        digest = hashlib.sha256()
        try:
            with self._writer(piece.parts) as writer:
                writer.restart()
                for block in self._blocks(first.parts):
                    digest.update(block)
                    writer.take(block)
        except FileNotFoundError:
            digest = hashlib.sha256()
        if digest.hexdigest() == piece.chunk.sha256:
            self._progress.add(piece.size)
        else:
            self._from_storage(piece)

    def _blocks(self, parts: Sequence[Segment]) -> Iterator[memoryview]:
        """What the stage has of some parts."""
        buffer = memoryview(bytearray(len(_ZEROS)))
        for part in parts:
            with open(os.path.join(self._stage.files, self._files[part.file].path), "rb", buffering=0) as file:
                file.seek(part.start)
                left = part.length
                while left and (count := file.readinto(buffer[: min(left, len(buffer))])):
                    yield buffer[:count]
                    left -= count

    def _run(self, pieces: Sequence[_Piece]) -> None:
        cache = self._cache
        if cache is None:
            self._fetch(pieces, self._from_storage)
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
            self._fetch(rest, lambda piece: self._into_cache(cache, piece, patience))
            if len(self._left) == len(pieces):
                pause(_ROUND_S)
            # What had been left in the target was looked for once.
            self._found = None
            pieces = self._left

    def _fetch(self, pieces: Sequence[_Piece], get: Callable[[_Piece], None]) -> None:
        """Get pieces from the storage: where they are few, their chunks over several connections each."""
        wide, self._width = width_of(self._storage, "ranges"), width_of(self._storage, "load")
        # Also where nothing is split, which may be so since a server has asked to slow down long ago.
        wide.begin()
        whole = [piece.chunk for piece in pieces if piece.runs is None]
        most = most_ranges(len(pieces), wide.now) if self._storage.most_threads else 1
        # Calls of a call are made in its thread.
        if any(ranges_of(chunk, most) > 1 for chunk in whole) and current() is None:
            group = Group(engine(), wide)
            self._width = wide
            self._split = SplitReads(self._storage, group, most, self._range_writer, self._blocks)
        self._make(pieces, get, self._width)
        # Nobody waits any more for calls of its group, or stops them.
        self._split = None

    @contextmanager
    def _range_writer(self, parts: Sequence[Segment]) -> Iterator[_Writer]:
        # After an interrupt, the thread of the chunk does not wait for this one.
        with self._stage.used(), self._writer(parts, self._width) as writer:
            yield writer

    def _make(self, pieces: Sequence[_Piece], get: Callable[[_Piece], None], width: Width) -> None:
        split = self._split

        def call(piece: _Piece) -> None:
            with self._stage.used():
                if self._found is not None and self._found.fill(piece.chunk, piece.parts, self._wanted):
                    self._stage.holds_content = True
                    self._progress.add(piece.size, found=piece.size)
                else:
                    get(piece)

        calls = ((piece.memory(split), functools.partial(call, piece)) for piece in pieces)
        engine().run(calls, width, None if split is None else split.group)

    def _from_cache(self, cache: Cache, piece: _Piece) -> None:
        if not self._take_cached(cache, piece):
            self._left.append(piece)

    def _take_cached(self, cache: Cache, piece: _Piece) -> bool:
        if piece.runs is None:
            with self._writer(piece.parts) as writer:
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
            with self._writer(piece.parts, self._width, filling) as writer:
                if not self._from_ranges(piece, writer):
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

    def _from_ranges(self, piece: _Piece, writer: _Writer) -> bool:
        """Whether a chunk was read in several ranges."""
        split = self._split
        if split is None or split.ranges(piece.chunk) == 1:
            return False
        # Ranges are read back, so all of them must be written.
        if not all(part.file in self._wanted for part in piece.parts):
            return False
        return split.read(piece.chunk, piece.parts, writer, writer.fill)

    def _files_of(self, run: Run) -> list[FileEntry]:
        return [self._files[number] for number in run.files]

    def _write_run(self, run: Run, content: bytes) -> None:
        rest = memoryview(content)
        for file in self._files_of(run):
            write_file(self._stage.files, file, rest[: file.size], self._full)
            rest = rest[file.size :]

    def _writer(self, parts: Sequence[Segment], width: Width | None = None, filling: Filling | None = None) -> _Writer:
        return _Writer(self._files, parts, self._stage.files, self._locks, width, filling, self._full)


def read_range(
    storage: Storage,
    chunks: Sequence[Chunk],
    file: FileEntry,
    start: int,
    end: int,
    cache: Cache | None = None,
    begins: Sequence[int] | None = None,
) -> bytes:
    """The bytes from `start` to `end` of a file, verified.

    Reads only the file where the manifest has its digest, else the chunks that hold the range. Chunks that the `cache`
    has are read there, and none is put there. `begins` are the positions of the chunks in the stream, if the caller
    knows them. Raises the errors of `read_chunk`.
    """
    found = bytearray()
    if begins is None:
        begins = begins_of(chunks)
    for index in range(max(0, bisect_right(begins, file.offset + start) - 1), len(chunks)):
        chunk, begin = chunks[index], begins[index]
        if begin >= file.offset + end:
            break
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
        parts: Sequence[Segment],
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
    _size = 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def fill(self, block: memoryview) -> None:
        """Give a block to the filling alone."""
        if self.filling is not None:
            self.filling.write(block)

    def take(self, block: memoryview) -> None:
        """Write a block."""
        check()
        if self.width is not None:
            self.width.moved(len(block))
        self.fill(block)
        while block:
            if not self._left:
                self._close()
                part = next(self._next)
                if self._writes_whole(part, block):
                    block = block[part.length :]
                    continue
                self._left = part.length
                if part.file in self.locks:
                    self._file_lock = self.locks[part.file]
                    self._size = self.files[part.file].size
                    file = self.files[part.file]
                    self._file = create(os.path.join(self.directory, file.path), file.mode, self.full)
                    seek(self._file, part.start)
            count = min(self._left, len(block))
            if self._file is not None:
                zeros = only_zeros(block[:count])
                with self._file_lock:
                    if not (zeros and leave_hole(self._file, count, self._size)):
                        write_all(self._file, block[:count], self.full)
            self._left -= count
            block = block[count:]

    def _writes_whole(self, part: Segment, block: memoryview) -> bool:
        """Write a file if it is all in this block, and too small to have holes. No other thread writes to it."""
        file = self.files[part.file]
        if part.file not in self.locks or not file.size == part.length <= len(block) or file.size >= _SMALL_BYTES:
            return False
        write_file(self.directory, file, block[: part.length], self.full)
        return True
