"""check: a whole store is said to be whole, and each kind of damage is found and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import ArtifactNotFound, InvalidReference, ModelArtifact, Store
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check

CHUNK = 64 << 10
KEY = "mf.models/models/artifacts/m_" + "0" * 32


@pytest.fixture
def saved(store: Store, tmp_path: Path) -> ModelArtifact:
    """An artifact of ten chunks, beside a small one."""
    (tmp_path / "weights").write_bytes(os.urandom(10 * CHUNK))
    (tmp_path / "small").write_bytes(b"small")
    store.save_model(tmp_path / "small")
    return store.save_model(tmp_path / "weights")


@pytest.mark.parametrize("read", [False, True])
def test_a_whole_store(store: Store, saved: ModelArtifact, tmp_path: Path, read: bool) -> None:
    store.save_model(tmp_path / "weights", "again")
    report = check(store, read=read)
    assert report.ok
    assert (report.artifacts, report.files, report.size) == (3, 3, 20 * CHUNK + 5)
    assert (report.chunks, report.stored, report.read) == (10, 10 * CHUNK, 10 * CHUNK if read else 0)


def test_an_empty_store(store: Store) -> None:
    report = check(store, read=True)
    assert report.ok
    assert report.artifacts == 0


def _first(store: Store, key: str) -> str:
    return chunk_key(store.manifest(key).chunks[0].sha256)


def _flip(data: bytes) -> bytes:
    return data[:500] + bytes([data[500] ^ 1]) + data[501:]


@pytest.mark.parametrize(
    ("damage", "kind", "detail", "unread"),
    [
        (lambda store, key: store.storage.delete([_first(store, key)]), "missing", "does not exist", True),
        (
            lambda store, key: store.storage.put(_first(store, key), b""),
            "size",
            f"has 0 bytes instead of {CHUNK}",
            True,
        ),
        (
            lambda store, key: store.storage.put(_first(store, key), bytes(CHUNK - 1)),
            "size",
            f"has {CHUNK - 1} bytes instead of {CHUNK}",
            True,
        ),
        (
            lambda store, key: store.storage.put(_first(store, key), _flip(store.storage.get(_first(store, key)))),
            "content",
            "has changed",
            False,
        ),
        (
            lambda store, key: store.storage.put(
                _first(store, key), store.storage.get(chunk_key(store.manifest(key).chunks[1].sha256))
            ),
            "content",
            "has changed",
            False,
        ),
        (lambda store, key: store.storage.put(key, store.storage.get(key)[:-100]), "manifest", "damaged", True),
        (lambda store, key: store.storage.put(key, _flip(store.storage.get(key))), "manifest", "damaged", True),
        (lambda store, key: store.storage.put(key, b""), "manifest", "not a manifest", True),
        (
            lambda store, key: store.storage.put(key, store.storage.get(key).replace(b'"version":1,', b'"version":2,')),
            "manifest",
            "upgrade metaflow-artifacts",
            True,
        ),
    ],
    ids=["missing", "empty", "truncated", "flipped", "swapped", "cut", "bit", "nothing", "later"],
)
def test_damage_is_found_and_named(
    store: Store,
    saved: ModelArtifact,
    damage: Callable[[Store, str], None],
    kind: str,
    detail: str,
    unread: bool,
) -> None:
    key = saved["key"]
    damage(store, key)
    for read in (False, True):
        report = check(store, read=read)
        assert report.ok is not (read or unread)
        for problem in report.problems:
            assert (problem.key, problem.kind) == (key, kind)
            assert detail in problem.detail
            assert "\n" not in problem.detail
            assert problem.chunk is None or problem.chunk in problem.detail
        assert len(report.problems) == (read or unread)
        assert check(store, [key], read=read).problems == report.problems


def test_what_lies_at_another_key_is_found(store: Store, saved: ModelArtifact) -> None:
    store.storage.put(KEY, store.storage.get(saved["key"]))
    (problem,) = check(store).problems
    assert (problem.key, problem.kind) == (KEY, "manifest")
    assert saved["key"] in problem.detail


def test_objects_of_other_programs_are_not_reported(store: Store, saved: ModelArtifact) -> None:
    for key in (
        "TrainFlow/1/start/1/0.data.json",
        "mf.models/models/artifacts/old_format.tar",
        "mf.models/models/metadata/x",
        "mf.checkpoints/checkpoints/artifacts/F/s/x",
        f"{CHUNKS}aa/not-a-digest",
        f"{CHUNKS}README",
    ):
        store.storage.put(key, b"others")
    assert check(store, read=True).ok


def test_only_the_keys_asked_for(store: Store, saved: ModelArtifact) -> None:
    report = check(store, [saved["key"]])
    assert (report.artifacts, report.chunks) == (1, 10)
    with pytest.raises(ArtifactNotFound, match="nothing is stored at .*" + KEY):
        check(store, [KEY])
    with pytest.raises(InvalidReference, match="not the key"):
        check(store, ["../x"])


@pytest.mark.parametrize("moment", ["get", "stat"])
def test_an_artifact_that_is_deleted_during_the_check_is_no_problem(
    store: Store, saved: ModelArtifact, moment: str
) -> None:
    """Before its manifest is read, or before a chunk of it, collected since the listing, is looked at."""
    chunk = _first(store, saved["key"])

    def before(operation: str, key: str) -> None:
        if operation == moment and key in (saved["key"], chunk):
            store.storage.delete([saved["key"]])

    if moment == "stat":
        store.storage.delete([chunk])
    assert check(Store(Watched(store.storage, before))).ok


def test_a_chunk_that_is_newer_than_the_listing_is_found(store: Store, saved: ModelArtifact) -> None:
    chunk = _first(store, saved["key"])
    content = store.storage.get(chunk)
    store.storage.delete([chunk])

    def before(operation: str, key: str) -> None:
        if operation == "list" and key != CHUNKS:
            store.storage.put(chunk, content)

    assert check(Store(Watched(store.storage, before))).ok


@pytest.mark.parametrize("read", [False, True])
def test_damage_of_a_shared_chunk_is_reported_of_an_artifact_that_exists(
    store: Store, saved: ModelArtifact, tmp_path: Path, read: bool
) -> None:
    """The artifact that would be named is deleted when its chunk is looked at."""
    keys = [saved["key"], store.save_model(store.load(saved, tmp_path / "again"))["key"]]
    chunk = _first(store, saved["key"])
    if read:
        store.storage.put(chunk, _flip(store.storage.get(chunk)))
    else:
        store.storage.delete([chunk])
    wanted = keys if read else None
    (first,) = check(store, wanted, read=read).problems

    def before(operation: str, key: str) -> None:
        if operation == ("open" if read else "stat") and key == chunk:
            store.storage.delete([first.key])

    (left,) = check(Store(Watched(store.storage, before)), wanted, read=read).problems
    assert {first.key, left.key} == {*keys}
    assert (left.kind, left.chunk) == (first.kind, chunk)
