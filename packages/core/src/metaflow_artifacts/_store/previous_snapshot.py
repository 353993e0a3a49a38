"""Reuse of the chunks of a stored snapshot in the next snapshot of the same remote place."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.dedupe_index import Snapshot
from metaflow_artifacts._store.streams import StreamedFile
from metaflow_artifacts._transfer.chunks import read_chunk
from metaflow_artifacts.errors import CorruptArtifact

__all__ = ["PreviousSnapshot"]

_MAX_CHUNKS_IN_MEMORY = 4


class PreviousSnapshot:
    """The content of a stored snapshot, by the ids of its files. Several threads may use it."""

    def __init__(self, storage: Storage, snapshot: Snapshot) -> None:
        self._storage = storage
        self._chunks = snapshot.manifest.chunks
        self._inline = snapshot.manifest.inline
        self._starts = [0, *accumulate(chunk.size for chunk in self._chunks)]
        self._files: dict[tuple[str, int], FileEntry] = {}
        ids = snapshot.ids
        for entry in snapshot.manifest.files:
            if entry.path in ids:
                self._files[ids[entry.path], entry.size] = entry
        self._packs = self._find_packs(snapshot)
        self._contents: OrderedDict[Chunk, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def _find_packs(self, snapshot: Snapshot) -> dict[tuple[tuple[str, str], ...], tuple[Chunk, list[FileEntry]]]:
        """The packs: each chunk that consists of whole files, by the paths and ids of these files."""
        files, ids = snapshot.manifest.files, snapshot.ids
        packs = {}
        parts = segments([file.size for file in files], [chunk.size for chunk in self._chunks])
        for chunk, sections in zip(self._chunks, parts, strict=True):
            entries = [files[part.file] for part in sections]
            whole = all(part.length == entry.size for part, entry in zip(sections, entries, strict=True))
            if whole and all(entry.path in ids for entry in entries):
                packs[tuple((entry.path, ids[entry.path]) for entry in entries)] = chunk, entries
        return packs

    def pack(self, files: Iterable[StreamedFile]) -> tuple[Chunk, list[str | None]] | None:
        """The chunk that holds exactly these files in this order, with the SHA-256 of each if the manifest has it."""
        found = self._packs.get(tuple((file.path, file.id) for file in files))
        return (found[0], [entry.sha256 for entry in found[1]]) if found is not None else None

    def chunks_of(self, file: StreamedFile) -> list[Chunk] | None:
        """The chunks of a file; None if it shares a chunk with another file."""
        entry = self._files.get((file.id, file.size))
        if entry is None or not entry.size:
            return None
        first = bisect_right(self._starts, entry.offset) - 1
        last = bisect_right(self._starts, entry.offset + entry.size) - 1
        if self._starts[first] != entry.offset or self._starts[last] != entry.offset + entry.size:
            return None
        return list(self._chunks[first:last])

    def content(self, file: StreamedFile) -> bytes | None:
        """The content of a file that is inline or in one chunk; None for others, and if it is missing or damaged."""
        entry = self._files.get((file.id, file.size))
        if entry is None or not entry.size:
            return None
        if self._inline is not None:
            return self._inline[entry.offset : entry.offset + entry.size]
        number = bisect_right(self._starts, entry.offset) - 1
        start = entry.offset - self._starts[number]
        if start + entry.size > self._chunks[number].size:
            return None
        try:
            content = self._chunk(self._chunks[number])[start : start + entry.size]
        except CorruptArtifact:
            return None
        if entry.sha256 is not None and hashlib.sha256(content).hexdigest() != entry.sha256:
            return None
        return content

    def _chunk(self, chunk: Chunk) -> bytes:
        # Under the lock, because files that are next to each other are in the same chunk, which should be read once.
        with self._lock:
            content = self._contents.get(chunk)
            if content is None:
                whole = bytearray()
                read_chunk(self._storage, chunk, whole.extend, whole.clear)
                content = self._contents[chunk] = bytes(whole)
                if len(self._contents) > _MAX_CHUNKS_IN_MEMORY:
                    self._contents.popitem(last=False)
            return content
