"""Files that come as streams, stored as chunks: reused where the store has them, else taken from their source.

The source lists the sizes of all files, so that the borders of the chunks are known before the first byte arrives. Each
file is requested once. Only chunks are written, and the files themselves if a target directory is given.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.paths import local_path
from metaflow_artifacts._format.plan import is_packed, plan, segments
from metaflow_artifacts._store.dedupe_index import DedupeIndex
from metaflow_artifacts._store.previous_snapshot import PreviousSnapshot
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._store.streams import Stream, StreamedFile, StreamSource
from metaflow_artifacts._transfer.chunks import chunk_key, is_stored, put_chunk
from metaflow_artifacts._transfer.engine import Later
from metaflow_artifacts._transfer.loading import read_range
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.target import create, make_tree, write_all
from metaflow_artifacts._transfer.threads import beside, in_threads
from metaflow_artifacts.errors import ArtifactError, CorruptArtifact

__all__ = ["Ingested", "ingest"]

_F = TypeVar("_F", bound=StreamedFile)
_T = TypeVar("_T")

_FILE_MODE = 0o644
_STORED_AT_ONCE = 8
"""Chunks that are written at the same time, each while the next one of its file arrives."""
_BLOCKS_BYTES = 2 << 20
"""What a download needs besides the chunks that it holds."""


@dataclass
class Ingested:
    """Content that is in the store, though no manifest names it yet."""

    files: list[FileEntry]
    chunks: list[Chunk]
    ids: dict[str, str]
    """The id of each file whose content was verified against it, by path."""
    since: float | None = None
    """When the first chunk was looked up, in seconds since the epoch; None if no chunk was looked up."""
    downloaded: int = 0
    """Bytes that came from the source."""
    delivered: bool = False
    """Whether all files were written into the target directory too."""


def ingest(
    store: Store,
    index: DedupeIndex,
    source: StreamSource[_F],
    files: Sequence[_F],
    *,
    previous: PreviousSnapshot | None = None,
    reuse: bool = True,
    target: str | None = None,
    progress: Progress | None = None,
) -> Ingested:
    """Store the content of `files`, which are sorted by the bytes of their paths.

    `previous` is a stored snapshot of the same remote place, whose chunks are reused. Without `reuse`, every file is
    taken from the source. Files are also written into the empty directory `target` while they arrive; if the store
    already had one of them, `target` is left empty. Raises what the source raises, TargetError if `target` cannot be
    written, StorageError if the store fails.
    """
    return _Ingestion(store, index, source, files, previous, reuse, target, progress or Progress()).run()


@dataclass
class _Unit:
    """Files that are stored together: one big file with its chunks, or a pack of small files in one chunk."""

    files: list[int]
    chunks: list[Chunk] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)


class _Stopped(Exception):
    """Another file has failed, so that this one is no longer needed."""


class _IncomingChunk:
    """A chunk of `size` bytes that arrives in parts, which are written to the storage's staging area at once."""

    def __init__(self, store: Store, size: int) -> None:
        self.missing = size
        """Bytes that have not arrived yet."""
        self._store = store
        self._size = size
        self._digest = hashlib.sha256()
        self._stack = ExitStack()
        self._staged = self._stack.enter_context(store.storage.stage(size))

    def take(self, block: memoryview) -> memoryview:
        """Add as much of a block as the chunk lacks, and return the rest of the block."""
        part = block[: self.missing]
        self._digest.update(part)
        self._staged.write(part)
        self.missing -= len(part)
        return block[len(part) :]

    def commit(self) -> tuple[Chunk, bool]:
        """Store the chunk, and return it with whether it is new to the store. Any thread may call this."""
        chunk = Chunk(self._digest.hexdigest(), self._size)
        with self._stack:
            if is_stored(self._store.storage, chunk, self._store.refresh_after):
                return chunk, False
            self._staged.commit(chunk_key(chunk.sha256), self._digest.digest())
        return chunk, True

    def close(self) -> None:
        """Discard what has arrived."""
        self._stack.close()


class _Ingestion(Generic[_F]):
    def __init__(
        self,
        store: Store,
        index: DedupeIndex,
        source: StreamSource[_F],
        files: Sequence[_F],
        previous: PreviousSnapshot | None,
        reuse: bool,
        target: str | None,
        progress: Progress,
    ) -> None:
        self.store = store
        self.index = index
        self.source = source
        self.files = files
        self.previous = previous if reuse else None
        self.reuse = reuse
        self.target = target
        self.deliver = target is not None
        self.progress = progress
        self.content = Ingested([], [], {}, time.time())
        self.digests: dict[int, str] = {}
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def run(self) -> Ingested:
        self.progress.start(sum(file.size for file in self.files))
        units = list(self._units())
        if self.target is not None:
            make_tree(self.target, [local_path(file.path) for file in self.files], ())
        with beside(_STORED_AT_ONCE) as self._putters:
            try:
                in_threads(max(1, self.source.parallel), self._calls(units))
            except _Stopped:
                assert self._failure is not None
                raise self._failure from None
            except BaseException:
                self.source.cancel()
                raise
        self.content.chunks = [chunk for unit in units for chunk in unit.chunks]
        offset = 0
        for number, file in enumerate(self.files):
            self.content.files.append(FileEntry(file.path, file.size, _FILE_MODE, offset, self.digests.get(number)))
            offset += file.size
        if self.target is not None:
            self._finish_target(self.target)
        return self.content

    def _finish_target(self, target: str) -> None:
        self.content.delivered = self.deliver
        if self.deliver:
            for file in self.files:
                if not file.size:
                    create(os.path.join(target, local_path(file.path)), _FILE_MODE).close()
            return
        with os.scandir(target) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)

    def _units(self) -> Iterator[_Unit]:
        run: list[int] = []
        for number, file in enumerate(self.files):
            if is_packed(file.size, self.store.chunk_size):
                run.append(number)
            else:
                yield from self._packs(run)
                yield _Unit([number])
                run = []
        yield from self._packs(run)

    def _packs(self, run: list[int]) -> Iterator[_Unit]:
        sizes = [self.files[number].size for number in run]
        chunks = plan([(self.files[number].path, self.files[number].size) for number in run], self.store.chunk_size)
        for parts in segments(sizes, chunks):
            yield _Unit([run[part.file] for part in parts])

    def _calls(self, units: list[_Unit]) -> Iterator[tuple[int, Callable[[], None]]]:
        """Each call with the bytes of memory that it needs."""
        held = self.store.storage.stages_in_memory
        for unit in units:
            first = self.files[unit.files[0]]
            if not is_packed(first.size, self.store.chunk_size):
                # One chunk is written while the next one arrives.
                chunks = min(first.size, 2 * self.store.chunk_size) if held else 0
                yield chunks + _BLOCKS_BYTES, self._call(self._save_big, unit)
                continue
            # The contents of its files, and the pack.
            pack = 2 * sum(self.files[number].size for number in unit.files)
            if self.previous is not None and self.previous.pack(self.files[number] for number in unit.files):
                yield pack, self._call(self._save_known_pack, unit)
            else:
                for number in unit.files:
                    yield pack, self._call(self._save_small, unit, number)

    def _call(self, function: Callable[..., None], *arguments: object) -> Callable[[], None]:
        def run() -> None:
            try:
                function(*arguments)
            except _Stopped:
                raise
            except BaseException as error:
                with self._lock:
                    self._failure = self._failure or error
                self.source.cancel()
                raise

        return run

    def _save_big(self, unit: _Unit) -> None:
        file = self.files[unit.files[0]]
        chunks = self._known_chunks(file)
        if chunks is None:
            chunks = self._stream(file, partial(self._cut, file))
            if file.sha256 is not None:
                self.index.note_file(file.sha256, chunks)
        else:
            self._skip(file)
            self.progress.add(file.size)
        unit.chunks = chunks

    def _known_chunks(self, file: _F) -> list[Chunk] | None:
        """The chunks of a file if the store has all of them, else None."""
        if not self.reuse:
            return None
        for chunks in self._candidates(file):
            if chunks and all(self._is_stored(chunk) for chunk in chunks):
                return chunks
        return None

    def _candidates(self, file: _F) -> Iterator[list[Chunk] | None]:
        if self.previous is not None:
            yield self.previous.chunks_of(file)
        if file.sha256 is not None:
            location = self.index.file(file.sha256, file.size)
            if location is not None and sum(chunk.size for chunk in location.chunks) == file.size:
                yield location.chunks
            if file.size <= self.store.chunk_size:
                # A file that is one chunk has the digest in the chunk's name, whichever decorator saved it.
                yield [Chunk(file.sha256, file.size)]

    def _is_stored(self, chunk: Chunk) -> bool:
        self._stop_if_failed()
        return is_stored(self.store.storage, chunk, self.store.refresh_after)

    def _save_known_pack(self, unit: _Unit) -> None:
        files = [self.files[number] for number in unit.files]
        found = self.previous.pack(files) if self.previous is not None else None
        if found is None or not self._is_stored(found[0]):
            for number in unit.files:
                self._save_small(unit, number)
            return
        unit.chunks = [found[0]]
        for number, digest in zip(unit.files, found[1], strict=True):
            if digest is not None:
                self.digests[number] = digest
            self._skip(self.files[number])
            self.progress.add(self.files[number].size)

    def _save_small(self, unit: _Unit, number: int) -> None:
        file = self.files[number]
        content = self._known_content(file)
        if content is None:
            content = self._stream(file, b"".join)
        else:
            self._skip(file)
        with self._lock:
            unit.contents[number] = content
            is_complete = len(unit.contents) == len(unit.files)
        if is_complete:
            # The thread that adds the last file of a pack stores the pack.
            parts = [unit.contents[number] for number in unit.files]
            if len(parts) > 1:
                for number, part in zip(unit.files, parts, strict=True):
                    self.digests[number] = hashlib.sha256(part).hexdigest()
            unit.contents.clear()
            unit.chunks = [self._put(b"".join(parts))]
            self._note_pack(unit)

    def _known_content(self, file: _F) -> bytes | None:
        """The content of a small file if the store has it, else None."""
        if not self.reuse:
            return None
        self._stop_if_failed()
        content = self.previous.content(file) if self.previous is not None else None
        if content is not None or file.sha256 is None:
            return content
        location = self.index.file(file.sha256, file.size)
        if location is None:
            return None
        # With a digest, only the file is read of a chunk that contains other files too.
        digest = file.sha256 if len(location.chunks) == 1 else None
        entry = FileEntry(file.path, file.size, _FILE_MODE, location.offset, digest)
        try:
            content = read_range(self.store.storage, location.chunks, entry, 0, file.size)
        except CorruptArtifact:
            return None
        return content if hashlib.sha256(content).hexdigest() == file.sha256 else None

    def _note_pack(self, unit: _Unit) -> None:
        offset = 0
        for file in (self.files[number] for number in unit.files):
            if file.sha256 is not None and self.content.ids.get(file.path) == file.sha256:
                self.index.note_file(file.sha256, unit.chunks, offset)
            offset += file.size

    def _stream(self, file: _F, take: Callable[[Iterator[bytes]], _T]) -> _T:
        """What `take` makes of the blocks of a file. If the first stream ends with an error, there may be another."""
        stream = self.source.open(file)
        try:
            content = take(self._blocks(file, stream))
        except _Stopped:
            raise
        except ArtifactError as error:
            stream = self.source.reopen(file, error)
            content = take(self._blocks(file, stream))
        self._note_id(file, stream.verified)
        return content

    def _blocks(self, file: _F, stream: Stream) -> Iterator[bytes]:
        with (
            nullcontext()
            if self.target is None
            else create(os.path.join(self.target, local_path(file.path)), _FILE_MODE) as copy
        ):
            for block in stream:
                self._stop_if_failed()
                with self._lock:
                    self.content.downloaded += len(block)
                if copy is not None and self.deliver:
                    write_all(copy, memoryview(block))
                yield block

    def _stop_if_failed(self) -> None:
        if self._failure is not None:
            raise _Stopped

    def _cut(self, file: _F, blocks: Iterator[bytes]) -> list[Chunk]:
        """Cut a file into chunks. Each is committed while the next one arrives."""
        sizes = iter(plan([(file.path, file.size)], self.store.chunk_size))
        chunk: _IncomingChunk | None = None
        puts: list[Later[Chunk]] = []
        try:
            for block in blocks:
                view = memoryview(block)
                while view:
                    chunk = chunk or _IncomingChunk(self.store, next(sizes))
                    view = chunk.take(view)
                    if not chunk.missing:
                        if puts:
                            puts[-1].result()
                        puts.append(self._putters.later(partial(self._commit, chunk)))
                        chunk = None
        finally:
            if chunk is not None:
                chunk.close()
        return [put.result() for put in puts]

    def _commit(self, incoming: _IncomingChunk) -> Chunk:
        chunk, new = incoming.commit()
        self.progress.add(chunk.size, stored=chunk.size if new else 0)
        return chunk

    def _put(self, content: bytes | bytearray) -> Chunk:
        chunk, new = put_chunk(self.store.storage, memoryview(content), self.store.refresh_after)
        self.progress.add(chunk.size, stored=chunk.size if new else 0)
        return chunk

    def _skip(self, file: _F) -> None:
        """Leave out a file that is stored. The target directory can then not be filled from the streams alone."""
        self.deliver = False
        self._note_id(file, True)

    def _note_id(self, file: _F, verified: bool) -> None:
        if verified:
            with self._lock:
                self.content.ids[file.path] = file.id
