"""gc's marks: the order in which they come and go, and savers that meet them without the right to delete."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import StorageError, Store
from metaflow_artifacts._layout import CHUNKS, GC_MARKS
from metaflow_artifacts._storage import ObjectInfo, open_storage
from metaflow_artifacts._transfer import gc_marks as sweeps
from metaflow_artifacts._transfer.chunks import put_chunk
from metaflow_artifacts._transfer.gc_marks import GcMarks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.garbage import remove_garbage
from metaflow_artifacts._upkeep.gc import execute_gc, gc, plan_gc

CHUNK = 64 << 10
DAY = 24 * 3600.0


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """With three chunks that are old enough to go."""
    store = Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)
    (tmp_path / "a").write_bytes(os.urandom(3 * CHUNK))
    store.delete(store.save_model(tmp_path / "a"))
    for info in store.storage.list(CHUNKS):
        os.utime(Path(store.root, info.key), (info.modified - 30 * DAY,) * 2)
    return store


def marks(store: Store) -> list[str]:
    return sorted(info.key for info in store.storage.list(GC_MARKS))


def kinds(store: Store) -> list[str]:
    return [mark.rpartition(".")[2] for mark in marks(store)]


def test_an_open_or_a_done_mark_exists_at_every_moment_of_a_batch(local: Store) -> None:
    """A save that lists the marks after gc has looked at a chunk must see that it did."""
    for number in range(600):
        put_chunk(local.storage, number.to_bytes(4, "big"))
    for info in local.storage.list(CHUNKS):
        os.utime(Path(local.root, info.key), (info.modified - 30 * DAY,) * 2)
    seen: list[tuple[str, str]] = []

    def before(operation: str, key: str) -> None:
        if key.startswith(CHUNKS) and operation in ("stat", "delete"):
            assert any(mark.endswith(".open") for mark in marks(local))
        if key.startswith(GC_MARKS) and operation in ("put", "delete"):
            seen.append((operation, key.rpartition(".")[2]))
            if (operation, key[-5:]) == ("delete", ".open"):
                assert key.removesuffix(".open") + ".done" in marks(local)

    store = Store(Watched(local.storage, before))
    execute_gc(store, plan_gc(store))
    batch = [("put", "open"), ("put", "run"), ("put", "done"), ("delete", "open"), ("delete", "done")]
    assert seen == [("put", "run"), *3 * batch]


class Torn(Watched):
    """A listing that asks for times after it has read the names, as that of a directory does: `between` is called
    after the names of marks were read, and what is gone by then is left out."""

    def __init__(self, store: Store, between: Callable[[], None]) -> None:
        super().__init__(store.storage, lambda operation, key: None)
        self.between = between

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        names = [info.key for info in self.inner.list(prefix)]
        if prefix == GC_MARKS:
            self.between()
        yield from filter(None, map(self.inner.stat, names))


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_that_ends_while_a_save_lists_the_marks_is_seen(local: Store, tmp_path: Path, batch: int) -> None:
    """gc has looked at the chunks before the save renews them, and removes them before the save commits."""
    marks = GcMarks(local.storage)
    for _ in range(batch):
        with marks.batch():
            pass
    chunks = [info.key for info in local.storage.list(CHUNKS)]
    running = marks.batch()
    running.__enter__()
    pending = [running]

    def between() -> None:
        if pending:
            local.storage.delete(chunks)
            pending.pop().__exit__(None, None, None)

    saved = Store(Torn(local, between), chunk_size=CHUNK).save_model(tmp_path / "a")
    assert not pending
    local.load(saved, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "a").read_bytes()


class CannotDelete(Watched):
    """A storage that refuses every delete, or with `only` those of marks."""

    def __init__(self, store: Store, only: str = "") -> None:
        super().__init__(store.storage, lambda operation, key: None)
        self.only = only

    def delete(self, keys: Any) -> None:
        keys = [*keys]
        if any(key.startswith(self.only) for key in keys):
            raise StorageError("access denied: no permission to delete")
        super().delete(keys)


def never(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s")


def test_saves_do_not_wait_for_marks_that_gc_could_not_remove(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gc(Store(CannotDelete(local, GC_MARKS)), dry_run=False).removed == 3
    assert kinds(local) == ["done", "open", "run"]
    monkeypatch.setattr(time, "sleep", never)
    for number in range(2):
        saved = Store(CannotDelete(local), chunk_size=CHUNK).save_model(tmp_path / "a")
        local.load(saved, tmp_path / str(number))
    assert check(local, read=True).ok


def test_a_saver_without_the_right_to_delete_saves_beside_the_mark_of_a_killed_gc(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "LEASE_S", 0.2)

    def before(operation: str, key: str) -> None:
        if operation == "delete" or key.endswith(".done"):
            raise KeyboardInterrupt

    watched = Store(Watched(local.storage, before))
    with pytest.raises(KeyboardInterrupt):
        execute_gc(watched, plan_gc(watched))
    assert kinds(local) == ["open", "run"]
    store = Store(CannotDelete(local), chunk_size=CHUNK)
    store.save_model(tmp_path / "a")
    assert kinds(local) == ["done", "open", "run"]
    # From now on nobody waits for it.
    monkeypatch.setattr(time, "sleep", never)
    store.save_model(tmp_path / "a")
    for mark in marks(local):
        os.utime(Path(local.root, mark), (time.time() - 30 * DAY,) * 2)
    gc(local, dry_run=False)
    assert marks(local) == []


def test_an_error_that_is_not_of_the_storage_is_raised(local: Store) -> None:
    def before(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith(GC_MARKS):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), GcMarks(Watched(local.storage, before)).batch():
        pass


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has another clock for it")
def test_a_batch_ends_while_the_machine_sleeps(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines are awake then, and take its mark for that of a dead gc."""
    slept = [0.0]
    real = time.clock_gettime

    def clock(which: int) -> float:
        return real(which) + (slept[0] if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", clock)

    class Sleeping(Watched):
        def stat(self, key: str) -> ObjectInfo | None:
            if not slept[0]:
                slept[0] = 3600.0
            return super().stat(key)

    open_marks: list[set[str]] = []

    def before(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith(CHUNKS):
            open_marks.append({mark for mark in marks(local) if mark.endswith(".open")})

    stats = gc(Store(Sleeping(local.storage, before)), dry_run=False)
    assert stats.removed == 3
    # What was looked at before the sleep is looked at again, under a later mark.
    assert all(mark.endswith(".open") and ".0." not in mark for marks in open_marks for mark in marks)
    assert open_marks


@pytest.mark.parametrize("ahead", ["here", "where it was planned"])
def test_nothing_is_removed_by_a_clock_that_is_ahead(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: str
) -> None:
    """What a save has just stored, and is about to name, would seem old."""
    chunks = {info.key for info in local.storage.list(CHUNKS)}
    if ahead == "here":
        plan = plan_gc(local)
        monkeypatch.setattr(local.storage, "now", lambda: time.time() + 3 * DAY)
        with pytest.raises(StorageError, match=r"the clock of this machine.* is 3 d ahead of the storage's; set it"):
            execute_gc(local, plan)
    else:
        with pytest.raises(StorageError, match="is 3 d ahead of the storage's"):
            remove_garbage(local, plan_gc(local).garbage, 1e12, Progress(), time.time() + 3 * DAY)
    assert {info.key for info in local.storage.list(CHUNKS)} == chunks
    assert marks(local) == []
