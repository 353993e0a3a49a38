"""From files into chunks of a storage, in parallel.

Memory is bounded by the number of threads: each holds one block, and one chunk where the storage stages in memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Group, Segment, plan_groups, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.chunks import REFRESH_AFTER, chunk_key, is_stored
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again
from metaflow_artifacts._transfer.source import (
    BLOCK,
    ROUNDS,
    Changed,
    OpenSource,
    is_young,
    keeps_changing,
    wait_for_tick,
)
from metaflow_artifacts._transfer.threads import in_threads

__all__ = ["file_entries", "save_chunks"]

_SMALL = 64 << 10
"""Bytes: packs of files that are smaller on average are read by one thread at a time."""


def save_chunks(
    storage: Storage, source: Source, chunk_size: int, progress: Progress, refresh_after: float = REFRESH_AFTER
) -> tuple[list[Chunk], dict[int, str]]:
    """Store the content of `source`, cut into chunks as planned.

    Returns the chunks in order, and for each file that shares a chunk with others its own SHA-256 (hex) by its
    number. A file that is changed meanwhile is looked at anew and read again, up to three times; its entry in
    `source` is replaced. Raises SourceError where it goes on changing, StorageError where the storage fails.
    """
    return _Saver(storage, source, chunk_size, progress, refresh_after).run()


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
class _Task:
    """A group of files on its way into the storage."""

    group: Group
    chunks: list[Chunk | None]
    shared: OpenSource | None
    """The one file of a group of several chunks, which all their jobs read."""
    digests: dict[int, str] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)


class _Saver:
    def __init__(
        self, storage: Storage, source: Source, chunk_size: int, progress: Progress, refresh_after: float
    ) -> None:
        self.storage = storage
        self.source = source
        self.files = source.files
        self._rounds: Counter[int] = Counter()
        self.chunk_size = chunk_size
        self.progress = progress
        self.refresh_after = refresh_after
        self._mine: set[str] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._local = threading.local()
        # Optimistic: write while hashing. After the first duplicate, hash first, until a chunk is new again.
        self._expect_new = True

    def run(self) -> tuple[list[Chunk], dict[int, str]]:
        done: list[_Task] = []
        groups = self._plan(range(len(self.files)))
        while groups:
            tasks = [self._task(group) for group in groups]
            try:
                in_threads(self.storage.threads, self._all_jobs(tasks))
            finally:
                for task in tasks:
                    if task.shared is not None:
                        task.shared.close()
            done += [task for task in tasks if not task.changed]
            groups = [group for task in tasks if task.changed for group in self._plan_again(task)]
        done.sort(key=lambda task: task.group.files.start)
        chunks = [chunk for task in done for chunk in task.chunks if chunk is not None]
        return chunks, {number: digest for task in done for number, digest in task.digests.items()}

    def _plan(self, numbers: range) -> list[Group]:
        named = [(self.files[number].path, self.files[number].size) for number in numbers]
        first = numbers.start
        return [
            Group(range(group.files.start + first, group.files.stop + first), group.sizes)
            for group in plan_groups(named, self.chunk_size)
        ]

    def _plan_again(self, task: _Task) -> list[Group]:
        for number in task.changed:
            self._rounds[number] += 1
            if self._rounds[number] == ROUNDS:
                raise keeps_changing(self.files[number])
        # The others of a pack may have changed too, and were not reached.
        for number in task.group.files:
            self.files[number] = look_again(self.files[number], self.source)
        groups = self._plan(task.group.files)
        self.progress.more(sum(size for group in groups for size in group.sizes))
        return groups

    def _open(self, number: int, parts: int = 1) -> OpenSource:
        return OpenSource(self.files[number], number, parts, may_grow=self._rounds[number] == ROUNDS - 1)

    def _task(self, group: Group) -> _Task:
        chunks = len(group.sizes)
        return _Task(group, [None] * chunks, self._open(group.files.start, chunks) if chunks > 1 else None)

    def _all_jobs(self, tasks: list[_Task]) -> Iterator[Callable[[], None]]:
        """The youngest files come last: when they are reached, they are old enough to be read, as a rule."""
        young = []
        for task in tasks:
            if any(is_young(self.files[number]) for number in task.group.files):
                young.append(task)
            else:
                yield from self._jobs(task)
        wait_for_tick(self.files[number] for task in young for number in task.group.files)
        for task in young:
            yield from self._jobs(task)

    def _jobs(self, task: _Task) -> Iterator[Callable[[], None]]:
        first = task.group.files.start
        sizes = [self.files[number].size for number in task.group.files]
        for index, parts in enumerate(segments(sizes, task.group.sizes)):
            here = [Segment(part.file + first, part.start, part.length) for part in parts]
            yield self._job(task, index, here)

    def _job(self, task: _Task, index: int, parts: list[Segment]) -> Callable[[], None]:
        def run() -> None:
            # Another job of the same file may have found it changed.
            if task.changed:
                return
            try:
                task.chunks[index] = self._save(task, parts, task.group.sizes[index])
            except Changed as error:
                task.changed.add(error.number)

        return run

    def _save(self, task: _Task, parts: list[Segment], size: int) -> Chunk:
        if not self._expect_new:
            chunk = self._read(task, parts, size, lambda block: None)
            if self._present(chunk):
                self._finish(task, parts, chunk)
                self.progress.add(size)
                return chunk
            self._expect_new = True
        with self.storage.stage(size) as staged:
            chunk = self._read(task, parts, size, staged.write)
            self._finish(task, parts, chunk)
            if self._present(chunk):
                self._expect_new = self.storage.stages_in_memory
                self.progress.add(size)
            else:
                staged.commit(chunk_key(chunk.sha256), bytes.fromhex(chunk.sha256))
                with self._lock:
                    self._mine.add(chunk.sha256)
                self.progress.add(size, stored=size)
        return chunk

    def _present(self, chunk: Chunk) -> bool:
        with self._lock:
            if chunk.sha256 in self._mine:
                return True
        return is_stored(self.storage, chunk, self.refresh_after)

    def _read(self, task: _Task, parts: list[Segment], size: int, take: Callable[[memoryview], None]) -> Chunk:
        """Read the content of one chunk, each whole file in it from a descriptor of its own."""
        # Threads that read small files would spend their time on handing the interpreter's lock to each other.
        with self._turn if size < _SMALL * len(parts) else nullcontext():
            return self._read_parts(task, parts, size, take)

    def _read_parts(self, task: _Task, parts: list[Segment], size: int, take: Callable[[memoryview], None]) -> Chunk:
        digest = hashlib.sha256()
        buffer = self._block()
        for part in parts:
            opened = task.shared or self._open(part.file)
            own = hashlib.sha256()
            try:
                for block in opened.blocks(part.start, part.length, buffer):
                    digest.update(block)
                    if len(parts) > 1:
                        own.update(block)
                    take(block)
                if task.shared is None:
                    opened.finish(part.start, part.length, (own if len(parts) > 1 else digest).hexdigest())
            finally:
                if task.shared is None:
                    opened.close()
            if len(parts) > 1:
                task.digests[part.file] = own.hexdigest()
        return Chunk(digest.hexdigest(), size)

    def _finish(self, task: _Task, parts: list[Segment], chunk: Chunk) -> None:
        if task.shared is not None:
            task.shared.finish(parts[0].start, chunk.size, chunk.sha256)

    def _block(self) -> memoryview:
        block: memoryview | None = getattr(self._local, "block", None)
        if block is None:
            block = self._local.block = memoryview(bytearray(BLOCK))
        return block
