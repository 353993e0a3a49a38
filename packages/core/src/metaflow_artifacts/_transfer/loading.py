"""From chunks in a storage into files, in parallel. Every byte is verified before it may be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.job import check
from metaflow_artifacts._transfer.chunks import READ_BYTES, read_chunk
from metaflow_artifacts._transfer.engine import Call, engine
from metaflow_artifacts._transfer.packs import MAX_HELD_BYTES, Run, read_run, runs
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.reuse import Leftovers
from metaflow_artifacts._transfer.staging import Stage
from metaflow_artifacts._transfer.target import create, seek, write_all, write_file
from metaflow_artifacts._transfer.width import Width, width_of

__all__ = ["fetch_chunks", "read_range"]


def fetch_chunks(
    storage: Storage,
    files: Sequence[FileEntry],
    chunks: Sequence[Chunk],
    stage: Stage,
    wanted: set[int],
    progress: Progress,
    found: Leftovers | None = None,
) -> None:
    """Write the files with the numbers in `wanted` to `stage`, except for what is `found` already.

    The directories of the files exist already. Every byte is verified before this returns. If it raises, the content
    of `stage` must not be used.
    """
    directory = stage.files
    parts = segments([file.size for file in files], [chunk.size for chunk in chunks])
    locks = {number: threading.Lock() for number in wanted}
    width = width_of(storage, "load")

    def write_run(chunk: Chunk, run: Run) -> None:
        content = memoryview(read_run(storage, chunk, run.start, [files[number] for number in run.files]))
        width.moved(run.size)
        for number in run.files:
            write_file(directory, files[number], content[: files[number].size])
            content = content[files[number].size :]

    def job(chunk: Chunk, mine: list[Segment]) -> Call:
        alone = runs(chunk, mine, files, wanted)
        size = sum(part.length for part in mine if part.file in wanted)

        def run() -> None:
            with stage.used():
                if found is not None and found.fill(chunk, mine, wanted):
                    stage.holds_content = True
                    progress.add(size, found=size)
                    return
                if alone is None:
                    _Writer(files, mine, directory, locks, width).write(storage, chunk)
                else:
                    for one in alone:
                        write_run(chunk, one)
                stage.holds_content = True
            progress.add(size)

        return (READ_BYTES if alone is None else 2 * max(one.size for one in alone)), run

    jobs = (
        job(chunk, mine) for chunk, mine in zip(chunks, parts, strict=True) if any(part.file in wanted for part in mine)
    )
    engine().run(jobs, width)


def read_range(storage: Storage, chunks: Sequence[Chunk], file: FileEntry, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of a file, verified.

    Reads only the file where the manifest has its digest, else the chunks that hold the range. Raises the errors of
    `read_chunk`.
    """
    content = bytearray()
    begin = 0
    for chunk in chunks:
        first, last = max(file.offset + start, begin), min(file.offset + end, begin + chunk.size)
        if first < last:
            alone = begin <= file.offset and file.offset + file.size <= begin + chunk.size
            if file.sha256 is not None and alone and file.size < min(chunk.size, MAX_HELD_BYTES):
                return read_run(storage, chunk, file.offset - begin, [file])[start:end]
            piece = _Piece(first - begin, last - begin)
            read_chunk(storage, chunk, piece.take, piece.restart)
            content += piece.content
        begin += chunk.size
    return bytes(content)


class _Piece:
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
        width: Width,
    ) -> None:
        """`locks` has a lock for each file that is wanted. Linux lets one thread at a time write to a file; without the
        locks the other threads would spin, on cores that could hash."""
        self.files = files
        self.parts = parts
        self.directory = directory
        self.locks = locks
        self.width = width
        self._restart()

    def write(self, storage: Storage, chunk: Chunk) -> None:
        try:
            read_chunk(storage, chunk, self._take, self._restart)
        finally:
            self._close()

    def _restart(self) -> None:
        self._close()
        self._next = iter(self.parts)
        self._left = 0

    _file: Any = None
    _file_lock: threading.Lock

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, block: memoryview) -> None:
        check()
        self.width.moved(len(block))
        while block:
            if not self._left:
                self._close()
                part = next(self._next)
                self._left = part.length
                if part.file in self.locks:
                    self._file_lock = self.locks[part.file]
                    self._file = create(
                        os.path.join(self.directory, self.files[part.file].path), self.files[part.file].mode
                    )
                    seek(self._file, part.start)
            count = min(self._left, len(block))
            if self._file is not None:
                with self._file_lock:
                    write_all(self._file, block[:count])
            self._left -= count
            block = block[count:]
