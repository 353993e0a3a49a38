"""A process that saves in the background is killed at random moments: what it was told is stored is there, in order."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import CheckpointPlace, CheckpointWriter, SaveOptions, Store, check, open_store
from metaflow_artifacts._store.checkpoints import latest_checkpoints, list_checkpoints
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

SAVES = 20
PLACE = CheckpointPlace("F", "train", "a" * 12, "b" * 12)


def content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (40_000 if number % 4 else 1)


def save_all(root: str, directory: Path, by: str) -> None:
    """What the process does: 20 saves, of files, of files that it gives away, and from memory."""
    from metaflow_artifacts._mf.preemption import watch_for_preemption
    from metaflow_artifacts._transfer import worker_process

    worker_process.LEAST_BYTES = 1 << 40 if by == "thread" else 1 << 20
    watch_for_preemption(lambda line: None)
    if by == "killed":
        threading.Thread(target=kill_workers, daemon=True).start()
    writer = CheckpointWriter(open_store(root), PLACE, "0123abcd", 0, start=0)
    pending = []

    def note(name: str, number: int) -> None:
        fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"%d\n" % number)
        os.close(fd)

    for number in range(SAVES):
        path, options = directory / "state.bin", SaveOptions(consume=number % 4 == 1)
        path.write_bytes(content(number))
        given = {"state.bin": content(number)} if number % 4 == 2 else path
        pending.append(writer.save_async(given, label="a", options=options))
        note("handed over", number)
        path.write_bytes(b"rewritten in place")
        while pending and pending[0].done():
            note("returned", pending.pop(0).result()["version_id"])
    for one in pending:
        note("returned", one.result()["version_id"])


def kill_workers() -> None:
    """Kill the process that stores, again and again."""
    from metaflow_artifacts._store.background import background_saves

    moments = random.Random(0)
    while True:
        process = background_saves()._worker_process._process
        if process is not None:
            time.sleep(moments.uniform(0, 0.6))
            process.kill()
        time.sleep(0.01)


def noted(directory: Path, name: str) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(line) for line in (directory / name).read_text().split()]
    return []


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything, and forks one that saves for each line that it reads."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def run(
    process: subprocess.Popen[str],
    root: str,
    directory: Path,
    number: int = 0,
    saves: int = 0,
    pause: float = 0.0,
    by: str = "process",
) -> int:
    """Have the saves made, and wait for the end; its exit code.

    The signal is sent `pause` seconds after so many saves were handed over.
    """
    assert process.stdin
    assert process.stdout
    print(root, directory, by, file=process.stdin, flush=True)
    child = int(process.stdout.readline())
    if number:
        latest = time.monotonic() + 60
        while len(noted(directory, "handed over")) < saves and time.monotonic() < latest:
            time.sleep(0.001)
        time.sleep(pause)
        with suppress(ProcessLookupError):
            os.kill(child, number)
    return int(process.stdout.readline())


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("storage", ["local", pytest.param("s3", marks=pytest.mark.long)])
@pytest.mark.parametrize("by", ["process", pytest.param("thread", marks=pytest.mark.long)])
def test_killed_at_random_moments(
    forking: subprocess.Popen[str],
    tmp_path: Path,
    number: int,
    times: int,
    storage: str,
    by: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roots = str(tmp_path / "store")
    if storage == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        roots = f"{server.root}/{uuid4().hex}"
        # The process that forks has the environment of its start.
        forking = request.getfixturevalue("forking_with_s3")
    takes = 0.0
    # The first one also imports.
    for name in ("first", "whole"):
        whole = tmp_path / name
        whole.mkdir()
        begin = time.monotonic()
        assert run(forking, f"{roots}/{name}", whole, by=by) == 0
        takes = time.monotonic() - begin
        assert noted(whole, "returned") == list(range(SAVES))

    moments, interrupted = random.Random(number), 0
    for round in range(times):
        directory = tmp_path / f"{round}"
        directory.mkdir()
        saves, pause = moments.randrange(SAVES), moments.uniform(0, takes / SAVES)
        code = run(forking, f"{roots}/{round}", directory, number, saves, pause, by)
        assert code in (0, -number)
        interrupted += code != 0
        store = open_store(f"{roots}/{round}")
        stored = [artifact["version_id"] for artifact in list_checkpoints(store, PLACE.prefix())][::-1]
        # Those that came first, all of them whole.
        assert stored == list(range(len(stored)))
        assert set(noted(directory, "returned")) <= set(stored)
        if number == signal.SIGTERM:
            assert set(noted(directory, "handed over")) <= set(stored)
        assert not check(store).problems
        resumes_from(store, stored, directory)
    assert interrupted > times // 4


def test_the_process_that_stores_is_killed_at_random_moments(forking: subprocess.Popen[str], tmp_path: Path) -> None:
    for round in range(3):
        directory = tmp_path / f"{round}"
        directory.mkdir()
        assert run(forking, f"{tmp_path}/store{round}", directory, by="killed") == 0
        store = open_store(f"{tmp_path}/store{round}")
        assert [one["version_id"] for one in list_checkpoints(store, PLACE.prefix())][::-1] == list(range(SAVES))
        assert noted(directory, "returned") == list(range(SAVES))
        assert not check(store).problems


def resumes_from(store: Store, stored: list[int], directory: Path) -> None:
    """What the retry loads is the newest."""
    newest = next(latest_checkpoints(store, PLACE, id="0123abcd", before_attempt=1), None)
    assert (newest is None) is (not stored)
    if newest is not None:
        assert newest["version_id"] == stored[-1]
        loaded = Path(store.load(newest, directory / "loaded"), "state.bin").read_bytes()
        assert loaded == content(stored[-1])


@pytest.fixture
def forking_with_s3(s3_server: SeaweedServer) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **s3_server.environment()}
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def fork_for_each_line() -> None:
    import metaflow_artifacts._mf.preemption

    assert metaflow_artifacts._mf.preemption.PENDING_S
    for line in sys.stdin:
        root, directory, by = line.split()
        child = os.fork()
        if not child:
            try:
                save_all(root, Path(directory), by)
            finally:
                os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    fork_for_each_line()
