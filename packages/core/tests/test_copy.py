"""Artifacts copied between stores: what arrives, what is sent, and what is refused."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from faultlib import forge
from faultlib.outcomes import content
from faultlib.watched import Watched

from metaflow_artifacts import (
    ArtifactNotFound,
    CorruptArtifact,
    InvalidInput,
    InvalidReference,
    StorageError,
    Store,
    list_checkpoints,
)
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, CHUNKS, GC_MARKS, NEEDS, TOMBSTONES
from metaflow_artifacts._storage import CopyOutcome, LocalStorage, open_storage
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._store import copying
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer import copying as chunk_copies
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.azurite import AzuriteServer, account_key
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)

Open = Callable[[str], Store]


@pytest.fixture
def open_at(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Makes an empty store on a kind of storage."""

    def make(kind: str) -> Store:
        name = uuid4().hex
        if kind == "local":
            return Store(open_storage(tmp_path / name), chunk_size=CHUNK)
        if kind == "s3":
            s3: SeaweedServer = request.getfixturevalue("s3_server")
            return Store(open_storage(f"{s3.root}/{name}", client=s3.client, patience=5), chunk_size=CHUNK)
        if kind == "azure":
            azurite: AzuriteServer = request.getfixturevalue("azurite")
            endpoint = azurite.endpoint
            return Store(AzureStorage(f"{azurite.root}/{name}", account_key, endpoint=endpoint), chunk_size=CHUNK)
        gcs: FakeGcsServer = request.getfixturevalue("fake_gcs")
        return Store(GcsStorage(f"{gcs.root}/{name}", anonymous, endpoint=gcs.endpoint), chunk_size=CHUNK)

    return make


@pytest.fixture
def source(open_at: Open) -> Store:
    return open_at("local")


@pytest.fixture
def target(open_at: Open) -> Store:
    return open_at("local")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "empty").mkdir(parents=True)
    (root / "weights.bin").write_bytes(random.randbytes(5 * CHUNK + 7))
    (root / "zeros.bin").write_bytes(bytes(2 * CHUNK))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


def fill(store: Store, tree: Path) -> list[str]:
    """A base model, checkpoints of two attempts made from it, of which the last is not latest, and a small model."""
    base = store.save_model(tree, "base", {"loss": float("nan")}, pathspec="F/1/s/2")["key"]
    keys = [base]
    for attempt, latest in ((0, True), (0, True), (1, True), (1, False)):
        (tree / "state.json").write_text(f"{len(keys)}")
        writer = CheckpointWriter(store, PLACE, "0" * 8, attempt, "F/1/s/2")
        keys.append(writer.save(tree, label="l", latest=latest, parents=[keys[-1]])["key"])
    (tree.parent / "small").write_text("small")
    keys.append(store.save_model(tree.parent / "small", "small", parents=[keys[-1]])["key"])
    return keys


def chunk_bytes(store: Store) -> int:
    return sum(info.size for info in store.storage.list(CHUNKS))


def manifest_bytes(store: Store, keys: list[str]) -> int:
    return sum(len(store.storage.get(key)) for key in keys)


def listed(store: Store) -> set[str]:
    return {key for prefix in ARTIFACT_PREFIXES for key in store.list(prefix)}


def same(source: Store, target: Store, keys: list[str], tmp_path: Path) -> None:
    """The artifacts of two stores are the same."""
    for key in keys:
        assert target.storage.get(key) == source.storage.get(key)
        assert target.info(key) == {**source.info(key), "url": f"{target.root}/{key}"}
        loaded = []
        for store in (source, target):
            store.load(key, tmp_path / "loaded")
            loaded.append(content(tmp_path / "loaded"))
            shutil.rmtree(tmp_path / "loaded")
        assert loaded[0] == loaded[1]
    for store in (source, target):
        assert check(store, read=True).ok
    order = [[one["key"] for one in list_checkpoints(store, PLACE.prefix())] for store in (source, target)]
    assert order[0] == order[1]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("local", "local"),
        ("local", "s3"),
        ("s3", "local"),
        ("s3", "s3"),
        ("s3", "azure"),
        ("azure", "gcs"),
        ("azure", "azure"),
        ("gcs", "gcs"),
        ("gcs", "local"),
        ("local", "azure"),
    ],
)
def test_a_copy_is_the_same_store(open_at: Open, kind: str, other: str, tree: Path, tmp_path: Path) -> None:
    source, target = open_at(kind), open_at(other)
    keys = fill(source, tree)
    result = source.copy_to(target, reversed(keys))
    assert list(result.copied) == keys
    assert (result.present, result.missing_parents) == ((), ())
    same(source, target, keys, tmp_path)
    content, manifests = chunk_bytes(source), manifest_bytes(source, keys)
    assert (result.sent, result.by_service) == ((manifests, content) if kind == other else (manifests + content, 0))
    again = source.copy_to(target, keys)
    assert list(again.present) == keys
    assert (again.copied, again.sent, again.by_service) == ((), 0, 0)
    # And back: to the store that they came from.
    assert list(target.copy_to(source, keys).present) == keys


def test_each_chunk_is_looked_for_and_sent_once(source: Store, target: Store, tree: Path) -> None:
    keys = fill(source, tree)
    seen: Counter[tuple[str, str]] = Counter()
    watched = Store(Watched(target.storage, lambda operation, key: seen.update([(operation, key)])))
    source.copy_to(watched, keys)
    chunks = [info.key for info in source.storage.list(CHUNKS)]
    assert len(chunks) > 6
    for operation in ("stat", "copy_from"):
        assert [seen[operation, key] for key in chunks] == [1] * len(chunks)


def test_only_what_is_missing_is_sent(open_at: Open, target: Store, tree: Path) -> None:
    source = open_at("s3")
    first = source.save_model(tree)["key"]
    target.save_model(tree, "other")
    assert source.copy_to(target, [first]).sent == manifest_bytes(source, [first])
    (tree / "more.bin").write_bytes(random.randbytes(CHUNK))
    second = source.save_model(tree)["key"]
    assert source.copy_to(target, [second]).sent == manifest_bytes(source, [second]) + CHUNK


def test_files_of_two_stores_on_a_disk_are_not_linked(source: Store, target: Store, tree: Path) -> None:
    source.copy_to(target, [source.save_model(tree)["key"]])
    copies = [path for path in Path(target.root).rglob("*") if path.is_file()]
    assert len(copies) > 5
    assert {path.stat().st_nlink for path in copies} == {1}


def test_the_oldest_is_committed_first_each_after_its_chunks(source: Store, target: Store, tree: Path) -> None:
    keys = fill(source, tree)

    def before(operation: str, key: str) -> None:
        if operation == "put_if_absent" and key in keys:
            there = listed(target)
            assert there == set(keys[: keys.index(key)])
            assert all(target.storage.stat(chunk_key(c.sha256)) for c in source.manifest(key).chunks)
            commits.append(key)

    commits: list[str] = []
    source.copy_to(Store(Watched(target.storage, before)), random.sample(keys, len(keys)))
    assert commits == keys


def test_batches_are_in_order_too(
    source: Store, target: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BATCH", 2)
    keys = fill(source, tree)
    assert list(source.copy_to(target, keys).copied) == keys
    same(source, target, keys, tmp_path)


def test_lineage_takes_the_ancestors_along(source: Store, target: Store, tree: Path, tmp_path: Path) -> None:
    keys = fill(source, tree)
    source.delete(keys[0])
    other = source.save_model(tree)["key"]
    odd = source.save_model(tmp_path / "small", parents=["what no key looks like", keys[2]])["key"]
    assert source.copy_to(target, [keys[2]]).copied == (keys[2],)
    result = source.copy_to(target, [keys[-1], odd], lineage=True)
    assert set(result.copied) == {*keys[1:], odd} - {keys[2]}
    assert result.present == (keys[2],)
    assert set(result.missing_parents) == {keys[0], "what no key looks like"}
    assert target.info(keys[1])["parents"] == [keys[0]]
    assert other not in listed(target)


def test_another_artifact_at_the_key_is_an_error(source: Store, target: Store, tree: Path, tmp_path: Path) -> None:
    """And the other artifacts are copied."""
    keys = fill(source, tree)
    (tmp_path / "theirs").write_text("theirs")
    theirs = CheckpointWriter(target, PLACE, "0" * 8, 0, "F/9/s/9").save(tmp_path / "theirs", label="l")["key"]
    assert theirs == keys[1]
    before = target.storage.get(theirs)
    for _ in range(2):
        with pytest.raises(StorageError, match="another artifact") as failure:
            source.copy_to(target, keys)
        assert theirs in str(failure.value)
        assert target.root in str(failure.value)
        assert target.storage.get(theirs) == before
        assert listed(target) == set(keys)
    assert check(target, read=True).ok


def test_what_a_racing_saver_put_there_first_is_found_out(source: Store, target: Store, tree: Path) -> None:
    first, second = fill(source, tree)[:2]

    def before(operation: str, key: str) -> None:
        if operation == "put_if_absent" and key in (first, second):
            target.storage.put(key, source.storage.get(first))

    with pytest.raises(StorageError, match="another artifact") as failure:
        source.copy_to(Store(Watched(target.storage, before)), [first, second])
    assert second in str(failure.value)
    assert first not in str(failure.value)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("kind", "other"), [("local", "local"), ("s3", "s3"), ("azure", "azure"), ("s3", "local")])
def test_a_chunk_that_is_damaged_in_the_source(
    open_at: Open, kind: str, other: str, verify: bool, tree: Path, tmp_path: Path
) -> None:
    source, target = open_at(kind), open_at(other)
    whole = source.save_model(tree)["key"]
    (tree / "weights.bin").write_bytes(random.randbytes(3 * CHUNK))
    damaged = source.save_model(tree)["key"]
    bad = next(c for c in source.manifest(damaged).chunks if c.size == CHUNK and c not in source.manifest(whole).chunks)
    # With a SHA-256 of its own, if the service keeps one.
    source.storage.put(chunk_key(bad.sha256), random.randbytes(CHUNK))
    if kind == "azure" and not verify:
        # It keeps MD5 alone: the copy is as the source is.
        source.copy_to(target, [whole, damaged])
        with pytest.raises(CorruptArtifact, match=chunk_key(bad.sha256)):
            target.load(damaged, tmp_path / "loaded")
        return
    with pytest.raises(CorruptArtifact, match=chunk_key(bad.sha256)) as failure:
        source.copy_to(target, [whole, damaged], verify=verify)
    for name in (damaged, source.root, target.root):
        assert name in str(failure.value)
    assert listed(target) == {whole}
    assert target.storage.stat(chunk_key(bad.sha256)) is None
    assert check(target, read=True).ok


def test_a_bad_chunk_that_several_artifacts_need_is_bad_for_all(
    source: Store, target: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BATCH", 1)
    keys = [source.save_model(tree)["key"] for _ in range(3)]
    source.storage.delete([chunk_key(source.manifest(keys[0]).chunks[0].sha256)])
    with pytest.raises(CorruptArtifact, match="missing") as failure:
        source.copy_to(target, keys)
    assert all(key in str(failure.value) for key in keys)
    assert listed(target) == set()


def test_a_manifest_that_gives_a_chunk_another_size_is_bad_alone(source: Store, target: Store, tree: Path) -> None:
    (tree / "weights.bin").unlink()
    whole = source.save_model(tree)["key"]
    chunk = max(source.manifest(whole).chunks, key=lambda c: c.size)
    made = forge.wire({"f": bytes(chunk.size + 1)})
    made["chunks"] = [[chunk.sha256, chunk.size + 1]]
    source.storage.put(forge.KEY, forge.sign(made))
    with pytest.raises(CorruptArtifact, match=forge.KEY):
        source.copy_to(target, [forge.KEY, whole])
    assert listed(target) == {whole}
    assert check(target, read=True).ok


def test_a_target_that_is_replaced_during_the_copy(
    source: Store, target: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BATCH", 1)
    keys = fill(source, tree)

    def before(operation: str, key: str) -> None:
        if operation == "put_if_absent" and key == keys[1]:
            os.rename(target.root, tmp_path / "away")
            os.mkdir(target.root)

    with pytest.raises(StorageError, match="replaced during the copy"):
        source.copy_to(Store(Watched(target.storage, before)), keys)


def test_verify_reads_what_the_target_had_and_repairs_it(source: Store, target: Store, tree: Path) -> None:
    key = source.save_model(tree)["key"]
    target.save_model(tree)
    chunk = next(c for c in source.manifest(key).chunks if c.size == CHUNK)
    target.storage.put(chunk_key(chunk.sha256), random.randbytes(CHUNK))
    source.copy_to(target, [key])
    assert not check(target, read=True).ok
    result = source.copy_to(target, [key], verify=True)
    assert (result.present, result.sent) == ((key,), CHUNK)
    assert check(target, read=True).ok


def test_an_artifact_that_was_deleted_during_the_copy(source: Store, target: Store, tree: Path) -> None:
    key = source.save_model(tree)["key"]

    def before(operation: str, what: str) -> None:
        if operation == "open" and what.startswith(CHUNKS):
            source.storage.delete([key, what])

    with pytest.raises(ArtifactNotFound, match="while it was copied") as failure:
        Store(Watched(source.storage, before)).copy_to(target, [key])
    for name in (key, source.root, target.root):
        assert name in str(failure.value)
    assert listed(target) == set()


def test_keys_that_name_nothing(source: Store, target: Store, tree: Path) -> None:
    """The others are copied."""
    key, gone = (source.save_model(tree)["key"] for _ in range(2))
    reference = source.info(gone)
    source.delete(gone)
    for one in (gone, reference, f"{source.root}/{gone}"):
        with pytest.raises(ArtifactNotFound, match=gone):
            source.copy_to(target, [one, key])
        assert listed(target) == {key}
    with pytest.raises(InvalidReference):
        source.copy_to(target, ["mf.models/models/artifacts/x"])


def test_a_store_is_not_copied_into_itself(source: Store, tree: Path, tmp_path: Path, open_at: Open) -> None:
    key = source.save_model(tree)["key"]
    (tmp_path / "link").symlink_to(source.root)
    for root in (
        source.root,
        str(tmp_path / "link"),
        source.root + "/mf.artifacts/x",
        str(tmp_path / "link/mf.models"),
    ):
        with pytest.raises(InvalidInput, match="cannot copy from"):
            source.copy_to(Store(open_storage(root)), [key])
    with pytest.raises(InvalidInput, match="same store"):
        (remote := open_at("s3")).copy_to(remote, [])
    # Beside its objects is no part of it.
    below = Store(open_storage(source.root + "/backup"))
    assert source.copy_to(below, [key]).copied == (key,)
    assert check(source, read=True).ok


def test_tombstones_are_as_in_the_source(source: Store, target: Store, tree: Path, tmp_path: Path) -> None:
    keys = fill(source, tree)
    source.copy_to(target, keys)
    marks = {info.key for info in source.storage.list(PLACE.prefix(TOMBSTONES))}
    assert len(marks) == 1
    assert {info.key for info in target.storage.list(PLACE.prefix(TOMBSTONES))} == marks
    # The highest of an attempt: its number stays taken, until it is copied again.
    target.delete(keys[2])
    assert len(list(target.storage.list(PLACE.prefix(TOMBSTONES)))) == 2
    assert source.copy_to(target, keys).copied == (keys[2],)
    assert {info.key for info in target.storage.list(PLACE.prefix(TOMBSTONES))} == marks
    # As after a kill between the two writes.
    target.storage.delete(marks)
    source.copy_to(target, keys)
    same(source, target, keys, tmp_path)
    assert {info.key for info in target.storage.list(PLACE.prefix(TOMBSTONES))} == marks


def test_numbers_go_on_behind_what_was_copied(source: Store, target: Store, tree: Path) -> None:
    keys = fill(source, tree)
    writer = CheckpointWriter(target, PLACE, "0" * 8, 1, "F/1/s/2")
    source.copy_to(target, keys)
    assert writer.save(tree, label="l")["version_id"] == 2


def test_the_target_is_told_first_which_features_the_source_uses(source: Store, target: Store, tree: Path) -> None:
    key = source.save_model(tree)["key"]
    need = NEEDS + "rounds.0.3.0"
    source.storage.put(need, b"")
    seen: list[str] = []
    source.copy_to(Store(Watched(target.storage, lambda operation, key: seen.append(f"{operation} {key}"))), [key])
    assert target.storage.get(need) == b""
    assert seen.index(f"put_if_absent {need}") < min(n for n, one in enumerate(seen) if CHUNKS in one)


def test_a_service_that_does_not_copy_is_asked_a_few_times(
    source: Store, target: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without the right to read the source."""
    monkeypatch.setattr(chunk_copies, "_TRIALS", 1)
    keys = fill(source, tree)
    watched = Store(Watched(target.storage, lambda operation, key: None))
    watched.storage.copy_from = lambda *arguments, **options: asked.append(1) or CopyOutcome.UNABLE  # type: ignore[method-assign]
    asked: list[int] = []
    result = source.copy_to(watched, keys)
    assert (result.by_service, result.sent) == (0, chunk_bytes(source) + manifest_bytes(source, keys))
    assert 0 < len(asked) <= target.storage.threads < len(list(source.storage.list(CHUNKS)))
    same(source, target, keys, tmp_path)


def test_a_gc_that_has_looked_at_a_chunk_before_the_copy_did(
    source: Store, target: Store, tree: Path, tmp_path: Path
) -> None:
    """It deletes the chunk after the copy has renewed it, and before the copy commits."""
    key = source.save_model(tree)["key"]
    target.delete(target.save_model(tree))
    for info in target.storage.list(CHUNKS):
        os.utime(Path(target.root, info.key), (info.modified - 30 * 24 * 3600,) * 2)
    looked = threading.Event()

    def in_copy(operation: str, what: str) -> None:
        if (operation, what) == ("list", GC_MARKS):
            looked.set()

    copied: list[str] = []
    beside = Store(Watched(target.storage, in_copy))
    copier = threading.Thread(target=lambda: copied.extend(source.copy_to(beside, [key]).copied))

    def in_gc(operation: str, what: str) -> None:
        if operation == "delete" and what.startswith(CHUNKS) and copier.ident is None:
            copier.start()
            assert looked.wait(60)

    collector = Store(Watched(target.storage, in_gc))
    assert gc(collector, dry_run=False).removed > 0
    copier.join()
    assert copied == [key]
    same(source, target, [], tmp_path)


def test_a_copy_by_the_service_that_keeps_the_time_of_the_source_does_not_count(
    open_at: Open, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc would find the chunk old, and remove it before the commit."""
    source, target = open_at("s3"), open_at("s3")
    key = source.save_model(tree)["key"]
    assert isinstance(target.storage, S3Storage)
    copy = target.storage._copy
    monkeypatch.setattr(
        target.storage, "_copy", lambda *arguments: replace(copy(*arguments), modified=time.time() - 3600)
    )
    result = source.copy_to(target, [key])
    assert (result.sent, result.by_service) == (chunk_bytes(source) + manifest_bytes(source, [key]), 0)


@pytest.fixture
def two_file_systems(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    place = shared / f"metaflow-artifacts-{uuid4().hex}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_between_two_file_systems(source: Store, two_file_systems: Path, tree: Path, tmp_path: Path) -> None:
    target = Store(LocalStorage(two_file_systems))
    keys = fill(source, tree)
    assert list(source.copy_to(target, keys).copied) == keys
    same(source, target, keys, tmp_path)
