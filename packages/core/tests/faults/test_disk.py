"""A local store on a disk that is full, read-only, or gone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, failing, loading, told
from faultlib.watched import Watched

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.faults import small_disk

CHUNK = 64 << 10
SECTION = "a store on a local disk"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with small_disk(tmp_path / "disk", 1 << 20) as place:
        yield place


@pytest.fixture
def store(disk: Path) -> Store:
    return Store(open_storage(disk / "store"), chunk_size=CHUNK)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ten chunks."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(10 * CHUNK))
    (root / "small.txt").write_text("small")
    return root


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_save_to_a_full_disk_stores_nothing(
    store: Store, disk: Path, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    (disk / "others").write_bytes(bytes(9 * CHUNK))
    outcomes.record(SECTION, "the disk is full: save", failing(lambda: store.save_model(tree), store))
    assert list(store.list()) == []
    assert list(store.storage.leftovers()) == []
    assert check(store, read=True).ok
    # What came into the store before is not sent again, or goes.
    (disk / "others").unlink()
    key = store.save_model(tree)["key"]
    assert loading(store, key, tmp_path / "out", content(tree)) == RIGHT
    store.delete(key)
    gc(store, grace=0, exclusive=True, dry_run=False)
    assert [path for path in files(disk) if "chunks" in path.parts] == []


@pytest.mark.parametrize("size", [2000, 60000])
def test_a_disk_that_is_full_at_the_commit_has_no_artifact(
    store: Store, disk: Path, tmp_path: Path, outcomes: Outcomes, size: int
) -> None:
    (tmp_path / "small").write_bytes(os.urandom(size))
    first = store.save_model(tmp_path / "small")["key"]
    fill = disk / "others"
    try:
        with fill.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass
    outcome = failing(lambda: store.save_model(tmp_path / "small"), store)
    outcomes.record(SECTION, "the disk is full: save of a small artifact", outcome)
    assert list(store.list()) == [first]
    assert list(store.storage.leftovers()) == []
    assert loading(store, first, tmp_path / "out", {b"small": (tmp_path / "small").read_bytes()}) == RIGHT
    # Deleting needs no space.
    store.delete(first)
    store.save_model(tmp_path / "small")


def test_a_load_to_a_full_disk_leaves_nothing(local: Store, disk: Path, tree: Path, outcomes: Outcomes) -> None:
    key = local.save_model(tree)["key"]
    (disk / "others").write_bytes(bytes(9 * CHUNK))
    target = disk / "target"
    outcomes.record(SECTION, "the target's disk is full: load", loading(local, key, target, content(tree)))
    target.mkdir()
    (target / "weights.bin").write_text("mine")
    outcome = failing(lambda: local.load(key, target), local)
    outcomes.record(SECTION, "the target's disk is full: load", outcome)
    assert content(target) == {b"weights.bin": b"mine"}
    (disk / "others").unlink()
    local.load(key, target)
    assert content(target) == content(tree)


def test_a_read_only_store_can_be_read(
    store: Store, disk: Path, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    key = store.save_model(tree)["key"]
    (tree / "new.bin").write_bytes(os.urandom(2 * CHUNK))
    garbage = store.save_model(tree)["key"]
    store.delete(garbage)
    before = content(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    expected = {path: value for path, value in content(tree).items() if path != b"new.bin"}
    outcomes.record(SECTION, "read-only: load", loading(store, key, tmp_path / "out", expected))
    for what, call in (
        ("save", lambda: store.save_model(tree)),
        ("save of a small artifact", lambda: store.save_model(tree / "small.txt")),
        ("delete", lambda: store.delete(key)),
        ("gc", lambda: gc(store, grace=0, exclusive=True, dry_run=False)),
    ):
        outcomes.record(SECTION, f"read-only: {what}", failing(call, store))
    assert gc(store).removed == 0
    assert check(store, read=True).ok
    assert content(disk) == before


def test_a_read_only_target_is_an_error(local: Store, disk: Path, tree: Path, outcomes: Outcomes) -> None:
    key = local.save_model(tree)["key"]
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for target in (disk, disk / "below"):
        outcome = failing(lambda target=target: local.load(key, target), local, str(target))  # type: ignore[misc]
        outcomes.record(SECTION, "the target is read-only: load", outcome)


@pytest.mark.parametrize("moment", range(0, 60, 4))
def test_a_save_fails_where_the_store_vanishes(
    local: Store, tree: Path, tmp_path: Path, outcomes: Outcomes, moment: int
) -> None:
    """It is moved away before the operation of this number; what is written afterwards makes a new one."""
    kept = local.save_model(tree / "small.txt")["key"]
    root, elsewhere = Path(local.root), tmp_path / "elsewhere"
    left = [moment]

    def before(operation: str, key: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            os.rename(root, elsewhere)

    try:
        Store(Watched(local.storage, before), chunk_size=CHUNK).save_model(tree)
    except ArtifactError as error:
        when = "while something is written" if "cannot write" in str(error) else "between two writes"
        outcomes.record(SECTION, f"the store is moved away {when}: save", told(error, local))
        assert list(local.list()) == []
    else:
        # The save was done before.
        assert not elsewhere.exists()
        return
    shutil.rmtree(root, ignore_errors=True)
    os.rename(elsewhere, root)
    assert check(local, read=True).ok
    assert kept in list(local.list())
    again = local.save_model(tree)["key"]
    assert loading(local, again, tmp_path / "out", content(tree)) == RIGHT


def test_a_save_fails_where_the_store_vanishes_while_a_chunk_is_written(
    local: Store, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    kept = local.save_model(tree / "small.txt")["key"]
    root, elsewhere = Path(local.root), tmp_path / "elsewhere"

    def before(operation: str, key: str) -> None:
        if operation == "commit" and not elsewhere.exists():
            os.rename(root, elsewhere)

    # One thread: no other one notices it between two writes.
    storage = Watched(local.storage, before)
    storage.threads = storage.most_threads = 1
    outcome = failing(lambda: Store(storage, chunk_size=CHUNK).save_model(tree), local)
    outcomes.record(SECTION, "the store is moved away while something is written: save", outcome)
    shutil.rmtree(root, ignore_errors=True)
    os.rename(elsewhere, root)
    assert list(local.list()) == [kept]


@pytest.mark.parametrize("moment", range(0, 14, 2))
def test_a_load_is_right_or_fails_where_the_store_vanishes(
    local: Store, tree: Path, tmp_path: Path, outcomes: Outcomes, moment: int
) -> None:
    key = local.save_model(tree)["key"]
    root, elsewhere = Path(local.root), tmp_path / "elsewhere"
    left = [moment]

    def before(operation: str, key: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            os.rename(root, elsewhere)

    outcome = loading(Store(Watched(local.storage, before)), key, tmp_path / "out", content(tree))
    if outcome != RIGHT:
        when = "before its manifest is read" if moment == 0 else "in the middle"
        outcomes.record(SECTION, f"the store is moved away {when}: load", outcome)
    if elsewhere.exists():
        os.rename(elsewhere, root)
    assert loading(local, key, tmp_path / "again", content(tree)) == RIGHT


def test_a_disk_that_is_unmounted_during_a_save_leaves_no_store(
    store: Store, disk: Path, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    """It is unmounted during a save. The directory below it is not a store, and must not become one."""
    store.save_model(tree / "small.txt")
    commits = []

    def before(operation: str, key: str) -> None:
        if operation == "commit":
            commits.append(key)
            if len(commits) == 4:
                subprocess.run(["umount", "-l", disk], check=True)

    watched = Store(Watched(store.storage, before), chunk_size=CHUNK)
    try:
        outcomes.record(
            SECTION, "the store is unmounted in the middle: save", failing(lambda: watched.save_model(tree), store)
        )
        assert list(store.list()) == []
    finally:
        # What the fixture unmounts.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)


def test_files_in_place_of_the_stores_directories_are_named(local: Store, tree: Path, outcomes: Outcomes) -> None:
    root = Path(local.root)
    root.write_text("a file where the root should be")
    outcomes.record(SECTION, "the root is a file: save", failing(lambda: local.save_model(tree), local))
    key = "mf.models/models/artifacts/m_" + "0" * 32
    outcomes.record(SECTION, "the root is a file: load", failing(lambda: local.load(key, tree), local, key))
    root.unlink()
    (root / "mf.artifacts").mkdir(parents=True)
    (root / "mf.artifacts" / "chunks").write_text("a file where a directory should be")
    outcomes.record(
        SECTION,
        "a file is where the directory of the chunks should be: save",
        failing(lambda: local.save_model(tree), local),
    )
    assert list(local.list()) == []
