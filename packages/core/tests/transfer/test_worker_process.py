"""The process that stores the chunks of saves in the background: what it stores, and what happens where it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib.patient_worker import PATIENT, be_patient

from metaflow_artifacts import Progress, SaveOptions, Store, open_storage, open_store
from metaflow_artifacts._store import background
from metaflow_artifacts._store import store as store_module
from metaflow_artifacts._store.background import BackgroundSaves
from metaflow_artifacts._transfer import worker_process, worker_share
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20
BOOT = worker_process._BOOT


class PlainClients:
    """Makes clients that keys and settings describe, with keys that no environment variable has."""

    def __init__(self, server: SeaweedServer) -> None:
        self._server = server

    def __call__(self) -> Any:
        return self._server.client()

    def makes_plain_clients(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundSaves]:
    """A queue for this test alone, and a worker that stores whatever its size."""
    mine = BackgroundSaves()
    monkeypatch.setattr(background, "_saves", mine)
    monkeypatch.setattr(worker_process, "LEAST_BYTES", 1)
    be_patient(monkeypatch)
    yield mine
    assert mine.settle(240)
    mine._worker_process.close()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(open_storage(tmp_path / "store"), chunk_size=MIB)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    return Store(open_storage(f"{server.root}/{uuid4().hex}", client=PlainClients(server)), chunk_size=MIB)


@pytest.fixture
def only_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored by this process."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was stored here")

    monkeypatch.setattr(store_module, "store_chunks", refused)


def pid_of(saves: BackgroundSaves) -> int:
    process = saves._worker_process._process
    assert process is not None
    return process.pid


def loaded(store: Store, reference: Any, target: Path) -> dict[str, bytes]:
    store.load(reference, target)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("only_elsewhere")
@pytest.mark.parametrize("consume", [False, True])
def test_all_kinds_of_content_come_back_as_they_were(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consume: bool
) -> None:
    # Fewer descriptors than files: the others share one.
    monkeypatch.setattr("metaflow_artifacts._transfer.snapshot_parts._DESCRIPTORS", 3)
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    expected = {}
    for number in range(8):
        expected[f"{number}"] = os.urandom(number * 300_000)
        (tree / f"{number}").write_bytes(expected[f"{number}"])
    changing = bytearray(os.urandom(2 * MIB))
    in_memory = {"bytes": os.urandom(3 * MIB), "changing": bytes(changing), "nothing": b"", "small": b"1"}
    content: dict[str, Any] = {**in_memory, "tree": tree, "changing": changing}
    expected = {**{f"tree/{name}": data for name, data in expected.items()}, **in_memory}
    progress = Progress()
    saved = store.save_model_async(content, options=SaveOptions(consume), progress=progress)
    changing[:] = bytes(len(changing))
    assert loaded(store, saved.result(240), tmp_path / "loaded") == expected
    size = sum(map(len, expected.values()))
    assert (progress.total, progress.done, progress.stored) == (size, size, size)
    again = Progress()
    assert store.save_model_async({**expected}, progress=again).exception(240) is None
    assert (again.total, again.done, again.stored < size // 10) == (size, size, True)


@pytest.mark.usefixtures("only_elsewhere")
def test_one_that_was_killed_is_replaced(tmp_path: Path, saves: BackgroundSaves) -> None:
    store = open_store(tmp_path / "store")
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    first = pid_of(saves)
    os.kill(first, signal.SIGKILL)
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    second = pid_of(saves)
    assert second != first
    # It is killed with a save that it has not begun to store.
    os.kill(second, signal.SIGSTOP)
    pending = store.save_model_async({"a": b"1" * MIB})
    assert not pending.done()
    os.kill(second, signal.SIGKILL)
    assert loaded(store, pending.result(240), tmp_path / "loaded") == {"a": b"1" * MIB}
    assert pid_of(saves) not in (first, second)


@pytest.mark.usefixtures("only_elsewhere")
def test_one_that_had_nothing_to_do_ends_and_another_one_is_started(
    tmp_path: Path, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = "from metaflow_artifacts._transfer import worker\nworker._IDLE_S, worker._LOOK_S = 1.0, 0.01\nmain("
    monkeypatch.setattr(worker_process, "_BOOT", worker_process._BOOT.replace("main(", impatient))
    told: list[str] = []
    store = open_store(tmp_path / "store")
    pids = set()
    for _ in range(2):
        pending = store.save_model_async({"a": os.urandom(MIB)}, options=SaveOptions(tell=told.append))
        assert pending.exception(240) is None
        process = saves._worker_process._process
        assert process is not None
        assert process.wait(240) == 0
        pids.add(process.pid)
    assert len(pids) == 2
    assert told == []


@pytest.mark.parametrize("by", ["result", "settle", "a third call"])
def test_one_that_gets_no_processor_while_somebody_waits_is_given_up(
    tmp_path: Path, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(worker_process, "_LOOK_S", 0.01)
    store = open_store(tmp_path / "store")
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    worker = pid_of(saves)
    # It stands for one that waits for others.
    os.kill(worker, signal.SIGSTOP)
    asked = threading.Event()

    class Starved(worker_share.Share):
        def is_too_small(self) -> bool:
            asked.set()
            return True

    monkeypatch.setattr(worker_process, "Share", Starved)
    pending = store.save_model_async({"a": b"1" * MIB})
    # As long as nobody waits, it has all the time.
    assert not asked.wait(0.2)
    assert is_there(worker)
    if by == "settle":
        assert saves.settle(240)
    if by == "a third call":
        others = [store.save_model_async({"a": b"%d" % number * MIB}) for number in (2, 3)]
        assert pending.done()
        assert all(other.exception(240) is None for other in others)
    assert loaded(store, pending.result(240), tmp_path / "loaded") == {"a": b"1" * MIB}
    assert saves._worker_process._process is None


def test_whether_a_process_gets_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    share = worker_share.Share(os.getpid())
    assert not share.is_too_small()
    share.forget()
    # When, how long it had one, how long it waited for one, and whether that is too little.
    looks = [
        (0.0, 0.0, 0.0, False),
        (0.5, 0.0, 0.5, False),  # too soon to tell
        (1.0, 0.05, 1.0, True),
        (2.0, 0.75, 2.0, False),  # it had one
        (3.0, 0.75, 2.05, False),  # it did not want one
        (4.0, 0.9, 3.0, False),  # mostly for something else
        (5.0, 0.9, 4.0, True),
    ]
    for *now, expected in looks:
        monkeypatch.setattr(share, "_now", lambda now=now: now)
        assert share.is_too_small() is expected, now


def ends_at_once(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(worker_process, "_BOOT", "raise SystemExit(3)")
    return "exit code 3"


def is_killed(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(worker_process, "_BOOT", "import os; os.kill(os.getpid(), 9)")
    return "killed by signal 9"


def cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> str:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    return "Resource temporarily unavailable"


def has_no_python(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "executable", "")
    return "sys.executable"


@pytest.mark.parametrize("broken", [ends_at_once, is_killed, cannot_be_started, has_no_python])
def test_without_one_it_is_stored_here_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], str]
) -> None:
    reason = broken(monkeypatch)
    told: list[str] = []
    store = open_store(tmp_path / "store")
    for number in range(2):
        content = {"a": os.urandom(MIB)}
        pending = store.save_model_async(content, options=SaveOptions(tell=told.append))
        assert loaded(store, pending.result(240), tmp_path / f"{number}") == content
    assert len(told) == 1
    assert reason in told[0]


def test_what_it_cannot_do_is_done_here(s3_server: SeaweedServer, saves: BackgroundSaves, tmp_path: Path) -> None:
    # A function may make clients with hooks.
    with_hooks = open_store(f"{s3_server.root}/{uuid4().hex}", client=lambda: s3_server.client())
    told: list[str] = []
    pending = with_hooks.save_model_async({"a": bytes(MIB)}, options=SaveOptions(tell=told.append))
    assert loaded(with_hooks, pending.result(240), tmp_path / "loaded") == {"a": bytes(MIB)}
    assert saves._worker_process._process is None
    assert told == []


def test_where_memory_is_full_it_is_stored_here(
    tmp_path: Path, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaflow_artifacts._transfer.shared_content.free_memory", lambda: 40 * MIB)
    store = open_store(tmp_path / "store")
    # There is room for a copy of what is in memory, but not for the process.
    (tmp_path / "file").write_bytes(b"1" * MIB)
    contents: list[Any] = [{"a": b"1" * MIB}, {"a": tmp_path / "file"}]
    for number, content in enumerate(contents):
        pending = store.save_model_async(content)
        assert loaded(store, pending.result(240), tmp_path / f"{number}") == {"a": b"1" * MIB}
        assert saves._worker_process._process is None


@pytest.mark.usefixtures("only_elsewhere")
def test_nobody_else_sees_the_keys(s3_server: SeaweedServer, saves: BackgroundSaves) -> None:
    store = Store(open_storage(f"{s3_server.root}/{uuid4().hex}", client=PlainClients(s3_server)))
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    about = Path(f"/proc/{pid_of(saves)}")
    for name in ("cmdline", "environ"):
        seen = (about / name).read_bytes()
        assert seen
        assert s3_server.secret_key.encode() not in seen
        assert s3_server.access_key.encode() not in seen
    files = [path for path in (about / "fd").iterdir() if os.path.isfile(path.resolve())]
    assert not [path for path in files if s3_server.secret_key.encode() in path.read_bytes()]


@pytest.mark.usefixtures("only_elsewhere")
def test_signals_to_all_do_not_end_it(tmp_path: Path, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch) -> None:
    # With its own priority, which may let it wait for long between two saves.
    busy = "from metaflow_artifacts._transfer import worker\nworker._IDLE_S = 600\nmain("
    monkeypatch.setattr(worker_process, "_BOOT", BOOT.replace("main(", busy))
    store = open_store(tmp_path / "store")
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    worker = pid_of(saves)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker, number)
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    assert pid_of(saves) == worker
    assert os.getpriority(os.PRIO_PROCESS, worker) == 19


SCRIPT = f"""
import os, sys, time
from metaflow_artifacts import open_store
from metaflow_artifacts._store.background import background_saves
{PATIENT}

print("imported", flush=True)
store = open_store(sys.argv[1])
pending = store.save_model_async({{"a": os.urandom(5_000_000)}})
"""


def is_there(pid: int) -> bool:
    """Whether a process lives: whoever has inherited it may not have waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", ["kill", "kill, with a child", "os._exit", "return"])
def test_it_ends_with_the_process_that_started_it(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{SCRIPT}
pending.result()
worker = background_saves()._worker_process._process.pid
child = 0
if "child" in {end!r}:
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
print(worker, child, flush=True)
if "kill" in {end!r}:
    os.kill(os.getpid(), 9)
if {end!r} == "os._exit":
    os._exit(0)
"""
    )
    with subprocess.Popen([sys.executable, script, tmp_path / "store"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        # The main module is not imported again.
        assert process.stdout.readline() == "imported\n"
        worker, child = map(int, process.stdout.readline().split())
        until = time.monotonic() + 120
        while is_there(worker):
            assert time.monotonic() < until
            time.sleep(0.01)
        if child:
            assert is_there(child)
            os.kill(child, signal.SIGKILL)
        assert process.stdout.read() == ""
    assert len(list(open_store(tmp_path / "store").list())) == 1


def test_a_process_that_is_killed_commits_nothing_more(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{SCRIPT}
pending.result()
process = background_saves()._worker_process._process
# It has the next save, and cannot store it before its parent is gone.
os.kill(process.pid, 19)
store.save_model_async({{"a": os.urandom(5_000_000)}})
print(process.pid, flush=True)
while background_saves()._running is None:
    time.sleep(0.001)
os.kill(os.getpid(), 9)
"""
    )
    with subprocess.Popen([sys.executable, script, tmp_path / "store"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "imported\n"
        worker = int(process.stdout.readline())
        process.wait()
    os.kill(worker, signal.SIGCONT)
    until = time.monotonic() + 120
    while is_there(worker):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(list(open_store(tmp_path / "store").list())) == 1
