"""The room of the node's cache: its limit is kept, and loads onto the same disk come first."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import ModelArtifact, Store, TargetError
from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._transfer import target
from metaflow_artifacts._transfer.cache import Cache, Filling
from metaflow_artifacts._transfer.cache_files import CacheFiles
from metaflow_artifacts._transfer.progress import Progress

CHUNK = 128 << 10
TOP = "metaflow_artifacts"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(LocalStorage(tmp_path / "store"), chunk_size=CHUNK, cache=Cache(str(tmp_path / "cache"), 1 << 30))


@pytest.fixture
def save(store: Store, tmp_path: Path) -> Callable[[int], ModelArtifact]:
    """Save so many chunks of new content."""

    def call(chunks: int) -> ModelArtifact:
        (tmp_path / "file").write_bytes(os.urandom(chunks * CHUNK))
        return store.save_model(tmp_path / "file")

    return call


def held(store: Store) -> int:
    assert store.cache is not None
    return sum(chunk.size for chunk in store.cache.chunks())


def test_on_a_full_disk_the_cache_goes_and_the_load_does_not_fail(
    store: Store, save: Callable[[int], ModelArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(save(3), tmp_path / "first")
    assert held(store) == 3 * CHUNK

    class File(io.FileIO):
        def write(self, block: Any) -> int:
            top = tmp_path / "cache" / TOP
            if any(path.suffix != ".lock" and path.stat().st_size for path in top.iterdir()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    def opened(path: str, mode: str, buffering: int, opener: Any) -> io.FileIO:
        return File(path, mode, opener=opener)

    monkeypatch.setattr(target, "open", opened, raising=False)
    store.load(save(1), tmp_path / "second")
    assert (tmp_path / "second" / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert held(store) == 0


def test_a_small_file_is_written_again_where_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, is_full = os.write, [True]

    def refused(fd: int, data: Any) -> int:
        if is_full and len(data) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:2])

    monkeypatch.setattr(os, "write", refused)
    file = FileEntry("f", 5, 0o755, 0)
    with pytest.raises(TargetError, match=r"cannot write '.*/f': No space left"):
        target.write_file(str(tmp_path), file, memoryview(b"bytes"))
    target.write_file(str(tmp_path), file, memoryview(b"bytes"), is_full.clear)
    assert ((tmp_path / "f").read_bytes(), os.access(tmp_path / "f", os.X_OK)) == (b"bytes", True)


@pytest.mark.parametrize(("free", "cached"), [(9 * CHUNK, 0), (20 * CHUNK, 4 * CHUNK)])
def test_a_load_onto_the_caches_disk_fills_it_only_where_much_is_free(
    free: int,
    cached: int,
    store: Store,
    save: Callable[[int], ModelArtifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CacheFiles, "free", lambda files: (free - 1, free))
    store.load(save(4), tmp_path / "loaded")
    assert held(store) == cached


@pytest.mark.parametrize("why", ["no room", "in the way"])
def test_what_cannot_be_kept_is_not_waited_for(
    why: str, save: Callable[[int], ModelArtifact], store: Store, tmp_path: Path
) -> None:
    saved = save(1)
    both = threading.Barrier(2)

    class Together(LocalStorage):
        def open(self, key: str, start: int = 0, length: int | None = None) -> Any:
            if "/chunks/" in key:
                both.wait(240)
            return super().open(key, start, length)

    cache = Cache(str(tmp_path / "cache"), CHUNK - 1 if why == "no room" else 1 << 30)
    if why == "in the way":
        (tmp_path / "cache" / TOP / store.manifest(saved).chunks[0].sha256).mkdir(parents=True)
    loads = [
        threading.Thread(target=Store(Together(tmp_path / "store"), cache=cache).load, args=(saved, tmp_path / name))
        for name in "ab"
    ]
    for load in loads:
        load.start()
    for load in loads:
        load.join(300)
    assert not both.broken
    for name in "ab":
        assert (tmp_path / name / "file").read_bytes() == (tmp_path / "file").read_bytes()


def fill(cache: Cache, count: int) -> None:
    """Put so many chunks there, all at the same time."""
    chunks = [Chunk(os.urandom(32).hex(), CHUNK) for _ in range(count)]
    fillings = [cache.fill(chunk) or Filling() for chunk in chunks]
    for filling in fillings:
        filling.restart()
    for filling, chunk in zip(fillings, chunks, strict=True):
        with filling:
            filling.write(memoryview(bytes(CHUNK)))
            filling.commit(chunk.sha256)


def test_what_is_promised_counts(store: Store, tmp_path: Path) -> None:
    store.cache = Cache(str(tmp_path / "cache"), 8 * CHUNK)
    fill(store.cache, 20)
    assert held(store) == 8 * CHUNK


def test_the_end_of_a_load_restores_the_limit(
    store: Store, save: Callable[[int], ModelArtifact], tmp_path: Path
) -> None:
    saved = save(1)

    class Crowded(LocalStorage):
        def open(self, key: str, start: int = 0, length: int | None = None) -> Any:
            if "/chunks/" in key:
                # Another process does not see what this one has promised.
                fill(Cache(str(tmp_path / "cache"), 8 * CHUNK), 8)
                assert held(store) == 8 * CHUNK
            return super().open(key, start, length)

    store.cache = Cache(str(tmp_path / "cache"), 8 * CHUNK)
    Store(Crowded(tmp_path / "store"), cache=store.cache).load(saved, tmp_path / "loaded")
    assert CHUNK < held(store) <= 8 * CHUNK


def test_a_cache_without_room_is_looked_at_once(
    store: Store, save: Callable[[int], ModelArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    size = CacheFiles.size

    def look(files: CacheFiles) -> int:
        looks.append(1)
        return size(files)

    monkeypatch.setattr(CacheFiles, "size", look)
    monkeypatch.setattr(CacheFiles, "free", lambda files: (CHUNK - 1, CHUNK - 1))
    monkeypatch.setattr(CacheFiles, "device", lambda files: -1)
    store.cache = Cache(str(tmp_path / "cache"), CHUNK)
    store.load(save(10), tmp_path / "loaded")
    assert len(looks) == 1


def test_a_small_limit_does_not_keep_the_first_chunks_for_ever(
    store: Store, save: Callable[[int], ModelArtifact], tmp_path: Path
) -> None:
    store.cache = Cache(str(tmp_path / "cache"), 5 * CHUNK // 2)
    for number in range(4):
        saved = save(1)
        store.load(saved, tmp_path / f"{number}")
    progress = Progress()
    store.load(saved, tmp_path / "again", progress=progress)
    assert progress.cached == CHUNK
