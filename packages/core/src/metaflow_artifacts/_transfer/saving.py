"""Saving: from files into chunks of a storage, in parallel.

To a storage on a server, a chunk of one file is read twice: to hash it, and to send it. So a connection needs no more
memory than a block. A pack of small files is read once, into memory, and sent from there.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Group, Segment, plan_groups, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.job import check
from metaflow_artifacts._storage.outgoing import ContentChanged
from metaflow_artifacts._transfer.cache import Cache, Filling
from metaflow_artifacts._transfer.chunks import REFRESH_AFTER, chunk_key, is_stored
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Call
from metaflow_artifacts._transfer.few_readers import FewReaders
from metaflow_artifacts._transfer.holes import zero_sha256
from metaflow_artifacts._transfer.pack_content import PackContents, digests
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again
from metaflow_artifacts._transfer.source import (
    FILE_ATTEMPTS,
    Changed,
    MemorySource,
    OpenSource,
    any_young,
    keeps_changing,
    opened_source,
    read_whole,
    wait_for_tick,
)
from metaflow_artifacts._transfer.width import width_of

__all__ = ["file_entries", "save_chunks"]


def save_chunks(
    storage: Storage,
    source: Source,
    chunk_size: int,
    progress: Progress,
    refresh_after: float = REFRESH_AFTER,
    cache: Cache | None = None,
    *,
    expects_new: bool = True,
) -> tuple[list[Chunk], dict[int, str]]:
    """Store the content of `source`, cut into chunks as planned.

    Returns the chunks in order, and for each file that shares a chunk with others its own SHA-256 (hex) by its
    number. A file that changes while it is read is read again, up to three times, and its entry in `source` is
    replaced. What is sent to a server is put into the `cache` too. On a disk, with `expects_new`, chunks are written
    while they are hashed, until one is found to be stored; without, they are hashed first, until one is found to be
    new. Raises SourceError where a file changes each time, StorageError where the storage fails.
    """
    return _Saver(storage, source, chunk_size, progress, refresh_after, cache, expects_new).run()


def file_entries(files: Sequence[SourceFile], digests: dict[int, str]) -> list[FileEntry]:
    """The rows of a manifest for `files`, in stream order; `digests` as `save_chunks` returns them."""
    entries = []
    offset = 0
    for number, file in enumerate(files):
        if file.gone:
            continue
        entries.append(FileEntry(file.path, file.size, file.mode, offset, digests.get(number)))
        offset += file.size
    return entries


@dataclass
class _GroupSave:
    """The state of one group of files while it is saved."""

    group: Group
    chunks: list[Chunk | None]
    shared: OpenSource | MemorySource | None
    """The file of a group that is one file in several chunks, or that is sent from the file: all its jobs read it."""
    sent: bool = False
    """Whether chunks are sent from the file."""
    digests: dict[int, str] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)


class _Saver:
    def __init__(
        self,
        storage: Storage,
        source: Source,
        chunk_size: int,
        progress: Progress,
        refresh_after: float,
        cache: Cache | None,
        expects_new: bool,
    ) -> None:
        self.storage = storage
        self.files = source.files
        self._rounds: Counter[int] = Counter()
        self.chunk_size = chunk_size
        self.progress = progress
        self.refresh_after = refresh_after
        self._cache = cache
        self._written: set[str] = set()
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._packs = PackContents(self._read_packed)
        self._first_reads = FewReaders((os.cpu_count() or 1) - 1)
        self._width = width_of(storage, "save")
        self._block_bytes = engine().manners.block_bytes
        # Optimistic: write while hashing. After the first duplicate, hash first, until a chunk is new again.
        self._expect_new = expects_new

    def run(self) -> tuple[list[Chunk], dict[int, str]]:
        done: list[_GroupSave] = []
        groups = self._plan(range(len(self.files)))
        self._packs.largest = max((sum(group.sizes) for group in groups if len(group.files) > 1), default=0)
        while groups:
            saves = [self._begin(group) for group in groups]
            try:
                engine().run(self._all_jobs(saves), self._width)
            finally:
                for save in saves:
                    if save.shared is not None:
                        save.shared.close()
            done += [save for save in saves if not save.changed]
            groups = [group for save in saves if save.changed for group in self._plan_again(save)]
        done.sort(key=lambda save: save.group.files.start)
        chunks = [chunk for save in done for chunk in save.chunks if chunk is not None]
        return chunks, {number: digest for save in done for number, digest in save.digests.items()}

    def _plan(self, numbers: range) -> list[Group]:
        named = [(self.files[number].path, self.files[number].size) for number in numbers]
        first = numbers.start
        return [
            Group(range(group.files.start + first, group.files.stop + first), group.sizes)
            for group in plan_groups(named, self.chunk_size)
        ]

    def _plan_again(self, save: _GroupSave) -> list[Group]:
        for number in save.changed:
            self._rounds[number] += 1
            if self._rounds[number] == FILE_ATTEMPTS:
                raise keeps_changing(self.files[number])
        # Reading stopped at the first file of a pack that had changed; the others may have changed too.
        for number in save.group.files:
            self.files[number] = look_again(self.files[number])
        groups = self._plan(save.group.files)
        self.progress.more(sum(size for group in groups for size in group.sizes))
        return groups

    def _open(self, number: int, parts: int = 1) -> OpenSource | MemorySource:
        return opened_source(self.files[number], number, parts, may_grow=self._may_grow(number))

    def _may_grow(self, number: int) -> bool:
        return self._rounds[number] == FILE_ATTEMPTS - 1

    def _begin(self, group: Group) -> _GroupSave:
        chunks = len(group.sizes)
        # A pack of small files would have to be opened file by file again.
        sent = self.storage.stages_in_memory and chunks > 0 and len(group.files) == 1
        shared = self._open(group.files.start, chunks) if chunks > 1 or sent else None
        return _GroupSave(group, [None] * chunks, shared, sent)

    def _all_jobs(self, saves: list[_GroupSave]) -> Iterator[Call]:
        """The youngest files come last: until then they are usually old enough (see `wait_for_tick`)."""
        if self.storage.stages_in_memory and sum(len(save.chunks) for save in saves) > 1:
            # While the first chunks are hashed.
            yield 0, self.storage.connect
        young = []
        for save in saves:
            if any_young(self.files[save.group.files.start : save.group.files.stop]):
                young.append(save)
            else:
                yield from self._jobs(save)
        wait_for_tick(self.files[number] for save in young for number in save.group.files)
        for save in young:
            yield from self._jobs(save)

    def _jobs(self, save: _GroupSave) -> Iterator[Call]:
        first = save.group.files.start
        sizes = [self.files[number].size for number in save.group.files]
        for index, parts in enumerate(segments(sizes, save.group.sizes, first)):
            held = max(self._packs.largest, save.group.sizes[index]) if len(save.group.files) > 1 else 0
            yield self._block_bytes + held, self._job(save, index, parts)

    def _job(self, save: _GroupSave, index: int, parts: list[Segment]) -> Callable[[], None]:
        def run() -> None:
            # Another job may have found that the file changed.
            if save.changed:
                return
            try:
                save.chunks[index] = self._save(save, parts, save.group.sizes[index])
            except Changed as error:
                save.changed.add(error.number)

        return run

    def _save(self, save: _GroupSave, parts: list[Segment], size: int) -> Chunk:
        if len(save.group.files) > 1:
            return self._save_pack(save, parts, size)
        part = parts[0]
        zeros = save.shared is not None and save.shared.is_zero(part.start, size)
        if save.sent or zeros:
            return self._send(save, part, size, zeros)
        if not self._expect_new:
            chunk = self._read(save, part, lambda block: None)
            if self._is_stored(chunk):
                self._finish(save, part, chunk)
                self.progress.add(size)
                return chunk
            self._expect_new = True
        with self.storage.stage(size) as staged, self._filling(size) as filling:
            filling.restart()
            chunk = self._read(save, part, filling.beside(staged.write))
            self._finish(save, part, chunk)
            if self._is_stored(chunk):
                self._expect_new = False
                self.progress.add(size)
            else:
                staged.commit(chunk_key(chunk.sha256), bytes.fromhex(chunk.sha256))
                filling.commit(chunk.sha256)
                self._is_written(chunk)
        return chunk

    def _save_pack(self, save: _GroupSave, parts: list[Segment], size: int) -> Chunk:
        """Read small files into memory, and write them from there if their chunk is new."""
        with self._packs.content(parts) as content:
            chunk, found = digests(parts, content, self._block_bytes)
            save.digests.update(found)
            if self._is_stored(chunk):
                self.progress.add(size)
                return chunk
            with self._filling(size) as filling:
                filling.restart()
                filling.write(content)
                self.storage.put_hashed(chunk_key(chunk.sha256), content, bytes.fromhex(chunk.sha256))
                filling.commit(chunk.sha256)
        self._is_written(chunk)
        return chunk

    def _read_packed(self, number: int, buffer: memoryview) -> None:
        read_whole(self.files[number], number, buffer, may_grow=self._may_grow(number))

    def _is_written(self, chunk: Chunk) -> None:
        self._width.moved(chunk.size)
        with self._lock:
            self._written.add(chunk.sha256)
        self.progress.add(chunk.size, stored=chunk.size)

    def _send(self, save: _GroupSave, part: Segment, size: int, zeros: bool) -> Chunk:
        """Hash a part of a file, and send it from the file if its chunk is new. Zeros are not hashed each time."""
        with self._first_reads.turn():
            chunk = Chunk(zero_sha256(size), size) if zeros else self._read(save, part, lambda block: None)
        with self._lock:
            turn = self._turns.setdefault(chunk.sha256, threading.Lock())
        # Equal chunks, as of a file of zeros, are sent once.
        with turn:
            new = not self._is_stored(chunk)
            self._first_reads.found(new)
            if new:
                self._send_part(save, part, chunk)
        self._finish(save, part, chunk)
        self.progress.add(size, stored=size if new else 0)
        return chunk

    def _send_part(self, save: _GroupSave, part: Segment, chunk: Chunk) -> None:
        opened = save.shared
        assert opened is not None

        def blocks() -> Generator[memoryview, None, None]:
            buffer = memoryview(bytearray(min(chunk.size, self._block_bytes)))
            filling.restart()
            for block in opened.blocks(part.start, part.length, buffer):
                self._width.moved(len(block))
                filling.write(block)
                yield block

        try:
            with self._filling(chunk.size) as filling:
                self.storage.send(chunk_key(chunk.sha256), chunk.size, bytes.fromhex(chunk.sha256), blocks)
                filling.commit(chunk.sha256)
        except ContentChanged:
            raise Changed(part.file) from None
        with self._lock:
            self._written.add(chunk.sha256)

    def _filling(self, size: int) -> Filling:
        return Filling() if self._cache is None else self._cache.fill_new(size)

    def _is_stored(self, chunk: Chunk) -> bool:
        with self._lock:
            if chunk.sha256 in self._written:
                return True
        found = is_stored(self.storage, chunk, self.refresh_after)
        if found:
            # A chunk that occurs again is not asked for again.
            with self._lock:
                self._written.add(chunk.sha256)
        return found

    def _read(self, save: _GroupSave, part: Segment, take: Callable[[memoryview], None]) -> Chunk:
        """Read one chunk of a file."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(part.length, self._block_bytes)))
        opened = save.shared or self._open(part.file)
        try:
            for block in opened.blocks(part.start, part.length, buffer):
                check()
                digest.update(block)
                take(block)
            if save.shared is None:
                opened.finish(part.start, part.length, digest.hexdigest())
        finally:
            if save.shared is None:
                opened.close()
        return Chunk(digest.hexdigest(), part.length)

    def _finish(self, save: _GroupSave, part: Segment, chunk: Chunk) -> None:
        if save.shared is not None:
            save.shared.finish(part.start, chunk.size, chunk.sha256)
