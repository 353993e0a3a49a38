"""What a save may rely on: a chunk that is whole, and that no gc is about to remove."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import Store
from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._storage import LocalStorage, ObjectInfo
from metaflow_artifacts._transfer.chunks import are_safe_from_gc, is_stored, put_chunk

SIZE = 200 << 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    return path


def chunk_file(store: Store) -> Path:
    (info,) = store.storage.list(CHUNKS)
    return Path(store.root, info.key)


def power_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine starts again: all that is there is older than that."""
    start = os.stat(chunk_file(store)).st_mtime
    monkeypatch.setattr(store.storage, "is_settled", lambda info: info.modified > start)


@pytest.mark.parametrize("damage", [bytes(SIZE), b"cut", b""], ids=["zeros", "cut", "empty"])
def test_a_chunk_that_a_power_failure_truncated_is_written_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    store = Store(LocalStorage(tmp_path / "store"))
    store.save_model(source)
    chunk_file(store).write_bytes(damage)
    power_failure(store, monkeypatch)
    again = store.save_model(source)
    store.load(again, tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_bytes() == source.read_bytes()


def test_a_whole_chunk_is_read_once_after_a_power_failure(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations: list[str] = []
    storage = LocalStorage(tmp_path / "store")
    store = Store(Watched(storage, lambda operation, key: operations.append(operation)))
    store.save_model(source)
    start = os.stat(chunk_file(store)).st_mtime
    monkeypatch.setattr(storage, "is_settled", lambda info: info.modified > start)
    operations.clear()
    store.save_model(source)
    assert (operations.count("open"), operations.count("touch"), operations.count("commit")) == (1, 1, 0)
    operations.clear()
    store.save_model(source)
    assert (operations.count("open"), operations.count("touch"), operations.count("commit")) == (0, 0, 0)


def test_a_chunk_that_is_not_renewed_is_not_relied_upon(tmp_path: Path, source: Path) -> None:
    """Somebody removed it, or the storage did not move its time: its content is written again."""

    class Unmoved(LocalStorage):
        def touch(self, key: str, after: float = 0.0) -> bool:
            return False

    store = Store(Unmoved(tmp_path / "store"))
    store.save_model(source)
    before = os.stat(chunk_file(store))
    chunk, _ = put_chunk(store.storage, source.read_bytes(), refresh_after=0.0)
    after = os.stat(chunk_file(store))
    assert after.st_ino != before.st_ino
    assert not is_stored(store.storage, chunk, 0.0)


def test_a_chunk_that_was_just_renewed_is_checked_again(tmp_path: Path, source: Path) -> None:
    """A batch of gc may have looked at it before: only a look that renews nothing ends the save."""
    storage = LocalStorage(tmp_path / "store")
    chunk, _ = put_chunk(storage, source.read_bytes())
    path = chunk_file(Store(storage))
    looks: list[str] = []

    class Hurried(LocalStorage):
        def touch(self, key: str, after: float = 0.0) -> bool:
            renewed = super().touch(key, after)
            # A gc that had looked at it before takes it away now.
            path.unlink()
            return renewed

        def stat(self, key: str) -> ObjectInfo | None:
            looks.append(key)
            return super().stat(key)

        def list(self, prefix: str) -> Any:
            if prefix.endswith("gc/"):
                return iter([ObjectInfo("mf.artifacts/gc/x.run", 0, self.now())])
            return super().list(prefix)

    os.utime(path, (1, 1))
    hurried = Hurried(tmp_path / "store")
    hurried.is_settled = lambda info: True  # type: ignore[method-assign]
    assert not are_safe_from_gc(hurried, [Chunk(chunk.sha256, chunk.size)], None)
    assert len(looks) == 2
