"""Local storage: modes of files, kills, full and read-only file systems, directories that other processes remove."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError
from metaflow_artifacts.testing.faults import small_disk

MIB = 1 << 20


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount disks and become another user")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", MIB) as place:
        yield place


def stage(storage: LocalStorage, key: str, data: bytes) -> None:
    with storage.stage(len(data)) as staged:
        staged.write(memoryview(data))
        staged.commit(key, hashlib.sha256(data).digest())


def operations(storage: LocalStorage, key: str, data: bytes = b"x") -> dict[str, Callable[[], object]]:
    return {
        "put": lambda: storage.put(key, data),
        "put_if_absent": lambda: storage.put_if_absent(key, data),
        "stage": lambda: stage(storage, key, data),
    }


WRITES = ["put", "put_if_absent", "stage"]


@pytest.mark.parametrize("write", WRITES)
def test_files_get_the_mode_of_any_new_file(storage: LocalStorage, write: str) -> None:
    for umask, mode in ((0o022, 0o644), (0o007, 0o660)):
        before = os.umask(umask)
        try:
            operations(storage, f"d{umask}/{write}")[write]()
        finally:
            os.umask(before)
        path = Path(storage.root, f"d{umask}/{write}")
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_IMODE(path.parent.stat().st_mode) == mode | (mode & 0o444) >> 2


@needs_root
@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_is_an_error_and_leaves_nothing(disk: Path, write: str) -> None:
    storage = LocalStorage(disk / "root")
    storage.put("a/b", b"before")
    filler = disk / "filler"
    filler.write_bytes(b"x" * (MIB // 2))
    with pytest.raises(StorageError, match=r"cannot write /.*: the disk is full; free space there") as caught:
        operations(storage, "a/big", b"x" * MIB)[write]()
    assert isinstance(caught.value.__cause__, OSError)
    assert {str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()} == {"filler", "root/a/b"}
    assert storage.get("a/b") == b"before"
    filler.unlink()
    operations(storage, "a/big", b"x" * (MIB // 2))[write]()
    assert storage.get("a/big") == b"x" * (MIB // 2)


@needs_root
def test_a_read_only_file_system_is_an_error(disk: Path) -> None:
    storage = LocalStorage(disk / "root")
    storage.put("a/b", b"before")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    calls = operations(storage, "a/c")
    calls.update(delete=lambda: storage.delete(["a/b"]), touch=lambda: storage.touch("a/b"))
    for call in calls.values():
        with pytest.raises(StorageError, match="the file system is read-only"):
            call()
    assert storage.get("a/b") == b"before"
    assert storage.put_if_absent("a/b", b"") is False
    assert [info.key for info in storage.list("")] == ["a/b"]


AS_ANOTHER_USER = """
import os, sys
from metaflow_artifacts.errors import ArtifactError
from metaflow_artifacts._storage.local import LocalStorage
# Only now: that user may not be able to read where Python is installed.
os.setgroups([]); os.setgid(65534); os.setuid(65534)
storage = LocalStorage(sys.argv[1])
def stage():
    with storage.stage(1) as staged:
        staged.commit("a/c", b"")
calls = dict(put=lambda: storage.put("a/c", b""), put_if_absent=lambda: storage.put_if_absent("a/c", b""), stage=stage,
             touch=lambda: storage.touch("a/b"), delete=lambda: storage.delete(["a/b"]), get=lambda: storage.get("a/b"),
             list=lambda: [info.key for info in storage.list("")])
for name, call in calls.items():
    try:
        print(name, call())
    except ArtifactError as error:
        print(name, type(error).__name__, error)
"""


def as_another_user(root: Path) -> dict[str, str]:
    """What each operation says to a user who owns nothing below the root."""
    command = [sys.executable, "-c", AS_ANOTHER_USER, str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@needs_root
def test_another_user_may_read_and_not_write(shared: Path) -> None:
    place = shared / "store"
    storage = LocalStorage(place)
    storage.put("a/b", b"content")
    said = as_another_user(place)
    assert said.pop("get") == "b'content'"
    assert said.pop("list") == "['a/b']"
    # The caller then writes the object again, and gets an error that says why it may not.
    assert said.pop("touch") == "False"
    for text in said.values():
        assert text.startswith("StorageError cannot ")
        assert "permission denied; check owner and mode" in text
    os.chmod(place / "a", 0o700)
    said = as_another_user(place)
    assert said["get"].startswith(f"StorageError cannot read {place}/a/b: permission denied")
    assert said["list"].startswith(f"StorageError cannot list {place}/a: permission denied")


KILLED = """
import os, signal, sys
from metaflow_artifacts._storage.local import LocalStorage
storage = LocalStorage(sys.argv[1])
with storage.stage(4) as staged:
    staged.write(memoryview(b"half"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_a_temporary_object(storage: LocalStorage) -> None:
    subprocess.run([sys.executable, "-c", KILLED, storage.root])
    assert list(storage.list("")) == []
    (leftover,) = storage.leftovers()
    assert leftover.size == 4
    assert leftover.key.startswith("mf.artifacts/tmp/")
    storage.delete([leftover.key])
    assert list(storage.leftovers()) == []


@pytest.mark.parametrize("write", WRITES)
def test_directories_that_other_processes_remove_are_made_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Another process removes empty directories; writers make them again."""
    makedirs = os.makedirs
    made = []

    def make_and_lose(path: str, exist_ok: bool = False) -> None:
        makedirs(path, exist_ok=exist_ok)
        made.append(path)
        if made.count(path) < 4:
            os.removedirs(path)

    monkeypatch.setattr(os, "makedirs", make_and_lose)
    operations(storage, "a/b/c")[write]()
    assert storage.get("a/b/c") == b"x"
    assert [made.count(os.path.join(storage.root, name)) for name in ("mf.artifacts/tmp", "a/b")] == [4, 4]


def test_a_store_that_vanishes_is_an_error(storage: LocalStorage) -> None:
    storage.put("a/b", b"content")
    shutil.rmtree(storage.root)
    with pytest.raises(ArtifactNotFound, match=r"nothing is stored at /.*/a/b"):
        storage.get("a/b")
    assert list(storage.list("")) == []
    storage.put("a/b", b"again")
    assert storage.get("a/b") == b"again"


@pytest.mark.parametrize("write", WRITES)
def test_a_file_or_a_directory_in_the_way_is_named(storage: LocalStorage, write: str) -> None:
    storage.put("a/b", b"content")
    with pytest.raises(StorageError, match=r"cannot write /.*/a/b/c: a file lies where a directory is needed"):
        operations(storage, "a/b/c")[write]()
    with pytest.raises(StorageError, match=r"cannot write /.*/a: a directory lies where a file is needed"):
        operations(storage, "a")[write]()
    assert {info.key for info in storage.list("")} == {"a/b"}
    assert list(storage.leftovers()) == []
    root = LocalStorage(Path(storage.root, "a/b"))
    with pytest.raises(StorageError, match="a file lies where a directory is needed"):
        operations(root, "c")[write]()


def test_a_directory_is_not_an_object(storage: LocalStorage) -> None:
    Path(storage.root, "a/b").mkdir(parents=True)
    for call in (lambda: storage.get("a/b"), lambda: storage.open("a/b").__enter__()):
        with pytest.raises(ArtifactNotFound, match="it is not a file; check the key 'a/b'"):
            call()
    assert storage.stat("a/b") is None
    assert storage.touch("a/b") is False
    storage.delete(["a/b"])
    assert Path(storage.root, "a/b").is_dir()


def test_a_named_pipe_does_not_hang(storage: LocalStorage) -> None:
    Path(storage.root).mkdir()
    os.mkfifo(Path(storage.root, "pipe"))
    assert storage.stat("pipe") is None
    assert list(storage.list("")) == []
    with pytest.raises(ArtifactNotFound, match="it is not a file"):
        storage.get("pipe")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_one_writer_wins_without_hard_links(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(os, "link", no_link)
    assert storage.put_if_absent("a/b", b"first") is True
    assert storage.put_if_absent("a/b", b"second") is False
    with ThreadPoolExecutor(20) as pool:
        for round_ in range(20):
            barrier = threading.Barrier(20)

            def write(number: int, key: str = f"race/{round_}", barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return storage.put_if_absent(key, b"%d" % number)

            won = list(pool.map(write, range(20)))
            assert won.count(True) == 1
            assert storage.get(f"race/{round_}") == b"%d" % won.index(True)
    assert {info.key for info in storage.list("")} == {"a/b", *(f"race/{number}" for number in range(20))}
    assert list(storage.leftovers()) == []


def test_a_link_whose_answer_was_lost_is_a_success(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system makes the link, loses the answer, and finds the file when it makes the request again."""
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    storage.put("a/c", b"")
    monkeypatch.setattr(os, "link", twice)
    assert storage.put_if_absent("a/b", b"mine") is True
    assert storage.get("a/b") == b"mine"


def test_files_that_no_key_names_are_not_listed(storage: LocalStorage) -> None:
    storage.put("a/b", b"content")
    Path(storage.root, "caf\u00e9").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(storage.root) + b"/\xff")).write_bytes(b"")
    assert [info.key for info in storage.list("")] == ["a/b"]


def test_names_too_long_for_the_file_system_are_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "/".join(["d" * 200] * 18))
    with pytest.raises(InvalidInput, match="too long"):
        storage.put("/".join(["k" * 200] * 3), b"")


def test_an_object_that_becomes_shorter_ends_early(storage: LocalStorage) -> None:
    storage.put("a", b"x" * MIB)
    with storage.open("a") as reader:
        os.truncate(Path(storage.root, "a"), 1000)
        assert reader.readinto(memoryview(bytearray(MIB))) == 1000
        assert reader.readinto(memoryview(bytearray(MIB))) == 0
