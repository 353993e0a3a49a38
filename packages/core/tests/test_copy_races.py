"""Copies beside deletes in the target, the numbers that it gives then, and what a copy asks of the storages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import CorruptArtifact, Store
from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, parse_key
from metaflow_artifacts._layout import TOMBSTONES
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store import copying
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.copy_plan import Planned, in_waves
from metaflow_artifacts._store.copying import copy_artifacts
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.check import check

PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)


@pytest.fixture
def source(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "source"))


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "target"))


def writer(store: Store, place: CheckpointPlace = PLACE, attempt: int = 0) -> CheckpointWriter:
    return CheckpointWriter(store, place, "0" * 8, attempt, "F/1/s/2")


def checkpoint(key: str) -> CheckpointKey:
    parsed = parse_key(key)
    assert isinstance(parsed, CheckpointKey)
    return parsed


def tombstones(store: Store) -> set[str]:
    return {info.key for info in store.storage.list(PLACE.prefix(TOMBSTONES))}


def save(store: Store, file: Path, **options: object) -> str:
    return writer(store).save(file, label="l", **options)["key"]  # type: ignore[arg-type]


def test_the_number_of_a_deleted_checkpoint_is_not_given_again(source: Store, target: Store, file: Path) -> None:
    a, b = save(source, file), save(source, file)
    model = source.save_model(file, parents=[b])["key"]
    source.delete(b)
    source.copy_to(target, [a, model], lineage=True)
    assert tombstones(target) == {checkpoint(b).tombstone}
    assert save(target, file) not in (a, b)


def test_a_checkpoint_that_the_target_has_is_not_hidden_for_its_number(
    source: Store, target: Store, file: Path
) -> None:
    a, b = save(source, file), save(source, file)
    source.copy_to(target, [a, b])
    source.delete(b)
    source.copy_to(target, [a])
    assert tombstones(target) == set()


@pytest.mark.parametrize("when", ["before the commits", "before its tombstone is removed", "after that"])
def test_a_delete_in_the_target_while_its_batch_is_copied(source: Store, target: Store, file: Path, when: str) -> None:
    """The copy says what is there at its end."""
    (other := file.parent / "other").write_bytes(bytes(200_000))
    key, new = save(source, file), source.save_model(other)["key"]
    source.copy_to(target, [key])
    stone = checkpoint(key).tombstone
    if when != "before the commits":
        # A delete writes it first.
        target.storage.put(stone, b"")
    calls = {
        "before the commits": ("list", PLACE.prefix(TOMBSTONES)),
        "before its tombstone is removed": ("stat", key),
        "after that": ("delete", stone),
    }
    done: list[str] = []

    def before(operation: str, what: str) -> None:
        if (operation, what) == calls[when] and not done:
            done.append(what)
            target.storage.put(stone, b"")
            target.storage.delete([key])

    result = source.copy_to(Store(Watched(target.storage, before)), [key, new])
    assert done
    assert (set(result.copied), result.present) == ({key, new}, ())
    assert target.info(key)["key"] == key
    assert tombstones(target) == set()
    assert check(target, read=True).ok


@pytest.mark.parametrize(
    ("when", "removed"),
    [(lambda key, stone: ("stat", key), False), (lambda key, stone: ("delete", stone), True)],
)
def test_a_tombstone_stays_if_its_checkpoint_is_gone(
    source: Store, target: Store, file: Path, when: Callable[[str, str], tuple[str, str]], removed: bool
) -> None:
    """The checkpoint was deleted after it was copied: its number must stay taken."""
    key = save(source, file)
    stone = checkpoint(key).tombstone
    target.storage.put(stone, b"")
    seen: list[tuple[str, str]] = []

    def before(operation: str, what: str) -> None:
        seen.append((operation, what))
        if (operation, what) == when(key, stone):
            target.storage.delete([key])

    source.copy_to(Store(Watched(target.storage, before)), [key])
    assert tombstones(target) == {stone}
    assert target.storage.stat(key) is None
    assert when(key, stone) in seen
    assert (("delete", stone) in seen) == removed


def test_a_model_that_is_deleted_in_the_target_while_its_batch_is_copied(
    source: Store, target: Store, file: Path
) -> None:
    key, other = source.save_model(file)["key"], save(source, file)
    source.copy_to(target, [key])

    def before(operation: str, what: str) -> None:
        if (operation, what) == ("list", PLACE.prefix(TOMBSTONES)):
            target.storage.delete([key])

    assert source.copy_to(Store(Watched(target.storage, before)), [key, other]).copied == (other, key)
    assert target.info(key)["key"] == key


def test_what_vanishes_after_a_refused_write_is_written(source: Store, target: Store, file: Path) -> None:
    key = source.save_model(file)["key"]
    written: list[str] = []

    def before(operation: str, what: str) -> None:
        if what != key:
            return
        if operation == "put_if_absent" and not written:
            written.append(what)
            target.storage.put(key, source.storage.get(key))
        elif operation == "get" and written:
            target.storage.delete([key])

    assert source.copy_to(Store(Watched(target.storage, before)), [key]).copied == (key,)
    assert written
    assert check(target, read=True).ok


def test_a_damaged_manifest_in_the_target_is_called_that(source: Store, target: Store, file: Path) -> None:
    key = source.save_model(file)["key"]
    data = source.storage.get(key)
    target.storage.put(key, data[:-20] + b"x" * 20)
    with pytest.raises(CorruptArtifact, match="the manifest at this key is damaged") as failure:
        source.copy_to(target, [key])
    assert target.root in str(failure.value)


def test_a_key_that_was_listed_and_is_gone_is_no_failure(source: Store, target: Store, file: Path) -> None:
    key, gone = (source.save_model(file)["key"] for _ in range(2))
    source.delete(gone)
    for named, failures in (([], set()), ([gone], {gone})):
        outcome = copy_artifacts(source, target, named, False, False, Progress(), [key, gone])
        assert set(outcome.failures) == failures
        assert {*outcome.result.copied, *outcome.result.present} == {key}


def test_small_checkpoints_cost_few_requests(source: Store, target: Store, file: Path) -> None:
    keys = []
    for _ in range(5):
        place = CheckpointPlace("F", "s", "0" * 12, uuid4().hex[:12])
        keys.append(writer(source, place).save(file, label="l")["key"])
    seen: Counter[str] = Counter()
    watched = [
        Store(Watched(store.storage, lambda operation, what, at=at: seen.update([f"{at} {operation}"])))  # type: ignore[misc]
        for at, store in (("source", source), ("target", target))
    ]
    watched[0].copy_to(watched[1], keys)
    assert {name: count for name, count in seen.items() if count >= 5} == {
        "source get": 5,
        "target get": 5,
        "target put_if_absent": 5,
        "source list": 6,
        "target list": 5,
    }
    assert len(seen) == 5


def planned(key: str, *parents: str, pathspec: str = "") -> Planned:
    return Planned("", 0, 0, key, pathspec, 0, parents, None)


def test_what_may_be_committed_at_once() -> None:
    other = CheckpointPlace("F", "s", "0" * 12, "2" * 12)
    first, second, third = (str(CheckpointKey(PLACE, "0" * 8, 0, "c", n)) for n in range(3))
    beside, again = (str(CheckpointKey(other, "0" * 8, attempt, "c", 0)) for attempt in range(2))
    models = [f"mf.models/models/artifacts/m_{n:032x}" for n in range(4)]
    artifacts = [
        planned(first),
        planned(beside),
        planned(models[0], "somewhere else"),
        planned(second),
        planned(again, second),
        planned(models[1], again, models[0]),
        planned(models[2], pathspec="F/1/s/2"),
        planned(third),
        planned(models[3], pathspec="F/1/s/2"),
    ]
    waves = [[one.key for one in wave] for wave in in_waves(artifacts)]
    assert waves == [
        [first, beside, models[0], models[2]],
        [second, models[3]],
        [again, third],
        [models[1]],
    ]


def test_manifests_are_kept_up_to_a_limit(
    source: Store, target: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaflow_artifacts._store.copy_plan._KEPT_BYTES", 1)
    monkeypatch.setattr(copying, "_REMEMBERED", 0)
    monkeypatch.setattr(copying, "_BATCH", 2)
    file.write_bytes(bytes(200_000))
    keys = [source.save_model(file)["key"] for _ in range(5)]
    assert set(source.copy_to(target, keys).copied) == set(keys)
    assert check(target, read=True).ok


def test_an_ancestor_that_is_deleted_during_the_copy_is_left_out(source: Store, target: Store) -> None:
    contents = [bytes([number]) * 100_000 for number in range(2)]
    parent = source.save_model({"f": contents[0]})["key"]
    child = source.save_model({"f": contents[1]}, parents=[parent])["key"]
    chunk = chunk_key(source.manifest(parent).chunks[0].sha256)
    done: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "open" and key == chunk and not done:
            done.append(key)
            source.delete(parent)
            source.storage.delete([chunk])

    result = Store(Watched(source.storage, before)).copy_to(target, [child], lineage=True)
    assert done == [chunk]
    assert (result.copied, result.missing_parents) == ((child,), (parent,))
    assert check(target, read=True).ok
