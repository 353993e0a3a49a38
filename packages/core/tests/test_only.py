"""Loads of some files: what is fetched for them, counted between the client and a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metaflow_artifacts import ArtifactNotFound, CorruptArtifact, Store, open_store
from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.packs import runs
from metaflow_artifacts.testing.faults import Damage, FaultProxy, once

CHUNK = 64 << 10
SMALL = 1000
"""Bytes of a packed file. A pack holds at most a quarter of a chunk."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    for number in range(100):
        (path / f"{number:03}.txt").write_bytes(os.urandom(SMALL))
    (path / "weights").write_bytes(os.urandom(3 * CHUNK))
    return path


def load(remote: Store, proxy: FaultProxy, key: str, target: Path, only: str | list[str]) -> tuple[int, int]:
    """The requests of a load for chunks, and the bytes that came besides the manifest."""
    manifest = len(remote.storage.get(key))
    proxy.requests.clear()
    proxy.sent = 0
    remote.load(key, target, only=only)
    return sum("/chunks/" in request.path for request in proxy.requests), proxy.sent - manifest


def test_a_packed_file_is_read_alone(remote: Store, proxy: FaultProxy, tree: Path, tmp_path: Path) -> None:
    key = remote.save_model(tree)["key"]
    assert load(remote, proxy, key, tmp_path / "one", "050.txt") == (1, SMALL)
    # Neighbours come with one request.
    assert load(remote, proxy, key, tmp_path / "two", ["050.txt", "05[1-2].txt"])[1] == 3 * SMALL
    for name in ("one/050.txt", "two/050.txt", "two/051.txt", "two/052.txt"):
        assert (tmp_path / name).read_bytes() == (tree / os.path.basename(name)).read_bytes()
    assert load(remote, proxy, key, tmp_path / "large", "weights") == (3, 3 * CHUNK)


def test_many_files_of_a_small_pack_come_with_the_pack(
    remote: Store, proxy: FaultProxy, tree: Path, tmp_path: Path
) -> None:
    saved = remote.save_model(tree)
    packs = len(remote.manifest(saved).chunks) - 3
    only = [f"*[{digit}].txt" for digit in range(9)]
    requests, size = load(remote, proxy, saved["key"], tmp_path / "out", only)
    assert requests <= packs
    assert 90 * SMALL < size <= 100 * SMALL
    assert len(os.listdir(tmp_path / "out")) == 90
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tree / path.name).read_bytes()


def test_damage_of_a_file_that_is_read_alone_is_found(
    remote: Store, proxy: FaultProxy, tree: Path, tmp_path: Path
) -> None:
    saved = remote.save_model(tree)
    of_chunk = once(Damage(5), "GET", 2)
    proxy.plan = lambda request: of_chunk(request) if "/chunks/" in request.path else None
    remote.load(saved, tmp_path / "again", only="050.txt")
    assert (tmp_path / "again" / "050.txt").read_bytes() == (tree / "050.txt").read_bytes()
    proxy.plan = lambda request: Damage(5) if "/chunks/" in request.path else None
    with pytest.raises(CorruptArtifact, match=r"the content of '050\.txt' in this chunk has changed"):
        remote.load(saved, tmp_path / "out", only="050.txt")
    assert not (tmp_path / "out").exists()
    proxy.plan = lambda request: None
    chunk = next(chunk for chunk in remote.manifest(saved).chunks if chunk.size < CHUNK)
    remote.storage.delete([chunk_key(chunk.sha256)])
    with pytest.raises(CorruptArtifact, match="is missing"):
        remote.load(saved, tmp_path / "out", only="000.txt")


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([10, 10, 10], {1}, [(10, [1])]),
        ([10, 10, 10], {1, 2}, [(10, [1, 2])]),
        # Two requests save 10 bytes: the pack is as fast.
        ([10, 10, 10], {0, 2}, None),
        ([10, 1 << 20, 10], {0, 2}, [(0, [0]), ((1 << 20) + 10, [2])]),
        ([10, 10, 10], {0, 1, 2}, None),
        ([100 << 20, 10], {0}, None),
    ],
)
def test_runs(sizes: list[int], wanted: set[int], expected: list[tuple[int, list[int]]] | None) -> None:
    files = [FileEntry(str(number), size, 0o644, 0, "0" * 64) for number, size in enumerate(sizes)]
    parts = [Segment(number, 0, size) for number, size in enumerate(sizes)]
    found = runs(Chunk("0" * 64, sum(sizes)), parts, files, wanted)
    assert expected == (None if found is None else [(run.start, run.files) for run in found])
    # Another writer may leave digests out.
    without = [FileEntry(str(number), size, 0o644, 0) for number, size in enumerate(sizes)]
    assert runs(Chunk("0" * 64, sum(sizes)), parts, without, wanted) is None


def test_a_path_with_brackets_is_a_pattern_for_itself(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("model[1].bin", "model1.bin"):
        (tree / name).write_text(name)
    store = open_store(tmp_path / "store")
    saved = store.save_model(tree)
    store.load(saved, tmp_path / "out", only="model[1].bin")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model[1].bin"]
    with pytest.raises(ArtifactNotFound, match=r"the whole path, without \./; `sub/\*` for all in a directory"):
        store.load(saved, tmp_path / "out", only="./model1.bin")
