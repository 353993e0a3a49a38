"""What a store needs of a later version: whoever judges what may go refuses, everything else asks nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faultlib.newest import find_latest
from faultlib.watched import Watched

from metaflow_artifacts import ModelArtifact, StorageError, Store, __version__
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import NEEDS, RESERVED
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._upkeep import needs
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import execute_gc, gc, plan_gc
from metaflow_artifacts._upkeep.needs import Need, unknown_needs
from metaflow_artifacts._upkeep.retain import Rules, execute_retention, plan_retention

CHUNK = 64 << 10
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """With garbage in it, and two checkpoints."""
    store = Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)
    (tmp_path / "content").write_bytes(os.urandom(3 * CHUNK))
    store.delete(store.save_model(tmp_path / "content"))
    for _ in range(2):
        checkpoint(store, tmp_path / "small")
    return store


def checkpoint(store: Store, path: Path) -> ModelArtifact:
    path.write_bytes(b"content")
    return CheckpointWriter(store, PLACE, "0" * 8, 0, "F/1/s/2").save(path, label="l")


def everything(store: Store) -> set[str]:
    return {info.key for info in store.storage.list("")}


def in_the_way(store: Store, prefix: str) -> str:
    if prefix == NEEDS:
        store.storage.put(f"{NEEDS}rounds.0.3.0", b"")
        return f"nothing was removed: {store.root} needs .*'rounds' .metaflow-artifacts 0.3.0 and later know it"
    store.storage.put(f"{prefix}x", b"?")
    return f"nothing was removed: {store.root} holds objects of a later version than {__version__}: {prefix}x"


@pytest.mark.parametrize("prefix", [NEEDS, *RESERVED])
def test_gc_and_retain_refuse_what_a_later_version_has_stored(local: Store, prefix: str) -> None:
    """Also where it comes after the plan."""
    collection = plan_gc(local, grace=0, exclusive=True)
    retention = plan_retention(local, Rules(last=0))
    assert len(collection.garbage) == 3
    assert len(retention.delete) == 2
    message = in_the_way(local, prefix)
    before = everything(local)
    for action in (
        lambda: gc(local, grace=0, exclusive=True),
        lambda: gc(local, grace=0, exclusive=True, ignore=["mf.models/models/artifacts/x"]),
        lambda: execute_gc(local, collection),
        lambda: plan_retention(local, Rules(last=0)),
        lambda: execute_retention(local, retention),
    ):
        with pytest.raises(StorageError, match=message) as caught:
            action()
        assert "upgrade metaflow-artifacts" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert everything(local) == before


@pytest.mark.parametrize("prefix", [NEEDS, *RESERVED])
def test_check_reports_what_a_later_version_has_stored_and_continues(local: Store, prefix: str) -> None:
    in_the_way(local, prefix)
    report = check(local)
    assert report.ok
    assert report.artifacts == 2
    (note,) = report.notes
    assert (note.kind, note.count) == ("need", 1)
    assert note.keys[0].startswith(prefix)
    assert "upgrade" in note.detail


def test_saves_loads_and_deletes_do_not_read_needs(local: Store, tmp_path: Path) -> None:
    in_the_way(local, NEEDS)
    asked: list[str] = []

    def before(operation: str, key: str) -> None:
        if key.startswith((NEEDS, *RESERVED)):
            asked.append(key)

    store = Store(Watched(local.storage, before), chunk_size=CHUNK)
    saved = store.save_model(tmp_path / "content")
    checkpoint(store, tmp_path / "small")
    assert find_latest(store, PLACE) is not None
    store.load(saved, tmp_path / "out")
    store.delete(saved)
    assert asked == []


def test_a_need_that_this_version_knows_is_no_obstacle(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way(local, NEEDS)
    monkeypatch.setattr(needs, "KNOWN", frozenset({"rounds"}))
    assert unknown_needs(local.storage) == []
    assert gc(local, grace=0, exclusive=True, dry_run=False).removed == 3


def test_the_names_of_needs(store: Store) -> None:
    for _ in range(2):
        store.storage.put(f"{NEEDS}rounds.0.3.0", b"")
    for name in ("odd", "deltas.1.0", ".nfs0001"):
        store.storage.put(NEEDS + name, b"")
    found = unknown_needs(store.storage)
    assert found == [Need("deltas", "1.0"), Need("odd", ""), Need("rounds", "0.3.0")]
    assert [need.key for need in found] == [f"{NEEDS}deltas.1.0", f"{NEEDS}odd", f"{NEEDS}rounds.0.3.0"]


def test_a_refusal_names_the_first_ten(store: Store) -> None:
    for number in range(13):
        store.storage.put(f"{RESERVED[0]}{number:02}", b"")
    with pytest.raises(StorageError, match=f"{RESERVED[0]}09 and 3 more; upgrade"):
        gc(store)
