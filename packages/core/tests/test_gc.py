"""gc: garbage goes after the grace period, what is needed stays, whatever a save does at whichever moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultlib.newest import find_latest
from faultlib.watched import Watched

from metaflow_artifacts import (
    CorruptArtifact,
    InvalidInput,
    ModelArtifact,
    StorageError,
    Store,
    TransientStorageError,
)
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._layout import CHUNKS, GC_MARKS
from metaflow_artifacts._storage import LocalStorage, ObjectInfo, open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer import gc_marks as sweeps
from metaflow_artifacts._transfer.chunks import REFRESH_AFTER, chunk_key, is_stored, put_chunk
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import GRACE, execute_gc, gc, plan_gc

CHUNK = 64 << 10
DAY = 24 * 3600.0
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)


def write(path: Path, chunks: int, seed: int = 0) -> Path:
    path.write_bytes(b"".join(bytes([seed, number]) * (CHUNK // 2) for number in range(chunks)))
    return path


def chunks(store: Store) -> set[str]:
    return {info.key for info in store.storage.list(CHUNKS)}


def collect(store: Store, **options: Any) -> Any:
    return gc(store, grace=0, exclusive=True, dry_run=False, **options)


def age(store: Store, days: float, prefix: str = "") -> None:
    """Make everything below a local root older."""
    for info in [*store.storage.list(prefix), *store.storage.leftovers()]:
        os.utime(Path(store.root, info.key), (info.modified - days * DAY,) * 2)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


def test_chunks_that_no_artifact_names_are_removed_and_others_stay(store: Store, tmp_path: Path) -> None:
    first = store.save_model(write(tmp_path / "a", 6))
    second = store.save_model(write(tmp_path / "b", 3))
    third = store.save_model(write(tmp_path / "c", 2, seed=1))
    store.delete(first)
    store.delete(third)
    before = chunks(store)
    dry = gc(store, grace=0, exclusive=True)
    assert dry.dry_run
    assert (dry.artifacts, dry.chunks, dry.stored) == (1, 8, 8 * CHUNK)
    assert (dry.removed, dry.freed, dry.spared) == (5, 5 * CHUNK, 0)
    assert chunks(store) == before
    done = collect(store)
    assert not done.dry_run
    assert (done.removed, done.freed, done.spared) == (5, 5 * CHUNK, 0)
    assert chunks(store) == {chunk_key(chunk.sha256) for chunk in store.manifest(second).chunks}
    assert check(store, read=True).ok
    assert collect(store).removed == 0


def test_everything_is_kept_for_the_grace_period(local: Store, tmp_path: Path) -> None:
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    for days, removed in ((0, 0), (6.9, 0), (0.2, 4)):
        age(local, days)
        assert gc(local, dry_run=False).removed == removed
    assert chunks(local) == set()


def test_a_grace_period_that_is_too_short_is_refused(local: Store) -> None:
    assert GRACE == 7 * DAY
    assert REFRESH_AFTER == DAY
    for grace in (2 * DAY - 1, 0, -1):
        with pytest.raises(InvalidInput, match="at least 172800 s are needed while anything saves"):
            gc(local, grace=grace)
    gc(local, grace=2 * DAY)
    gc(local, grace=0, exclusive=True)
    with pytest.raises(InvalidInput):
        gc(local, grace=-1, exclusive=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: data.index(b',"chunk_size"') - 5],
        lambda data: b"x",
        lambda data: data.replace(b'"version":1,', b'"version":2,'),
    ],
    ids=["cut", "nothing", "later"],
)
def test_nothing_is_removed_if_a_manifest_cannot_be_read(
    store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    saved = store.save_model(write(tmp_path / "a", 3))
    store.delete(store.save_model(write(tmp_path / "b", 3, seed=1)))
    store.storage.put(saved["key"], damage(store.storage.get(saved["key"])))
    before = chunks(store)
    with pytest.raises(CorruptArtifact, match="nothing was removed: .*" + saved["key"]):
        collect(store)
    assert chunks(store) == before
    store.delete(saved)
    assert collect(store).removed == 6


def test_objects_of_other_programs_stay(local: Store) -> None:
    keys = {
        "F/1/start/1/0.data",
        "mf.artifacts/other",
        f"{CHUNKS}aa/no-digest",
        f"{GC_MARKS}README",
        "mf.checkpoints/checkpoints/not_latest/F/s/README",
    }
    for key in keys:
        local.storage.put(key, b"others")
    age(local, 30)
    collect(local)
    assert {info.key for info in local.storage.list("")} == keys


def test_temporary_objects_of_killed_writers_are_removed(local: Store, tmp_path: Path) -> None:
    local.save_model(write(tmp_path / "a", 2))
    temporary = Path(local.root, "mf.artifacts", "tmp", "123-abc")
    temporary.write_bytes(b"half of a chunk")
    assert gc(local, dry_run=False).temporary == 0
    os.utime(temporary, (time.time() - 8 * DAY,) * 2)
    assert gc(local).temporary == 1
    assert temporary.exists()
    stats = gc(local, dry_run=False)
    assert (stats.temporary, stats.freed) == (1, 15)
    assert not temporary.exists()


def test_a_tombstone_without_its_checkpoint_is_removed(local: Store, tmp_path: Path) -> None:
    series = CheckpointWriter(local, PLACE, "0" * 8, 0)
    kept = series.save(write(tmp_path / "a", 2), latest=False, label="l")
    lost = [series.save(write(tmp_path / "a", 2), latest=False, label="l") for _ in range(2)]
    local.storage.delete([one["key"] for one in lost])
    age(local, 8)
    assert gc(local, dry_run=False).tombstones == 1
    # That of the highest number stays: the number is never given again.
    assert {info.key for info in local.storage.list("mf.checkpoints/checkpoints/not_latest/")} == {
        one["key"].replace("artifacts", "not_latest") for one in (kept, lost[1])
    }
    assert CheckpointWriter(local, PLACE, "0" * 8, 0).save(tmp_path / "a", label="l")["version_id"] == 3
    latest = find_latest(local, PLACE)
    assert latest is not None
    assert latest["version_id"] == 3


def test_a_plan_may_be_executed_much_later(local: Store, tmp_path: Path) -> None:
    """What was saved since stays: also what names a chunk that the plan would remove."""
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    age(local, 30)
    plan = plan_gc(local)
    assert len(plan.garbage) == 4
    assert plan.size == 4 * CHUNK
    saved = local.save_model(write(tmp_path / "b", 2))
    stats = execute_gc(local, plan)
    assert (stats.removed, stats.spared, stats.freed) == (2, 2, 2 * CHUNK)
    local.load(saved, tmp_path / "out")
    other = Store(open_storage(tmp_path / "other"))
    with pytest.raises(InvalidInput, match="the plan was made for"):
        execute_gc(other, plan)


def test_a_save_renews_what_is_older_than_a_day(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the machine had been running for all that time.
    monkeypatch.setattr(local.storage, "is_settled", lambda info: True)
    local.delete(local.save_model(write(tmp_path / "a", 3)))
    for days, renewed in ((0.9, False), (30, True)):
        age(local, days)
        local.delete(local.save_model(tmp_path / "a"))
        for info in local.storage.list(CHUNKS):
            assert (time.time() - info.modified < 60) is renewed


def during_gc(store: Store, moment: str, action: Callable[[], None]) -> None:
    """Run a gc, and `action` once right before its first operation `moment` on a chunk."""
    pending = [action]

    def before(operation: str, key: str) -> None:
        if operation == moment and key.startswith(CHUNKS) and pending:
            pending.pop()()

    watched = Store(Watched(store.storage, before), refresh_after=store.refresh_after)
    execute_gc(watched, plan_gc(watched))
    assert not pending


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()
    return thread, results


@pytest.mark.parametrize("moment", ["stat", "delete"])
def test_a_save_at_any_moment_of_a_gc(local: Store, tmp_path: Path, moment: str) -> None:
    """Right before gc looks at a chunk, and between its look and the removal: the save needs those very chunks."""
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    age(local, 30)
    saves: list[tuple[threading.Thread, list[ModelArtifact]]] = []

    def save() -> None:
        saves.append(in_background(lambda: local.save_model(tmp_path / "a")))
        # Until it has renewed the chunks: then it is done, or it waits for this gc.
        while any(time.time() - info.modified > DAY for info in local.storage.list(CHUNKS)):
            time.sleep(0.01)

    during_gc(local, moment, save)
    ((thread, results),) = saves
    thread.join()
    local.load(results[0], tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "a").read_bytes()
    assert check(local, read=True).ok


def test_a_chunk_that_is_removed_during_a_save_is_stored_again(local: Store, tmp_path: Path) -> None:
    """All of a gc happens between a save's look at its chunks and its commit."""
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    age(local, 30)
    plan = plan_gc(local)
    pending = [plan]

    def before(operation: str, key: str) -> None:
        if operation == "list" and key == GC_MARKS and pending:
            # A gc whose clock is far ahead: it removes even what was renewed just now.
            ahead = pending.pop()
            execute_gc(local, type(ahead)(**{**vars(ahead), "limit": time.time() + DAY}))

    saved = Store(Watched(local.storage, before), chunk_size=CHUNK).save_model(tmp_path / "a")
    local.load(saved, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_save_fails_if_its_chunks_are_removed_every_time(local: Store, tmp_path: Path) -> None:
    def before(operation: str, key: str) -> None:
        if operation == "list" and key == GC_MARKS:
            local.storage.delete(chunks(local))
            local.storage.put(f"{GC_MARKS}x.0.done", b"")

    store = Store(Watched(local.storage, before), chunk_size=CHUNK)
    with pytest.raises(TransientStorageError, match="were deleted while it ran, 10 times in a row"):
        store.save_model(write(tmp_path / "a", 4))
    assert list(local.list()) == []


def test_a_save_that_takes_long_renews_its_chunks(local: Store, tmp_path: Path) -> None:
    """What was new when the save looked at it is old at the commit."""
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    store = Store(Watched(local.storage, lambda operation, key: None), chunk_size=CHUNK, refresh_after=0.3)

    def before(operation: str, key: str) -> None:
        if operation == "list" and key == GC_MARKS:
            time.sleep(0.4)
            store.storage.before = lambda operation, key: None  # type: ignore[attr-defined]

    store.storage.before = before  # type: ignore[attr-defined]
    began = time.time()
    store.save_model(tmp_path / "a")
    for info in local.storage.list(CHUNKS):
        assert info.modified > began + 0.3


def test_a_commit_of_stored_chunks_checks_them_again(local: Store, tmp_path: Path) -> None:
    chunk, new = put_chunk(local.storage, b"x" * CHUNK)
    assert new
    keys = CheckpointWriter(local, PLACE, "0" * 8, 0)
    files = [FileEntry("f", chunk.size, 0o644, 0)]
    since = time.time()
    first = local.commit_checkpoint(files, [chunk], keys.keys("n"), keys.details("l"), since=since)
    assert local.read_file(first, "f") == b"x" * CHUNK
    local.storage.delete([chunk_key(chunk.sha256)])
    local.storage.put(f"{GC_MARKS}x.0.done", b"")
    for known in (since, None):
        with pytest.raises(TransientStorageError, match="a gc removed content while it was stored"):
            local.commit_checkpoint(files, [chunk], keys.keys("n"), keys.details("l"), since=known)


def test_a_killed_gc_holds_saves_up_once(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "LEASE_S", 0.5)
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    age(local, 30)

    def before(operation: str, key: str) -> None:
        if operation == "delete" or key.endswith(".done"):
            raise KeyboardInterrupt

    watched = Store(Watched(local.storage, before))
    with pytest.raises(KeyboardInterrupt):
        execute_gc(watched, plan_gc(watched))
    mark, run = sorted(info.key for info in local.storage.list(GC_MARKS))
    assert mark.endswith(".0.open")
    assert run.endswith(".run")
    began = time.monotonic()
    local.save_model(tmp_path / "a")
    assert time.monotonic() - began >= 0.5
    assert {info.key for info in local.storage.list(GC_MARKS)} == {mark.replace(".open", ".done"), run}
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", lambda seconds: pytest.fail("a second save waits"))
        local.save_model(tmp_path / "a")
    age(local, 30, GC_MARKS)
    gc(local, dry_run=False)
    assert list(local.storage.list(GC_MARKS)) == []


def test_a_slow_gc_checks_again_before_it_deletes(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk is renewed after gc has looked at it, and its batch takes too long to be waited for."""
    clock = [0.0]
    monkeypatch.setattr(sweeps, "_elapsed", lambda: clock[0])
    local.delete(local.save_model(write(tmp_path / "a", 2)))
    age(local, 30)
    renewed, *_ = local.storage.list(CHUNKS)

    class Slow(Watched):
        def stat(self, key: str) -> ObjectInfo | None:
            found = super().stat(key)
            if key == renewed.key and not clock[0]:
                clock[0] = sweeps.LEASE_S / 2
                is_stored(local.storage, Chunk(key[len(CHUNKS) :].replace("/", ""), renewed.size))
            return found

    watched = Store(Slow(local.storage, lambda operation, key: None))
    stats = execute_gc(watched, plan_gc(watched))
    assert (stats.removed, stats.spared) == (1, 1)
    assert chunks(local) == {renewed.key}


def test_a_storage_that_is_too_slow_for_a_gc(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "LEASE_S", 0.0)
    local.delete(local.save_model(write(tmp_path / "a", 2)))
    age(local, 30)
    before = chunks(local)
    with pytest.raises(TransientStorageError, match="answers too slowly"):
        gc(local, dry_run=False)
    assert chunks(local) == before


def test_two_gcs_at_once(store: Store, tmp_path: Path) -> None:
    kept = store.save_model(write(tmp_path / "a", 3))
    store.delete(store.save_model(write(tmp_path / "b", 20, seed=1)))
    plans = [plan_gc(store, grace=0, exclusive=True) for _ in range(2)]
    threads = [in_background(lambda plan=plan: execute_gc(store, plan)) for plan in plans]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join()
    assert all(results for _, results in threads)
    assert chunks(store) == {chunk_key(chunk.sha256) for chunk in store.manifest(kept).chunks}


def test_an_artifact_that_is_deleted_while_gc_reads(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(write(tmp_path / "a", 2))
    local.delete(local.save_model(write(tmp_path / "b", 2, seed=1)))
    age(local, 30)

    def before(operation: str, key: str) -> None:
        if operation == "get":
            local.storage.delete([saved["key"]])

    assert len(plan_gc(Store(Watched(local.storage, before))).garbage) == 4


def test_many_chunks_are_removed_in_batches(local: Store) -> None:
    for number in range(600):
        put_chunk(local.storage, number.to_bytes(4, "big"))
    age(local, 30)
    marks: set[str] = set()

    def before(operation: str, key: str) -> None:
        if operation == "put":
            marks.add(key)

    store = Store(Watched(local.storage, before))
    assert gc(store, dry_run=False).removed == 600
    assert len(marks) == 7
    left = sorted(info.key.rpartition(".")[2] for info in local.storage.list(GC_MARKS))
    assert left == ["done", "run"]


def test_a_chunk_is_checked_again_if_a_listing_has_an_older_time(local: Store) -> None:
    """The plan goes by a listing, the removal by a look."""

    class Behind(LocalStorage):
        def stat(self, key: str) -> ObjectInfo | None:
            info = super().stat(key)
            return None if info is None else ObjectInfo(key, info.size, time.time())

    put_chunk(local.storage, b"x")
    age(local, 30)
    store = Store(Behind(local.root))
    stats = execute_gc(store, plan_gc(store))
    assert (stats.removed, stats.spared) == (0, 1)


def test_the_grace_period_ends_by_the_clock_of_the_storage(local: Store) -> None:
    """Another machine's clock has no part in it, however far ahead it is."""

    class Clock(LocalStorage):
        ahead = 0.0

        def now(self) -> float:
            return time.time() + self.ahead

    storage = Clock(local.root)
    put_chunk(storage, b"x")
    for days, removed in ((-30.0, 0), (6.9, 0), (7.1, 1)):
        storage.ahead = days * DAY
        assert gc(Store(storage)).removed == removed


def test_what_the_grace_period_keeps_is_reported(local: Store, tmp_path: Path) -> None:
    kept = local.save_model(write(tmp_path / "a", 3))
    local.delete(local.save_model(write(tmp_path / "b", 2, seed=1)))
    age(local, 1)
    local.delete(local.save_model(write(tmp_path / "c", 4, seed=2)))
    times = {info.key: info.modified for info in local.storage.list(CHUNKS)}
    needed = {chunk_key(chunk.sha256) for chunk in local.manifest(kept).chunks}
    times = {key: modified for key, modified in times.items() if key not in needed}
    for dry_run in (True, False):
        stats = gc(local, dry_run=dry_run)
        assert (stats.artifacts, stats.removed) == (1, 0)
        waiting = stats.waiting
        assert (waiting.chunks, waiting.size) == (6, 6 * CHUNK)
        assert waiting.first == pytest.approx(min(times.values()) + GRACE)
        assert waiting.last == pytest.approx(max(times.values()) + GRACE)
    age(local, 6.5)
    stats = gc(local)
    assert (stats.removed, stats.waiting.chunks) == (2, 4)
    age(local, 1)
    stats = gc(local)
    assert (stats.removed, stats.waiting.chunks, stats.waiting.first, stats.waiting.last) == (6, 0, None, None)


def test_artifacts_are_counted_where_nothing_is_old_enough(local: Store, tmp_path: Path) -> None:
    for seed in range(3):
        local.save_model(write(tmp_path / "a", 2, seed))
    assert gc(local).artifacts == 3


@pytest.mark.parametrize(("answer", "told"), [(True, True), (False, False), (None, None)])
def test_a_storage_that_keeps_versions_is_reported(local: Store, answer: bool | None, told: bool | None) -> None:
    """None: it may not be asked. That keeps nobody from a gc."""

    class Versioned(LocalStorage):
        def keeps_versions(self) -> bool:
            if answer is None:
                raise StorageError("access denied: s3:GetBucketVersioning")
            return answer

    storage = Versioned(local.root)
    put_chunk(storage, b"x")
    for dry_run in (True, False):
        stats = gc(Store(storage), grace=0, exclusive=True, dry_run=dry_run)
        assert (stats.removed, stats.keeps_versions) == (1, told)


def test_gc_reads_no_rows_of_files(local: Store, tmp_path: Path) -> None:
    """Of a manifest that is damaged behind its chunks, every chunk is known, and kept."""
    saved = local.save_model(write(tmp_path / "a", 3))
    data = local.storage.get(saved["key"])
    local.storage.put(saved["key"], data[: data.index(b',"files"')])
    age(local, 8)
    stats = gc(local, dry_run=False)
    assert (stats.artifacts, stats.removed) == (1, 0)
    assert len(chunks(local)) == 3
