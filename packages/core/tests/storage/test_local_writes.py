"""Local writes where the file system refuses late, loses its power, belongs to others, or has no links and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metaflow_artifacts._storage import local, local_claims, open_storage
from metaflow_artifacts._storage.base import ObjectInfo
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts.errors import StorageError

WRITES = ["put", "put_if_absent", "stage"]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


def write(storage: LocalStorage, operation: str, key: str, data: bytes) -> None:
    if operation == "stage":
        with storage.stage(len(data)) as staged:
            staged.write(memoryview(data))
            staged.commit(key, hashlib.sha256(data).digest())
    else:
        getattr(storage, operation)(key, data)


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EDQUOT, "the disk quota is used up"), (errno.EIO, "an input/output error")]
)
def test_an_error_at_close_puts_nothing_in_place(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, operation: str, number: int, reason: str
) -> None:
    """NFS and quotas may tell only then that what was written is not stored."""
    storage.put("a/other", b"")
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(StorageError, match=rf"cannot write {storage.root}/a/b: .*{reason}"):
            write(storage, operation, "a/b", b"content")
    assert storage.stat("a/b") is None
    assert [info.key for info in storage.list("")] == ["a/other"]
    assert list(storage.leftovers()) == []


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced, renamed and linked from now on, as (call, path)."""
    made: list[tuple[str, str]] = []

    def watch(name: str, path: Callable[..., str]) -> None:
        original = getattr(os, name)

        def call(*arguments: object) -> object:
            made.append((name, path(*arguments)))
            return original(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "fdatasync"):
        watch(name, lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
    for name in ("replace", "link"):
        watch(name, lambda source, target: str(target))
    return made


@pytest.mark.parametrize("operation", WRITES)
def test_with_sync_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    storage = open_storage(tmp_path / "new" / "root", sync=True)
    assert isinstance(storage, LocalStorage)
    made = calls_of(monkeypatch)
    write(storage, operation, "a/b/c", b"content")
    root = storage.root
    # The first attempt to put it in place finds no directory.
    names = list(dict.fromkeys(name for name, _ in made))
    assert names == ["fdatasync", "link" if operation == "put_if_absent" else "replace", "fsync"]
    assert made[0][1].startswith(f"{root}/mf.artifacts/tmp/")
    # The directories are new too; those above the root may be.
    directories = [f"{root}/a/b", f"{root}/a", root, str(tmp_path / "new"), str(tmp_path)]
    assert [path for name, path in made if name == "fsync"][:5] == directories
    made.clear()
    write(storage, operation, "a/b/d", b"content")
    assert [path for name, path in made if name == "fsync"] == [f"{root}/a/b"]


def test_without_sync_nothing_is_synced(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calls_of(monkeypatch)
    for operation in WRITES:
        write(storage, operation, f"a/{operation}", b"content")
    assert {name for name, _ in made} == {"replace", "link"}


def test_a_sync_that_fails_puts_nothing_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "root", sync=True)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    for operation in WRITES:
        with pytest.raises(StorageError, match="an input/output error"):
            write(storage, operation, "a/b", b"content")
    assert storage.stat("a/b") is None


def test_what_was_written_before_the_machine_started_is_not_settled(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("a", b"content")
    info = storage.stat("a")
    assert info is not None
    monkeypatch.setattr(local, "uptime", lambda: 3600.0)
    assert storage.is_settled(info)
    now = time.time()
    assert not storage.is_settled(ObjectInfo("a", 7, now - 3700))
    # The clock may have been wrong until a minute after the start.
    assert not storage.is_settled(ObjectInfo("a", 7, now - 3590))
    assert storage.is_settled(ObjectInfo("a", 7, now - 3500))
    # Whoever wrote it may not have synced it.
    assert not LocalStorage(storage.root, sync=True).is_settled(ObjectInfo("a", 7, now - 3700))
    monkeypatch.setattr(local, "uptime", lambda: 5.0)
    assert not storage.is_settled(info)
    monkeypatch.setattr(local, "uptime", lambda: 61.0)
    os.utime(Path(storage.root, "a"), (now - 7200, now - 7200))
    assert storage.touch("a", now - 100)
    renewed = storage.stat("a")
    assert renewed is not None
    assert storage.is_settled(renewed)


def test_now_is_the_file_systems_time_and_leaves_nothing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("a", b"")
    first = storage.stat("a")
    assert first is not None
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert first.modified <= storage.now() < first.modified + 600
    assert list(storage.leftovers()) == []


def test_now_does_not_create_a_store(tmp_path: Path) -> None:
    before = time.time()
    assert before <= LocalStorage(tmp_path / "missing").now() <= time.time()
    assert list(tmp_path.iterdir()) == []


def test_touch_returns_whether_the_time_is_later(storage: LocalStorage) -> None:
    storage.put("a", b"content")
    now = time.time()
    os.utime(Path(storage.root, "a"), (now - 1000, now - 1000))
    assert storage.touch("a", now - 1000) is True
    assert storage.touch("a", now + 1000) is False
    assert storage.touch("b", 0.0) is False


AS_ANOTHER_USER = """
import os, sys
from metaflow_artifacts._storage.local import LocalStorage
os.setgroups([]); os.setgid(65534); os.setuid(65534)
storage = LocalStorage(sys.argv[1])
print(storage.touch("a/b", 0.0), storage.put("a/b", b"content"), storage.touch("a/b", 0.0))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_stored_is_not_renewed_and_can_be_replaced(shared: Path) -> None:
    storage = LocalStorage(shared / "store")
    storage.put("a/b", b"content")
    for directory in ("a", "mf.artifacts/tmp"):
        os.chmod(Path(storage.root, directory), 0o777)
    command = [sys.executable, "-c", AS_ANOTHER_USER, storage.root]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False None True", "")
    assert Path(storage.root, "a/b").stat().st_uid == 65534


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def bare(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LocalStorage:
    """A storage on a file system with neither hard links nor locks."""

    def no_link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    def no_lock(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(fcntl, "flock", no_lock)
    return storage


def claims(storage: LocalStorage) -> list[Path]:
    return sorted(Path(storage.root, "mf.artifacts/tmp").glob(".claim-*"))


def test_one_writer_wins_without_hard_links_and_locks(bare: LocalStorage) -> None:
    assert bare.put_if_absent("a/b", b"first") is True
    assert bare.put_if_absent("a/b", b"second") is False
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(20):
            barrier = threading.Barrier(8)

            def put(number: int, key: str = f"race/{round_}", barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return bare.put_if_absent(key, b"%d" % number)

            won = list(pool.map(put, range(8)))
            assert won.count(True) == 1
            assert bare.get(f"race/{round_}") == b"%d" % won.index(True)
    assert claims(bare) == []
    assert list(bare.leftovers()) == []


def leave_claim(storage: LocalStorage, key: str, age: float) -> None:
    """What a writer leaves that was killed between its claim and its object, so many seconds ago."""
    storage.put("another", b"")
    claim = local_claims.Claim(f"{storage.root}/mf.artifacts/tmp", key, storage.now)
    assert claim.take(lambda: False)
    then = storage.now() - age
    os.utime(claims(storage)[-1], (then, then))


def test_a_dead_writers_claim_does_not_block_a_key(bare: LocalStorage) -> None:
    leave_claim(bare, "a/b", 100)
    leave_claim(bare, "a/b", 80)
    assert [path.suffix for path in claims(bare)] == [".0", ".1"]
    assert bare.put_if_absent("a/b", b"content") is True
    assert claims(bare) == []
    assert bare.put_if_absent("a/b", b"second") is False


def test_a_writer_waits_for_the_claim_of_a_live_writer(bare: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_claim(bare, "a/b", 0)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            # The other writer puts its object in place, and removes its claim.
            bare.put("a/b", b"first")
            claims(bare)[0].unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    assert bare.put_if_absent("a/b", b"second") is False
    assert bare.get("a/b") == b"first"
    assert len(waits) == 3


def test_a_writer_that_was_stopped_for_long_gives_up_its_claim(
    bare: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then another may have found its claim dead, and have put its object in place."""
    clock = [0.0]
    monkeypatch.setattr(local_claims, "uptime", lambda: clock[0])
    locked = bare._locked
    stops = iter([20.0, 0.0])

    def stopped() -> object:
        clock[0] += next(stops)
        for path in claims(bare):
            os.utime(path, (1, 1))
        return locked()

    monkeypatch.setattr(bare, "_locked", stopped)
    numbers = []
    release = local_claims.Claim.release

    def watch(self: local_claims.Claim, decided: bool) -> None:
        numbers.append((self._number, decided))
        release(self, decided)

    monkeypatch.setattr(local_claims.Claim, "release", watch)
    assert bare.put_if_absent("a/b", b"content") is True
    # The claim that was held too long is left to stay dead; the next number decided.
    assert numbers == [(0, False), (1, True)]
    assert claims(bare) == []
