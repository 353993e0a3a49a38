"""Loads of artifacts that are deleted, and whose content a gc removes, while they are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import ArtifactNotFound, CorruptArtifact, ModelArtifact, Store, gc
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._storage import open_storage

CHUNK = 64 << 10


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """What another process does."""
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def saved(other: Store) -> ModelArtifact:
    files: dict[str, bytes | str | os.PathLike[str]] = {"a": os.urandom(3 * CHUNK), "b": b"b", "c": b"c"}
    return other.save_model(files)


def beside(other: Store, happens: Callable[[], object]) -> Store:
    """The store, where something happens before the first chunk is read."""
    left = [happens]

    def watch(operation: str, key: str) -> None:
        if operation in ("open", "get") and key.startswith(CHUNKS) and left:
            left.pop()()

    return Store(Watched(other.storage, watch), chunk_size=CHUNK)


READS: list[Callable[[Store, ModelArtifact, Path], object]] = [
    lambda store, saved, target: store.load(saved, target),
    lambda store, saved, target: store.load(saved, target, only="b"),
    lambda store, saved, target: store.read_file(saved, "a"),
    lambda store, saved, target: store.read_file(saved, "b"),
]


@pytest.mark.parametrize("read", READS, ids=["all", "only", "file", "packed file"])
def test_the_error_says_that_it_was_deleted(
    other: Store, saved: ModelArtifact, tmp_path: Path, read: Callable[[Store, ModelArtifact, Path], object]
) -> None:
    def delete() -> None:
        other.delete(saved)
        gc(other, grace=0, exclusive=True, dry_run=False)

    with pytest.raises(ArtifactNotFound, match="it was deleted while it was loaded") as raised:
        read(beside(other, delete), saved, tmp_path / "target")
    assert saved["url"] in str(raised.value)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("read", READS, ids=["all", "only", "file", "packed file"])
def test_a_chunk_that_is_missing_alone_is_damage(
    other: Store, saved: ModelArtifact, tmp_path: Path, read: Callable[[Store, ModelArtifact, Path], object]
) -> None:
    def lose() -> None:
        other.storage.delete([info.key for info in other.storage.list(CHUNKS)])

    with pytest.raises(CorruptArtifact, match="a chunk of the artifact is missing; restore it"):
        read(beside(other, lose), saved, tmp_path / "target")
