"""Keys that come again, versions that come later, and servers that refuse everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faultlib.memory import MemoryStorage
from faultlib.newest import find_latest
from faultlib.watched import Watched

from metaflow_artifacts import (
    ArtifactNotFound,
    CheckpointPlace,
    CheckpointWriter,
    LaterFormat,
    Rules,
    StorageError,
    Store,
    UnsupportedFormat,
    execute_retention,
    list_checkpoints,
    parse_reference,
    plan_retention,
)
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._store.references import differing

PATHSPEC = "F/1/train/2"


def writer(store: Store, place: CheckpointPlace, attempt: int = 0) -> CheckpointWriter:
    return CheckpointWriter(store, place, "0123abcd", attempt, PATHSPEC)


def test_a_reference_does_not_load_or_delete_what_took_its_key(
    store: Store, place: CheckpointPlace, file: Path, tmp_path: Path
) -> None:
    """As where a metadata service counts runs from 1 again."""
    old = writer(store, place).save(file, label="l")
    store.storage.delete([old["key"]])
    file.write_text("another state")
    new = writer(store, place).save(file, label="l")
    assert new["key"] == old["key"]
    for call in (
        lambda: store.load(old, tmp_path / "out"),
        lambda: store.info(old),
        lambda: store.read_file(old, "state"),
        lambda: store.delete(old),
    ):
        with pytest.raises(ArtifactNotFound, match="another artifact is stored at its key now"):
            call()
    store.load(old["key"], tmp_path / "out")
    assert (tmp_path / "out" / "state").read_text() == "another state"
    store.delete(new)


@pytest.mark.parametrize(
    ("date", "same"),
    [
        ("2026-01-31 13:05:09+02:00", True),
        ("2026-01-31T11:05:09.000Z", True),
        ("2026-01-31T11:05:09", True),
        ("2026-01-31T13:05:09Z", False),
        ("", False),
        ("0001-01-01T00:00:00+23:00", False),
    ],
)
def test_a_reference_whose_date_was_written_anew_is_to_the_same_artifact(store: Store, date: str, same: bool) -> None:
    """As by a table or database that the reference was kept in."""
    found = {**store.save_model({"file": b""}), "created_on": "2026-01-31T11:05:09+00:00"}
    assert differing(parse_reference({**found, "created_on": date}), parse_reference(found)) == (
        [] if same else ["created_on"]
    )


def test_a_damaged_artifact_can_be_deleted_by_its_reference(store: Store, file: Path) -> None:
    saved = store.save_model(file)
    store.storage.put(saved["key"], b"{")
    store.delete(saved)
    assert list(store.list()) == []


def test_a_checkpoint_of_a_later_version_stops_the_search(store: Store, place: CheckpointPlace, file: Path) -> None:
    """To resume from an older one would lose what was trained since."""
    mine = writer(store, place)
    mine.save(file, label="l")
    later = mine.save(file, label="l")
    data = store.storage.get(later["key"])
    store.storage.put(later["key"], data.replace(b'"version":1', b'"version":2', 1))
    with pytest.raises(LaterFormat, match="upgrade metaflow-artifacts"):
        find_latest(store, place, id="0123abcd", pathspec=PATHSPEC)


def test_a_large_object_that_is_no_manifest_is_not_read(place: CheckpointPlace) -> None:
    storage = MemoryStorage()
    key = place.prefix() + "0123abcd.0.mfchckpt.0"
    storage.put(key, bytes(50 << 20))
    lengths: list[int] = []
    get = storage.get
    storage.get = lambda key, start=0, length=None: lengths.append(length or 0) or get(key, start, length)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedFormat):
        Store(storage).head_at(key)
    assert sum(lengths) <= 16 << 10
    assert 0 not in lengths


def test_a_tombstone_that_cannot_be_written_costs_no_checkpoint(
    tmp_path: Path, place: CheckpointPlace, file: Path
) -> None:
    def before(operation: str, key: str) -> None:
        if operation == "put" and "/not_latest/" in key:
            raise StorageError("access denied")

    store = Store(Watched(LocalStorage(tmp_path / "store"), before))
    saved = writer(store, place).save(file, label="l", latest=False)
    assert list_checkpoints(store, place.prefix()) == [saved]
    assert find_latest(store, place) is None


def test_a_server_that_refuses_every_conditional_write_is_named(
    tmp_path: Path, place: CheckpointPlace, file: Path
) -> None:
    class Refuses(LocalStorage):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            return False

    with pytest.raises(StorageError, match="says that it exists, and does not have it"):
        writer(Store(Refuses(tmp_path / "store")), place).save(file, label="l")


def test_numbers_are_asked_for_where_the_machine_cannot_draw_them(
    store: Store, place: CheckpointPlace, file: Path
) -> None:
    writer(store, place).save(file, "other", label="l")
    mine = CheckpointWriter(store, place, "0123abcd", 0, PATHSPEC, start=0, draw=lambda at_least: None)
    assert [mine.save(file, "best", label="l")["version_id"] for _ in range(2)] == [1, 2]


def test_retention_looks_the_numbers_of_an_attempt_up_once(tmp_path: Path, place: CheckpointPlace, file: Path) -> None:
    listed: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "list":
            listed.append(key)

    store = Store(Watched(LocalStorage(tmp_path / "store"), before))
    mine = writer(store, place)
    for _ in range(30):
        mine.save(file, label="l")
    plan = plan_retention(store, Rules(last=1))
    listed.clear()
    assert execute_retention(store, plan).deleted == 29
    assert len([key for key in listed if "/not_latest/" in key]) == 1
    assert [one["version_id"] for one in list_checkpoints(store, place.prefix())] == [29]


@pytest.mark.parametrize("path", ["\ud800x", "with\0nul"])
def test_paths_that_the_system_cannot_take(store: Store, file: Path, path: str) -> None:
    saved = store.save_model(file)
    with pytest.raises(ValueError, match="path to save: expected a path"):
        store.save_model(path)
    with pytest.raises(ValueError, match="path to load into: expected a path"):
        store.load(saved, path)
    assert not os.path.lexists("x")
