"""What gc does not understand may need any chunk: it refuses, and says how many there are and what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import CorruptArtifact, InvalidInput, StorageError, Store
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, CHUNKS
from metaflow_artifacts._storage import ObjectInfo, open_storage
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import execute_gc, gc, plan_gc
from metaflow_artifacts._upkeep.retain import Rules, plan_retention
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10
MODELS, CHECKPOINTS, HUB = ARTIFACT_PREFIXES
KEY = MODELS + "m_" + "0" * 32
DIGITS = "0" * 12


@pytest.fixture
def local(tmp_path: Path) -> Store:
    store = Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)
    garbage(store, tmp_path)
    return store


def garbage(store: Store, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(os.urandom(3 * CHUNK))
    store.delete(store.save_model(tmp_path / "content"))


def chunks(store: Store) -> int:
    return len(list(store.storage.list(CHUNKS)))


def collect(store: Store, **options: Any) -> int:
    return gc(store, grace=0, exclusive=True, dry_run=False, **options).removed


@pytest.mark.parametrize(
    "key",
    [
        MODELS + "x.tar",
        f"{MODELS}m_{'0' * 31}",
        f"{MODELS}m_{'0' * 32}/part",
        f"{MODELS}later/m_{'0' * 32}",
        f"{CHECKPOINTS}F/s/README",
        f"{CHECKPOINTS}F/s/{DIGITS}/{DIGITS}/{'0' * 8}.0.n.0.part",
        f"{CHECKPOINTS}F/s/later/{DIGITS}/{'0' * 8}.0.n.0",
        f"{HUB}F/s/{DIGITS}/{DIGITS}/x",
    ],
)
def test_gc_refuses_beside_an_object_that_is_not_understood(store: Store, tmp_path: Path, key: str) -> None:
    garbage(store, tmp_path)
    store.storage.put(key, b"?")
    for dry_run in (True, False):
        with pytest.raises(StorageError, match=f"nothing was removed: .* 1 object is not understood .*: {key}; "):
            gc(store, grace=0, exclusive=True, dry_run=dry_run)
    assert chunks(store) == 3
    assert collect(store, ignore=[key]) == 3
    assert store.storage.get(key) == b"?"


def test_what_is_written_after_the_plan_is_refused_too(local: Store) -> None:
    plan = plan_gc(local, grace=0, exclusive=True)
    local.storage.put(MODELS + "x.tar", b"?")
    with pytest.raises(StorageError, match=r"nothing was removed: .*x\.tar"):
        execute_gc(local, plan)
    assert chunks(local) == 3


def test_the_first_ten_are_named(local: Store) -> None:
    for number in range(13):
        local.storage.put(f"{MODELS}{number:02}", b"?")
    with pytest.raises(StorageError) as caught:
        collect(local)
    text = str(caught.value)
    assert "13 objects are not understood" in text
    assert f"{MODELS}00, {MODELS}01, " in text
    assert f"{MODELS}09 and 3 more; upgrade" in text
    assert "--ignore PREFIX" in text
    assert "\n" not in text


def test_what_is_ignored_lies_at_a_key_or_below_it(local: Store) -> None:
    for name in ("old", "old/a", "old/b/c", "older"):
        if name != "old":
            local.storage.put(MODELS + name, b"?")
    with pytest.raises(StorageError, match=f"1 object is not understood .*: {MODELS}older;"):
        collect(local, ignore=[MODELS + "old"])
    assert collect(local, ignore=[MODELS + "old/", MODELS + "older"]) == 3


def test_what_is_ignored_is_still_read_where_it_is_an_artifact(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "content")
    assert collect(local, ignore=[MODELS]) == 0
    local.load(saved, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "mf.models", "mf.artifacts/", CHUNKS, "x"])
def test_only_what_lies_among_the_artifacts_can_be_ignored(local: Store, prefix: str) -> None:
    with pytest.raises(InvalidInput, match="cannot ignore"):
        gc(local, ignore=[prefix])


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0001", "a/.git/config", ".hidden/x", "folder", "a/folder"])
def test_empty_objects_and_hidden_names_are_ignored(local: Store, name: str) -> None:
    local.storage.put(MODELS + name, b"" if name.endswith("folder") else b"?")
    assert check(local).notes == ()
    assert collect(local) == 3


def test_an_empty_object_at_the_key_of_an_artifact_is_damage(local: Store) -> None:
    local.storage.put(KEY, b"")
    with pytest.raises(CorruptArtifact, match="nothing was removed: " + KEY):
        collect(local)


def test_a_folder_that_a_console_has_made_in_a_bucket(s3_server: SeaweedServer, tmp_path: Path) -> None:
    store = Store(open_storage(f"{s3_server.root}/folders", client=s3_server.client), chunk_size=CHUNK)
    garbage(store, tmp_path)
    client = s3_server.client()
    bucket = s3_server.root.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key=f"folders/{MODELS}folder/", Body=b"")
    assert check(store).notes == ()
    assert collect(store) == 3


def test_retain_refuses_beside_an_object_that_is_not_understood(store: Store) -> None:
    store.storage.put(f"{CHECKPOINTS}F/s/later", b"?")
    for options in ({}, {"flow": "F"}, {"flow": "F", "step": "s"}):
        with pytest.raises(StorageError, match=r"nothing was removed: .*F/s/later"):
            plan_retention(store, Rules(last=1), **options)  # type: ignore[arg-type]
    assert plan_retention(store, Rules(last=1), ignore=[f"{CHECKPOINTS}F"]).groups == []
    assert plan_retention(store, Rules(last=1), flow="G").groups == []


def test_check_reports_what_is_not_understood_and_continues(local: Store, tmp_path: Path) -> None:
    local.save_model(tmp_path / "content")
    for number in range(13):
        local.storage.put(f"{MODELS}{number:02}", b"?")
    report = check(local)
    assert report.ok
    assert report.artifacts == 1
    (note,) = report.notes
    assert (note.kind, note.count) == ("stray", 13)
    assert note.keys == tuple(f"{MODELS}{number:02}" for number in range(10))
    (key,) = local.list()
    assert check(local, [key]).notes == ()


def test_what_a_storage_cannot_list_is_an_error(local: Store) -> None:
    """As a link in a local store that leads nowhere."""

    class Dangling(Watched):
        def list(self, prefix: str) -> Any:
            if prefix == CHECKPOINTS:
                raise StorageError(f"{self.root}/{CHECKPOINTS}F is a link that leads nowhere; restore or remove it")
            return super().list(prefix)

    store = Store(Dangling(local.storage, lambda operation, key: None))
    for action in (check, plan_gc):
        with pytest.raises(StorageError, match="leads nowhere"):
            action(store)


def test_a_stray_that_was_deleted_before_the_decision_does_not_count(local: Store) -> None:
    key = MODELS + "x.tar"
    local.storage.put(key, b"?")

    def before(operation: str, name: str) -> None:
        if operation == "stat" and name == key:
            local.storage.delete([key])

    watched = Store(Watched(local.storage, before))
    found: list[ObjectInfo] = [*plan_gc(watched, grace=0, exclusive=True).garbage]
    assert len(found) == 3
