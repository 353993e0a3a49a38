"""`check --read` takes the chunks by prefix, and finds the artifacts that need a damaged one afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import Progress, Store, open_storage
from metaflow_artifacts._layout import CHUNKS, MODEL_ARTIFACTS
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check

CHUNK = 64 << 10


@pytest.fixture
def local(tmp_path: Path) -> Store:
    (tmp_path / "weights").write_bytes(os.urandom(6 * CHUNK))
    (tmp_path / "half").write_bytes((tmp_path / "weights").read_bytes()[: 3 * CHUNK])
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


def first_chunk(store: Store, key: str) -> str:
    return chunk_key(store.manifest(key).chunks[0].sha256)


def removed(store: Store, chunk: str) -> None:
    store.storage.delete([chunk])


def changed(store: Store, chunk: str) -> None:
    store.storage.put(chunk, bytes(CHUNK))


def during(store: Store, operation: str, prefix: str, action: Callable[[], None]) -> Store:
    """The store, with an action before its first operation of that name after all manifests were read."""
    pending = [action]

    def before(done: str, key: str) -> None:
        if done == operation and key.startswith(prefix) and pending:
            pending.pop()()

    return Store(Watched(store.storage, before), chunk_size=CHUNK)


@pytest.mark.parametrize("damage", [removed, changed])
def test_damage_of_a_shared_chunk_is_one_problem_of_an_artifact_that_exists(
    local: Store, tmp_path: Path, damage: Callable[[Store, str], None]
) -> None:
    keys = {local.save_model(tmp_path / name)["key"] for name in ("weights", "half")}
    damage(local, first_chunk(local, min(keys)))
    (problem,) = check(local, read=True).problems
    assert problem.key in keys
    assert problem.chunk == first_chunk(local, min(keys))

    # That artifact is deleted after its manifest was read: the other needs the chunk too.
    watched = during(local, "list", CHUNKS, lambda: local.delete(problem.key))
    (left,) = check(watched, read=True).problems
    assert {problem.key, left.key} == keys
    assert (left.kind, left.chunk) == (problem.kind, problem.chunk)

    watched = during(local, "list", CHUNKS, lambda: local.delete(left.key))
    report = check(watched, read=True)
    assert report.ok
    assert report.artifacts == 1


def test_an_artifact_that_is_deleted_while_its_damage_is_looked_up_is_no_problem(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "half")
    chunk = first_chunk(local, saved["key"])
    removed(local, chunk)
    looks: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "stat" and key == chunk:
            looks.append(key)
            if len(looks) == 2:
                local.delete(saved)

    assert check(Store(Watched(local.storage, before)), read=True).ok
    assert len(looks) == 2


def test_what_is_saved_again_during_the_check_is_no_problem(local: Store, tmp_path: Path) -> None:
    """The artifact is deleted and its chunk removed by a gc; then a save stores the same content."""
    saved = local.save_model(tmp_path / "half")
    chunk = first_chunk(local, saved["key"])
    content = local.storage.get(chunk)
    local.storage.delete([chunk])

    # The second listing of manifests is the one that looks for the artifacts of missing chunks.
    listings: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "list" and key == MODEL_ARTIFACTS:
            listings.append(key)
            if len(listings) == 2:
                local.storage.put(chunk, content)

    assert check(Store(Watched(local.storage, before)), read=True).ok
    assert len(listings) == 2


def test_what_a_gc_removes_before_it_is_read_and_is_saved_again_is_no_problem(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "half")
    chunk = first_chunk(local, saved["key"])
    done: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "open" and key == chunk and not done:
            local.delete(saved)
            removed(local, chunk)
            done.append("removed")
        elif operation == "list" and key == MODEL_ARTIFACTS and done:
            local.save_model(tmp_path / "half")
            done.append("saved")

    assert check(Store(Watched(local.storage, before)), read=True).ok
    assert done == ["removed", "saved"]


def test_a_chunk_that_disappears_before_it_is_read_is_missing(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "half")
    chunk = first_chunk(local, saved["key"])
    watched = during(local, "open", chunk, lambda: removed(local, chunk))
    (problem,) = check(watched, read=True).problems
    assert (problem.key, problem.kind) == (saved["key"], "missing")


def test_chunks_of_a_manifest_that_is_damaged_behind_them_are_read(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "weights")
    data = local.storage.get(saved["key"])
    changed(local, first_chunk(local, saved["key"]))
    local.storage.put(saved["key"], data[: data.index(b',"files"')])
    report = check(local, read=True)
    assert [problem.kind for problem in report.problems] == ["manifest", "content"]
    assert {problem.key for problem in report.problems} == {saved["key"]}
    assert report.chunks == 6


def test_progress_counts_what_is_read(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(tmp_path / "weights")
    removed(local, first_chunk(local, saved["key"]))
    progress = Progress()
    report = check(local, read=True, progress=progress)
    assert (progress.total, progress.done, report.read) == (5 * CHUNK, 5 * CHUNK, 5 * CHUNK)
    assert (report.chunks, report.stored) == (6, 6 * CHUNK)
