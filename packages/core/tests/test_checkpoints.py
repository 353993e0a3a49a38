"""Checkpoints of one place: numbers, order, what is listed and what is gone on from, on each storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faultlib.newest import find_latest

from metaflow_artifacts import ArtifactError, ArtifactNotFound, InvalidInput, Store
from metaflow_artifacts._format.keys import CheckpointPlace, parse_key
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.checkpoints import latest_checkpoints, list_checkpoints
from metaflow_artifacts._store.details import SaveDetails

PATHSPEC = "F/1/train/2"
ID = "0123abcd"


def writer(store: Store, place: CheckpointPlace, attempt: int = 0, pathspec: str = PATHSPEC) -> CheckpointWriter:
    return CheckpointWriter(store, place, ID, attempt, pathspec)


def keys(artifacts: list[ModelArtifact]) -> list[str]:
    return [artifact["key"].rpartition("/")[2] for artifact in artifacts]


def test_numbers_continue_over_names_and_writers(store: Store, place: CheckpointPlace, file: Path) -> None:
    first = writer(store, place)
    saved = [first.save(file, name, label="l") for name in ("a", "b", "a")]
    saved.append(writer(store, place).save(file, label="l"))
    assert [artifact["version_id"] for artifact in saved] == [0, 1, 2, 3]
    assert [artifact["name"] for artifact in saved] == ["a", "b", "a", "mfchckpt"]
    assert list_checkpoints(store, place.prefix()) == saved[::-1]


def test_a_number_that_is_taken_is_skipped(store: Store, place: CheckpointPlace, file: Path) -> None:
    one, two = writer(store, place), writer(store, place)
    saved = [one.save(file, label="l"), two.save(file, label="l"), one.save(file, label="l"), two.save(file, label="l")]
    assert [artifact["version_id"] for artifact in saved] == [0, 1, 2, 3]


def test_the_newest_that_may_be_latest_is_found(store: Store, place: CheckpointPlace, file: Path) -> None:
    assert find_latest(store, place) is None
    assert list_checkpoints(store, place.prefix()) == []
    task = writer(store, place)
    saved = [task.save(file, label="l", latest=latest) for latest in (True, True, False, False)]
    assert find_latest(store, place) == saved[1]
    assert list(latest_checkpoints(store, place)) == [saved[1], saved[0]]
    assert keys(list_checkpoints(store, place.prefix())) == keys(saved[::-1])


def test_with_latest_false_alone_there_is_no_latest(store: Store, place: CheckpointPlace, file: Path) -> None:
    task = writer(store, place)
    task.save(file, label="l", latest=False)
    task.save(file, label="l", latest=False)
    assert find_latest(store, place) is None


def test_a_zombie_attempt_keeps_its_own(store: Store, place: CheckpointPlace, file: Path) -> None:
    zombie, successor = writer(store, place, 0), writer(store, place, 1)
    zombie.save(file, label="l")
    second = successor.save(file, label="l")
    third = zombie.save(file, label="l")
    assert find_latest(store, place, id=ID, pathspec=PATHSPEC, before_attempt=1) == third
    assert find_latest(store, place, id=ID, pathspec=PATHSPEC, before_attempt=2) == second
    assert find_latest(store, place, id=ID, pathspec=PATHSPEC, before_attempt=0) is None
    fourth = successor.save(file, label="l")
    assert find_latest(store, place, id=ID, pathspec=PATHSPEC, before_attempt=2) == fourth
    assert list_checkpoints(store, f"{place.prefix()}{ID}.1.", attempt=1) == [fourth, second]


def test_another_task_with_the_same_id_is_another_task(store: Store, place: CheckpointPlace, file: Path) -> None:
    mine = writer(store, place).save(file, label="l")
    theirs = writer(store, place, pathspec="F/9/train/8").save(file, label="l")
    assert mine["key"] != theirs["key"]
    assert find_latest(store, place, id=ID, pathspec=PATHSPEC) == mine
    assert find_latest(store, place) == theirs
    assert list_checkpoints(store, place.prefix() + ID, accept=lambda artifact: artifact["pathspec"] == PATHSPEC) == [
        mine
    ]


def test_by_name_and_attempt(store: Store, place: CheckpointPlace, file: Path) -> None:
    first, second = writer(store, place, 0), writer(store, place, 1)
    best = [first.save(file, "best", label="l"), second.save(file, "best", label="l")]
    second.save(file, "be", label="l")
    dotted = first.save(file, "a.0.best", label="l")
    assert list_checkpoints(store, place.prefix(), name="best") == best[::-1]
    assert list_checkpoints(store, place.prefix(), name="best", attempt=0) == best[:1]
    assert list_checkpoints(store, place.prefix(), name="a.0.best") == [dotted]


def test_a_damaged_manifest_is_reported_and_skipped(store: Store, place: CheckpointPlace, file: Path) -> None:
    task = writer(store, place)
    good, bad = task.save(file, label="l"), task.save(file, label="l")
    store.storage.put(bad["key"], b"{")
    told: list[ArtifactError] = []
    assert find_latest(store, place, on_damage=told.append) == good
    assert [bad["key"] in str(error) for error in told] == [True]
    assert list_checkpoints(store, place.prefix()) == [good]


@pytest.mark.parametrize("latest", [True, False])
def test_a_number_is_never_given_twice(store: Store, place: CheckpointPlace, file: Path, latest: bool) -> None:
    saved = [writer(store, place).save(file, label="l", latest=latest) for _ in range(3)]
    store.delete(saved[1])
    store.delete(saved[2])
    again = writer(store, place).save(file, label="l")
    assert again["version_id"] == 3
    with pytest.raises(ArtifactNotFound):
        store.info(saved[2])
    assert find_latest(store, place) == again
    store.delete(again)
    assert writer(store, place).save(file, label="l")["version_id"] == 4
    tombstones = [info.key.rpartition(".")[2] for info in store.storage.list(place.prefix("not_latest"))]
    assert sorted(tombstones) == (["2", "3"] if latest else ["0", "2", "3"])


def test_threads_that_save_at_once_get_different_numbers(store: Store, place: CheckpointPlace, file: Path) -> None:
    mine = writer(store, place)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda name: mine.save(file, name, label="l"), "abcdefgh" * 2))
    assert sorted(artifact["version_id"] for artifact in saved) == list(range(16))


def test_a_save_that_begins_later_is_newer_though_it_ends_earlier(
    store: Store, place: CheckpointPlace, file: Path
) -> None:
    mine = writer(store, place)
    slow = mine.keys("mfchckpt")
    fast = mine.save(file, label="l")
    held = store.save_checkpoint(file, slow, SaveDetails("l", pathspec=PATHSPEC))
    assert (held["version_id"], fast["version_id"]) == (0, 1)
    assert held["created_on"] > fast["created_on"]
    assert find_latest(store, place) == fast
    assert list_checkpoints(store, place.prefix()) == [fast, held]


def test_a_name_that_breaks_a_rule_stores_nothing(store: Store, place: CheckpointPlace, file: Path) -> None:
    with pytest.raises(InvalidInput, match="name"):
        writer(store, place).save(file, "a\nb", label="l")
    assert list(store.storage.list("mf.")) == []


def test_only_what_could_be_newest_is_read(
    store: Store, place: CheckpointPlace, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = writer(store, place)
    for number in range(12):
        task.save(file, "best" if number % 4 == 0 else "other", label="l", latest=number < 6)
    old = store.storage.list

    def aged(prefix: str) -> Iterator[ObjectInfo]:
        # As if an hour lay between one save and the next.
        for info in old(prefix):
            key = parse_key(info.key) if "/artifacts/" in info.key else None
            yield ObjectInfo(info.key, info.size, 3600.0 * getattr(key, "n", 0))

    reads: list[str] = []
    get = store.storage.get
    monkeypatch.setattr(store.storage, "list", aged)
    monkeypatch.setattr(store.storage, "get", lambda key, *range_: reads.append(key) or get(key, *range_))
    found = find_latest(store, place)
    assert found is not None
    assert found["version_id"] == 5
    # The newest of all, which may not be latest; of the others that may not, tombstones tell.
    assert [getattr(parse_key(key), "n", None) for key in reads] == [11, 5]
    reads.clear()
    assert [artifact["version_id"] for artifact in list_checkpoints(store, place.prefix(), name="best")] == [8, 4, 0]
    assert len(reads) == 3


def test_saves_in_a_row_cost_one_read(
    store: Store, place: CheckpointPlace, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = writer(store, place)
    saved = [task.save(file, label="l") for _ in range(10)]
    reads: list[str] = []
    get = store.storage.get
    monkeypatch.setattr(store.storage, "get", lambda key, *range_: reads.append(key) or get(key, *range_))
    assert find_latest(store, place) == saved[-1]
    assert reads == [saved[-1]["key"]]


def test_of_two_with_one_number_the_later_is_newer(store: Store, place: CheckpointPlace, file: Path) -> None:
    # As two processes do that save at the same moment, under names of their own.
    saved = [writer(store, place).save(file, "z", label="l")]
    for name in ("y", "x"):
        other = CheckpointWriter(store, place, ID, 0, PATHSPEC, start=0)
        saved.append(other.save(file, name, label="l"))
    assert [artifact["version_id"] for artifact in saved] == [0, 0, 0]
    assert list(latest_checkpoints(store, place)) == saved[::-1]


def test_numbers_come_from_the_function_that_draws_them(store: Store, place: CheckpointPlace, file: Path) -> None:
    drawn = iter([0, 8])
    mine = CheckpointWriter(store, place, ID, 0, PATHSPEC, start=0, draw=lambda at_least: next(drawn, None))
    numbers = [mine.save(file, "a", label="l")["version_id"] for _ in range(3)]
    assert numbers == [0, 8, 9]


SAVER = """
import sys
from metaflow_artifacts import open_store
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._format.keys import CheckpointPlace
root, task, path, name, count = sys.argv[1:]
writer = CheckpointWriter(open_store(root), CheckpointPlace("F", "train", "a" * 12, task), "0123abcd", 0, "F/1/train/2")
for _ in range(int(count)):
    print(writer.save(path, name, label="l")["key"])
"""


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path, place: CheckpointPlace, file: Path) -> None:
    arguments = [sys.executable, "-c", SAVER, str(tmp_path / "store"), place.task, str(file)]
    processes = [
        subprocess.Popen([*arguments, name, "20"], stdout=subprocess.PIPE, text=True) for name in ("a", "a", "b")
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    saved = "".join(outputs).split()
    assert len(set(saved)) == 60
    from metaflow_artifacts import open_store

    listed = list_checkpoints(open_store(tmp_path / "store"), place.prefix())
    assert {artifact["key"] for artifact in listed} == set(saved)
