"""The rows of chunks of a large manifest: decoded in pieces, as decoded at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from metaflow_artifacts import ModelArtifact, Store, open_store
from metaflow_artifacts._format.chunk_rows import ChunkRows, PackedChunks
from metaflow_artifacts._format.manifest import Chunk, Manifest, decode_front, encode
from metaflow_artifacts._store import reading

COUNT = 1000


def many_chunks(store: Store, tmp_path: Path, count: int = COUNT) -> Manifest:
    """The manifest of an artifact of many chunks, which are not stored. It is stored."""
    (tmp_path / "weights").write_bytes(b"1")
    manifest = store.manifest(store.save_model(tmp_path / "weights"))
    chunks = [Chunk(hashlib.sha256(b"%d" % number).hexdigest(), 1 + number) for number in range(count)]
    size = sum(chunk.size for chunk in chunks)
    files = [replace(manifest.files[0], size=size)]
    made = replace(manifest, artifact=of_size(manifest, size), files=files, chunks=chunks, inline=None)
    store.storage.put(manifest.artifact["key"], encode(made))
    return made


def of_size(manifest: Manifest, size: int) -> ModelArtifact:
    artifact = manifest.artifact.copy()
    artifact["size"] = size
    return artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def manifest(store: Store, tmp_path: Path) -> Manifest:
    return many_chunks(store, tmp_path)


def decoded(manifest: Manifest, rows: bytes, piece: int, size: int | None = None) -> PackedChunks | None:
    """What is made of rows that have the right digest."""
    front = decode_front(encode(manifest))
    assert front is not None
    front = replace(front, chunks=slice(0, len(rows)), chunks_sha256=hashlib.sha256(rows).hexdigest())
    found = ChunkRows(front)
    for start in range(0, len(rows), piece):
        found.feed(rows[start : start + piece])
    return found.chunks(manifest.size if size is None else size)


def rows_of(manifest: Manifest) -> bytes:
    return json.dumps([[chunk.sha256, chunk.size] for chunk in manifest.chunks], separators=(",", ":")).encode()


@pytest.mark.parametrize("piece", [1, 7, 80, 4096, 1 << 20])
def test_pieces_of_any_size_give_the_same(manifest: Manifest, piece: int) -> None:
    found = decoded(manifest, rows_of(manifest), piece)
    assert found is not None
    assert list(found) == manifest.chunks
    assert (found[1], found[-1], found[5:1:-2]) == (manifest.chunks[1], manifest.chunks[-1], manifest.chunks[5:1:-2])
    assert (len(found), bool(found)) == (COUNT, True)
    with pytest.raises(IndexError):
        found[COUNT]


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        (b'",1]', b'",0]'),
        (b'",1]', b'",01]'),
        (b'",1]', b'",-1]'),
        (b'",1]', b'",4611686018427387904]'),
        (b'",1]', b'", 1]'),
        (b'",1]', b'",1.0]'),
        (b'",1],', b'",1]]'),
        (b'",1],', b'",1] ,'),
        (b'[["', b'[["A'),
        (b'[["', b'["'),
        (b"]]", b"]"),
        (b"]]", b"]],"),
        (b"]]", b"],[]]"),
    ],
)
@pytest.mark.parametrize("piece", [13, 1 << 20])
def test_rows_that_encode_does_not_write_are_refused(manifest: Manifest, what: bytes, wrong: bytes, piece: int) -> None:
    rows = rows_of(manifest)
    assert what in rows
    assert decoded(manifest, rows.replace(what, wrong), piece) is None


def test_sums_and_digests_count(manifest: Manifest) -> None:
    rows = rows_of(manifest)
    assert decoded(manifest, rows, 100, size=manifest.size + 1) is None
    front = decode_front(encode(manifest))
    assert front is not None
    found = ChunkRows(replace(front, chunks=slice(0, len(rows)), chunks_sha256="0" * 64))
    found.feed(rows)
    assert found.chunks(manifest.size) is None


def test_an_outline_is_the_same(store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    key = manifest.artifact["key"]
    expected = store.outline_at(key)
    monkeypatch.setattr(reading, "_LARGE_BYTES", 5000)
    found = store.outline_at(key)
    assert isinstance(found.chunks, PackedChunks)
    assert (found.artifact, found.latest, list(found.chunks)) == (expected.artifact, expected.latest, manifest.chunks)
    # A head that is larger than what is read at first.
    manifest.artifact["metadata"] = {"text": "x" * 9000}
    store.storage.put(key, encode(manifest))
    assert list(store.outline_at(key).chunks) == manifest.chunks


@pytest.mark.long
def test_gc_of_one_artifact_of_a_million_chunks_takes_less_than_200_mib(store: Store, tmp_path: Path) -> None:
    many_chunks(store, tmp_path, 1_000_000)
    # Not `ru_maxrss`, which also counts what this process holds when it forks.
    code = "import sys; from metaflow_artifacts._cli import main; main(sys.argv[1:])"
    code += "; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", code, "gc", "--root", store.root, "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    printed, _, peak = output.rstrip().rpartition("\n")
    assert json.loads(printed)["artifacts"] == 1
    assert int(peak) < 200 << 10
