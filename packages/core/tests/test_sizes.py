"""Holes, repeated content, many chunks and many files: what is read, sent and written for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faultlib.watched import ForwardingStorage

from metaflow_artifacts import Store
from metaflow_artifacts._format import manifest as manifest_module
from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._storage import Reader, Storage
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts._store import limits
from metaflow_artifacts._transfer import loading
from metaflow_artifacts._transfer.holes import is_zero, leave_hole
from metaflow_artifacts._transfer.loading import read_range
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.source import OpenSource
from metaflow_artifacts.errors import CorruptArtifact, SourceError

CHUNK = 64 << 10
MIB = 1 << 20


class CountingStorage(ForwardingStorage):
    """Counts the objects that are opened, by their keys."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.opened: Counter[str] = Counter()

    @contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[Reader]:
        self.opened[key] += 1
        with self.inner.open(key, start, length) as reader:
            yield reader


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A file of holes, with content at some places."""
    with path.open("wb") as file:
        for start, content in pieces:
            file.seek(start)
            file.write(content)
        file.truncate(size)
    return path


def written(path: Path) -> int:
    """The bytes that a file, or the files below a directory, take on the disk."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


@pytest.fixture
def counting(store: Store) -> Store:
    return Store(CountingStorage(store.storage), chunk_size=CHUNK)


def opened(store: Store) -> Counter[str]:
    assert isinstance(store.storage, CountingStorage)
    return store.storage.opened


PIECES = {
    "none": (),
    "first": ((0, b"first"),),
    "last": ((40 * CHUNK - 4, b"last"),),
    "across a cut": ((20 * CHUNK - 2, b"cut!"),),
    "several": ((1, b"one"), (7 * CHUNK, os.urandom(3 * CHUNK)), (33 * CHUNK + 5, b"two")),
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_holes_stay_holes(
    store: Store, tmp_path: Path, pieces: tuple[tuple[int, bytes], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sparse(tmp_path / "file", 40 * CHUNK + 123, *pieces)
    read = 0
    plain = OpenSource.blocks

    def blocks(self: OpenSource, start: int, length: int, buffer: memoryview) -> Any:
        nonlocal read
        read += length
        return plain(self, start, length, buffer)

    monkeypatch.setattr(OpenSource, "blocks", blocks)
    key = store.save_model(source)["key"]
    # Each chunk that has something is read to be hashed and to be sent, one chunk of zeros and the end are sent.
    assert read <= 2 * (7 + 2) * CHUNK
    store.load(key, tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == source.read_bytes()
    assert written(tmp_path / "out" / "file") <= written(source) + 2 * CHUNK
    assert written(source) < 20 * CHUNK
    progress = Progress()
    store.load(key, tmp_path / "out", progress=progress)
    assert progress.found == progress.total


@pytest.mark.parametrize("gib", [1, pytest.param(20, marks=pytest.mark.long)])
def test_gib_of_holes(tmp_path: Path, gib: int) -> None:
    store = Store(LocalStorage(str(tmp_path / "store")))
    source = sparse(tmp_path / "file", gib << 30)
    reference = store.save_model(source)
    assert reference["size"] == gib << 30
    assert written(tmp_path / "store") <= 20 * MIB
    for _ in range(2):
        store.load(reference, tmp_path / "out")
        assert (tmp_path / "out" / "file").stat().st_size == gib << 30
        assert written(tmp_path / "out") <= MIB


def test_a_chunk_that_occurs_again_is_fetched_once(counting: Store, tmp_path: Path) -> None:
    block = os.urandom(CHUNK)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(block * 5 + b"tail" + bytes(CHUNK))
    (tree / "b").write_bytes(b"head" * (CHUNK // 4) + block * 3)
    key = counting.save_model(tree)["key"]
    opened(counting).clear()
    counting.load(key, tmp_path / "out")
    for name in ("a", "b"):
        assert (tmp_path / "out" / name).read_bytes() == (tree / name).read_bytes()
    assert set(opened(counting).values()) == {1}
    opened(counting).clear()
    counting.load(key, tmp_path / "only", only="b")
    assert (tmp_path / "only" / "b").read_bytes() == (tree / "b").read_bytes()
    assert set(opened(counting).values()) == {1}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_what_a_disk_damaged_is_not_written_again(
    counting: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(CHUNK) * 3)
    key = counting.save_model(tmp_path / "file")["key"]
    monkeypatch.setattr(loading._Load, "_blocks", lambda self, piece: iter([memoryview(bytes(CHUNK))]))
    opened(counting).clear()
    counting.load(key, tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert list(opened(counting).values()) == [3]


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_damaged_chunk_that_occurs_again_is_an_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(CHUNK) * 3)
    key = store.save_model(tmp_path / "file")["key"]
    for info in list(store.storage.list("mf.artifacts/chunks/")):
        store.storage.put(info.key, bytes(info.size))
    with pytest.raises(CorruptArtifact):
        store.load(key, tmp_path / "out")
    assert not (tmp_path / "out" / "file").exists()


def test_zeros_are_written_where_a_file_has_something(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"x" * (4 * CHUNK))
        file.truncate(12 * CHUNK)
        file.seek(2 * CHUNK)
        assert leave_hole(file, 4 * CHUNK, 20 * CHUNK) is False
        assert file.tell() == 2 * CHUNK
        file.seek(8 * CHUNK)
        assert leave_hole(file, 8 * CHUNK, 20 * CHUNK) is True
        assert (file.tell(), os.fstat(file.fileno()).st_size) == (16 * CHUNK, 20 * CHUNK)
        assert is_zero(file.fileno(), 0, 4 * CHUNK) is False
        assert is_zero(file.fileno(), 8 * CHUNK, 8 * CHUNK) is True
        # Past the end there is nothing, and no hole either.
        assert is_zero(file.fileno(), 8 * CHUNK, 13 * CHUNK) is False


class Counted(Sequence[Any]):
    """Counts how many of its items are looked at."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def test_a_range_is_found_without_a_loop_over_the_chunks(store: Store, tmp_path: Path) -> None:
    content = os.urandom(CHUNK * 9 + 77)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(os.urandom(CHUNK + 5))
    (tree / "b").write_bytes(content)
    manifest = store.manifest(store.save_model(tree)["key"])
    for start, length in ((0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (5 * CHUNK + 3, 2 * CHUNK), (len(content) - 1, 9)):
        assert store.read_file(manifest, "b", start, length) == content[start : start + length]
    file = manifest.file("b")
    assert file is not None
    many = 100_000
    chunks = Counted([*manifest.chunks, *[Chunk("0" * 64, 1)] * many])
    begins = Counted([*manifest.chunk_begins, *range(manifest.size, manifest.size + many)])
    assert read_range(store.storage, chunks, file, 7 * CHUNK, 7 * CHUNK + 5, None, begins) == content[7 * CHUNK :][:5]
    assert chunks.looks <= 3
    assert begins.looks <= 30
    assert isinstance(file, FileEntry)


def test_too_many_files_are_refused_before_anything_is_sent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / f"file{number}").write_bytes(os.urandom(2000))
    for module in (manifest_module, limits):
        monkeypatch.setattr(module, "MAX_BYTES", 4000)
    with pytest.raises(SourceError, match=r"60 files make a manifest of .* save fewer files"):
        store.save_model(tree)
    assert list(store.storage.list("mf.")) == []
