"""The content of a stored snapshot is found, whatever chunks it was cut into."""

from __future__ import annotations

import hashlib
from typing import Any

from metaflow_artifacts import Store
from metaflow_artifacts._format.manifest import Chunk, FileEntry, Manifest
from metaflow_artifacts._store.dedupe_index import Snapshot
from metaflow_artifacts._store.previous_snapshot import PreviousSnapshot
from metaflow_artifacts._store.streams import StreamedFile
from metaflow_artifacts._transfer.chunks import chunk_key, put_chunk

CONTENT = bytes(range(200))
SIZES = {"a": 40, "b": 60, "c": 80, "d": 20, "empty": 0}


def snapshot_of(store: Store, cuts: list[int], ids: dict[str, str] | None = None) -> PreviousSnapshot:
    """The snapshot of the files a, b, c and d, cut into chunks of these sizes."""
    chunks: list[Chunk] = []
    start = 0
    for cut in cuts:
        chunks.append(put_chunk(store.storage, CONTENT[start : start + cut])[0])
        start += cut
    files: list[FileEntry] = []
    offset = 0
    for name, size in SIZES.items():
        files.append(FileEntry(name, size, 0o644, offset))
        offset += size
    artifact: Any = {}
    names = {name: name * 40 for name in SIZES} if ids is None else ids
    return PreviousSnapshot(store.storage, Snapshot(Manifest(artifact, files, [], chunks, 100), names))


def listed(name: str) -> StreamedFile:
    return StreamedFile(name, SIZES[name], name * 40)


def content(name: str) -> bytes:
    offset = sum(size for other, size in SIZES.items() if other < name)
    return CONTENT[offset : offset + SIZES[name]]


def test_files_that_share_no_chunk_are_found_as_chunks(store: Store) -> None:
    found = snapshot_of(store, [100, 50, 30, 20])
    assert [chunk.size for chunk in found.chunks_of(listed("c")) or ()] == [50, 30]
    assert [chunk.size for chunk in found.chunks_of(listed("d")) or ()] == [20]
    for shared in ("a", "b"):
        assert found.chunks_of(listed(shared)) is None
    assert found.chunks_of(StreamedFile("c", 80, "x" * 40)) is None
    assert found.chunks_of(StreamedFile("c", 81, "c" * 40)) is None
    assert found.chunks_of(listed("empty")) is None


def test_files_within_a_chunk_are_read_from_it(store: Store) -> None:
    found = snapshot_of(store, [100, 90, 10])
    assert found.chunks_of(listed("c")) is None
    assert found.content(listed("c")) == content("c")
    assert found.content(listed("d")) is None
    assert found.content(listed("empty")) is None


def test_a_pack_is_found_by_exactly_its_files(store: Store) -> None:
    found = snapshot_of(store, [100, 100])
    pack = found.pack([listed("a"), listed("b")])
    assert pack is not None
    assert pack[0].sha256 == hashlib.sha256(CONTENT[:100]).hexdigest()
    assert found.pack([listed("b"), listed("a")]) is None
    assert found.pack([listed("a")]) is None
    assert found.pack([listed("c"), listed("d")]) is not None
    assert snapshot_of(store, [50, 150]).pack([listed("a"), listed("b")]) is None


def test_files_without_a_verified_id_are_not_reused(store: Store) -> None:
    found = snapshot_of(store, [100, 100], {"a": "a" * 40})
    assert found.content(listed("a")) == content("a")
    assert found.content(listed("b")) is None
    assert found.pack([listed("a"), listed("b")]) is None


def test_a_damaged_chunk_is_not_reused(store: Store) -> None:
    found = snapshot_of(store, [100, 100])
    key = chunk_key(hashlib.sha256(CONTENT[:100]).hexdigest())
    store.storage.put(key, b"x" * 100)
    assert found.content(listed("a")) is None
    assert found.content(listed("c")) == content("c")
