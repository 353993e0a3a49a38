"""Chunks copied between stores: which copies of a service count, and what they leave in the target."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import CorruptArtifact, StorageError, Store
from metaflow_artifacts._storage import CopyOutcome, local_files, open_storage
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._transfer import copying
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.errors import TransientStorageError
from metaflow_artifacts.testing.azurite import account_key
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.faults import Answer, FaultProxy
from metaflow_artifacts.testing.servers import S3Server

CHUNK = 64 << 10


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Store]:
    """Two empty stores on a disk."""
    source, target = (Store(open_storage(tmp_path / name), chunk_size=CHUNK) for name in ("source", "target"))
    return source, target


def on(server: S3Server, **options: Any) -> Store:
    """An empty store on a server."""
    client = functools.partial(server.client, **options)
    return Store(open_storage(f"{server.root}/{uuid4().hex}", client=client, patience=5), chunk_size=CHUNK)


def save(store: Store, tmp_path: Path, chunks: int = 1) -> str:
    path = tmp_path / uuid4().hex
    path.write_bytes(random.randbytes(chunks * CHUNK + 100_000))
    return store.save_model(path)["key"]


def first_chunk(store: Store, key: str) -> str:
    return chunk_key(store.manifest(key).chunks[0].sha256)


def put_without_a_checksum(store: Store, server: S3Server, key: str, data: bytes) -> None:
    prefix = store.root.removeprefix(f"s3://{server.bucket}/")
    server.client().put_object(Bucket=server.bucket, Key=f"{prefix}/{key}", Body=data)


@pytest.mark.parametrize("kind", ["s3_server", "moto"])
def test_an_object_of_s3_without_a_sha256_is_sent_and_verified(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """It is not copied first: a wrong chunk in the target would be taken for a good one by the next save."""
    server: S3Server = request.getfixturevalue(kind)
    source, target = on(server), on(server)
    key = save(source, tmp_path)
    chunk = first_chunk(source, key)
    good = source.storage.get(chunk)
    put_without_a_checksum(source, server, chunk, os.urandom(len(good)))
    with pytest.raises(CorruptArtifact, match=chunk):
        source.copy_to(target, [key])
    assert target.storage.stat(chunk) is None
    put_without_a_checksum(source, server, chunk, good)
    result = source.copy_to(target, [key])
    assert result.sent >= len(good)
    assert target.storage.get(chunk) == good
    assert check(target, read=True).ok


def test_a_copy_that_turns_out_wrong_is_taken_back(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has said before that the SHA-256 is right."""
    source, target = on(s3_server), on(s3_server)
    key = save(source, tmp_path)
    chunk = source.manifest(key).chunks[0]
    name = chunk_key(chunk.sha256)
    put_without_a_checksum(source, s3_server, name, os.urandom(chunk.size))
    storage: Any = source.storage
    describe = storage._describe
    digest = bytes.fromhex(chunk.sha256)

    def lie(client: Any, what: str) -> Any:
        found = describe(client, what)
        return found.__class__(found.size, found.version, digest, found.digest, found.modified)

    monkeypatch.setattr(storage, "_describe", lie)
    copies: list[Any] = []
    storage = target.storage
    copy = storage._copy

    def admit(*arguments: Any) -> Any:
        made = copy(*arguments)
        copies.append(made)
        return made.__class__(made.size, made.version, bytes(32), made.digest, made.modified)

    monkeypatch.setattr(storage, "_copy", admit)
    outcome = storage.copy_from(source.storage, name, chunk.size, digest)
    assert (outcome, len(copies)) == (CopyOutcome.UNFIT, 1)
    assert storage.stat(name) is None


@pytest.mark.parametrize("kind", ["s3_server", "azurite"])
def test_only_the_version_that_was_copied_is_taken_back(request: pytest.FixtureRequest, kind: str) -> None:
    """fake-gcs-server ignores the condition of a delete."""
    server: Any = request.getfixturevalue(kind)
    root = f"{server.root}/{uuid4().hex}"
    storage: Any
    if kind == "s3_server":
        storage = open_storage(root, client=server.client)
    else:
        storage = AzureStorage(root, account_key, endpoint=server.endpoint)
    versions = []
    for data in (b"copied", b"stored"):
        storage.put("a/b", data)
        versions.append(storage._describe(storage._requests.client("read", ""), f"{storage._prefix}a/b").version)
    storage._take_back("a/b", versions[0])
    assert storage.get("a/b") == b"stored"
    storage._take_back("a/b", versions[1])
    assert storage.stat("a/b") is None


def test_what_is_in_place_is_replaced_only_by_what_was_hashed(tmp_path: Path, fake_gcs: FakeGcsServer) -> None:
    """A chunk whose renewal is refused is there all the same."""
    names = [f"{fake_gcs.root}/{uuid4().hex}" for _ in range(2)]
    source, target = (
        Store(GcsStorage(name, anonymous, endpoint=fake_gcs.endpoint), chunk_size=CHUNK) for name in names
    )
    key = save(source, tmp_path)
    chunk = first_chunk(source, key)
    good = source.storage.get(chunk)
    source.copy_to(target, [key])
    source.storage.put(chunk, os.urandom(len(good)))
    watched = Store(Watched(target.storage, lambda operation, what: seen.append((operation, what))), refresh_after=0)
    watched.storage.touch = lambda key, after=0.0: False  # type: ignore[method-assign]
    target.delete(key)
    seen: list[tuple[str, str]] = []
    with pytest.raises(CorruptArtifact, match=chunk):
        source.copy_to(watched, [key])
    assert target.storage.get(chunk) == good
    assert ("stat", chunk) in seen
    assert ("copy_from", chunk) not in seen


def test_a_chunk_that_appears_during_the_copy_is_left_alone(pair: tuple[Store, Store], tmp_path: Path) -> None:
    source, target = pair
    key = save(source, tmp_path)
    chunk = first_chunk(source, key)

    def before(operation: str, what: str) -> None:
        if (operation, what) == ("copy_from", chunk):
            target.storage.put(chunk, source.storage.get(chunk))
            written.append(os.stat(Path(target.root, chunk)).st_ino)

    written: list[int] = []
    source.copy_to(Store(Watched(target.storage, before)), [key])
    assert written == [os.stat(Path(target.root, chunk)).st_ino]
    assert check(target, read=True).ok


def test_chunks_that_cannot_be_copied_say_nothing_about_the_service(
    pair: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_TRIALS", 1)
    source, target = pair
    gone, key = save(source, tmp_path, 20), save(source, tmp_path, 4)
    source.storage.delete([chunk_key(chunk.sha256) for chunk in source.manifest(gone).chunks])
    with pytest.raises(CorruptArtifact, match="missing"):
        source.copy_to(target, [gone])
    copier: list[CopyOutcome] = []
    watched = Store(Watched(target.storage, lambda operation, what: None))
    copy = target.storage.copy_from

    def count(*arguments: Any, **options: Any) -> CopyOutcome:
        copier.append(copy(*arguments, **options))
        return copier[-1]

    watched.storage.copy_from = count  # type: ignore[method-assign]
    with pytest.raises(CorruptArtifact, match="missing"):
        source.copy_to(watched, [gone, key])
    assert copier.count(CopyOutcome.UNFIT) == len(source.manifest(gone).chunks)
    assert copier.count(CopyOutcome.COPIED) == len(source.manifest(key).chunks)


def test_a_service_that_has_refused_is_asked_again_now_and_then(
    pair: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_TRIALS", 1)
    monkeypatch.setattr(copying, "_ASKED_AGAIN", 4)
    source, target = pair
    key = save(source, tmp_path, 30)
    watched = Store(Watched(target.storage, lambda operation, what: None))
    watched.storage.copy_from = lambda *arguments, **options: asked.append(1) or CopyOutcome.UNABLE  # type: ignore[method-assign]
    asked: list[int] = []
    source.copy_to(watched, [key])
    chunks = len(source.manifest(key).chunks)
    assert chunks // 4 - 1 <= len(asked) <= chunks // 4 + 1 + target.storage.threads


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(13, "Permission denied")])
def test_a_local_copy_that_cannot_be_read_back(
    pair: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    source, target = pair
    key = save(source, tmp_path)

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(local_files, "open", fail, raising=False)
    if error.errno == 13:
        assert source.copy_to(target, [key]).by_service == 0
        assert check(target, read=True).ok
        return
    with pytest.raises(TransientStorageError, match="input/output error"):
        source.copy_to(target, [key])


def test_an_object_of_the_source_that_may_not_be_read_fails_its_artifact_alone(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """As one that is encrypted with a key of the customer."""
    with FaultProxy(s3_server.endpoint) as proxy:
        source = on(s3_server, endpoint_url=proxy.endpoint)
        target = Store(open_storage(tmp_path / "target"))
        bad, good = save(source, tmp_path), save(source, tmp_path)
        chunk = first_chunk(source, bad)
        fault = Answer(400, "InvalidRequest", "The object was stored using a form of Server Side Encryption.")
        proxy.plan = lambda request: fault if chunk in request.path else None
        with pytest.raises(StorageError, match="InvalidRequest") as failure:
            source.copy_to(target, [bad, good])
        assert bad in str(failure.value)
        assert target.info(good)["key"] == good
        assert target.storage.stat(bad) is None
        assert check(target, read=True).ok
