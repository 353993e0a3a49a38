"""The process that stores, where the process that started it has other settings, ends oddly, or has little memory."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.session import Session
from faultlib.patient_worker import PATIENT, be_patient

from metaflow_artifacts import SaveOptions, open_store
from metaflow_artifacts._storage.handover import Handover, Portable
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts._storage.s3_client import client_config
from metaflow_artifacts._store import background
from metaflow_artifacts._store import store as store_module
from metaflow_artifacts._store.background import BackgroundSaves
from metaflow_artifacts._transfer import new_files, worker_process
from metaflow_artifacts._transfer.handed_over import HandedOver
from metaflow_artifacts._transfer.worker_messages import Question
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20


@pytest.fixture(autouse=True)
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundSaves]:
    """A queue for this test alone, whose worker stores everything, whatever its size."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was stored here")

    mine = BackgroundSaves()
    monkeypatch.setattr(background, "_saves", mine)
    monkeypatch.setattr(worker_process, "LEAST_BYTES", 1)
    monkeypatch.setattr(store_module, "store_chunks", refused)
    be_patient(monkeypatch)
    yield mine
    assert mine.settle(240)
    mine._worker_process.close()


def pid_of(saves: BackgroundSaves) -> int:
    process = saves._worker_process._process
    assert process is not None
    return process.pid


def test_a_default_timeout_of_sockets_changes_nothing(tmp_path: Path, saves: BackgroundSaves) -> None:
    # The list of them is more than a socket holds.
    content = {f"{number:0200}": os.urandom(1000) for number in range(1500)}
    socket.setdefaulttimeout(0.001)
    try:
        pending = open_store(tmp_path / "store").save_model_async(content)
        assert pending.exception(240) is None
        assert pid_of(saves)
    finally:
        socket.setdefaulttimeout(None)


HALF_A_MESSAGE = f"""
import os, subprocess, sys, time
from metaflow_artifacts import SaveOptions, open_store
from metaflow_artifacts._store.background import background_saves
{PATIENT}
open_store(sys.argv[1]).save_model_async({{"a": os.urandom(5_000_000)}}).result()
worker = background_saves()._worker_process
end = worker._channel._end
# As a child has it that a library in C forks.
child = subprocess.Popen(["sleep", "600"], pass_fds=[end.fileno()])
end.send(b"1234567")
print(worker._process.pid, child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_ends_with_its_parent_in_the_middle_of_a_message(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-c", HALF_A_MESSAGE, tmp_path / "store"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker, child = map(int, process.stdout.readline().split())
    try:
        until = time.monotonic() + 120
        while not has_ended(worker):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_one_that_takes_nothing_more_of_a_message_is_given_up() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        look = functools.partial(worker_process._look_for, process)
        look(1.0)
        with pytest.raises(BlockingIOError):
            look(worker_process._CALL_S + 1)
        process.kill()
        process.wait()
        with pytest.raises(ConnectionAbortedError):
            look(1.0)


def test_only_the_last_storages_are_kept(tmp_path: Path) -> None:
    handed_over = HandedOver()
    storages = [LocalStorage(tmp_path / f"{number}") for number in range(10)]
    for storage in storages:
        handed_over.find(storage)
        handed_over.find(storages[0])
    kept = [weakref.ref(storage) for storage in storages]
    del storage, storages
    gc.collect()
    assert [number for number, storage in enumerate(kept) if storage() is not None] == [0, 7, 8, 9]


class Keys:
    """Makes clients of S3 with keys that expire."""

    def __init__(self, server: SeaweedServer, secret: str) -> None:
        self._server = server
        self._metadata = {"access_key": server.access_key, "secret_key": secret, "token": None}

    def __call__(self) -> Any:
        session: Any = Session()
        session._credentials = RefreshableCredentials.create_from_metadata(self._renewed(), self._renewed, "test")
        return session.create_client(
            "s3", region_name="us-east-1", endpoint_url=self._server.endpoint, config=client_config()
        )

    def _renewed(self) -> dict[str, Any]:
        # In the next minute, so that they are renewed each time.
        return {**self._metadata, "expiry_time": (datetime.now(timezone.utc) + timedelta(minutes=1)).isoformat()}

    def makes_plain_clients(self) -> bool:
        return True


def test_keys_of_one_storage_are_not_used_for_another_with_equal_settings(s3_server: SeaweedServer) -> None:
    root = f"{s3_server.root}/{uuid4().hex}"
    stores = [open_store(root, client=Keys(s3_server, secret)) for secret in (s3_server.secret_key, "another")]
    assert stores[0].save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    stored = list(stores[0].storage.list(""))
    assert stores[1].save_model_async({"a": os.urandom(MIB)}).exception(240) is not None
    # Nothing of it was sent with the keys of the first.
    assert list(stores[0].storage.list("")) == stored


def answer(question: Any) -> Any:
    if question == "lock":
        return threading.Lock()
    raise ValueError(question)


@pytest.mark.parametrize(
    ("storage", "about", "expected"), [(7, "x", "x"), (7, "lock", "pickle"), (6, "x", "not used any more")]
)
def test_each_question_gets_an_answer_that_can_be_sent(storage: int, about: str, expected: str) -> None:
    handover = Handover(Portable(lambda ask: LocalStorage("/"), 7), answer, asks=True)
    answered = worker_process._answer(handover, Question(3, storage, about))
    sent = pickle.loads(pickle.dumps(answered))
    assert (sent.number, sent.value) == (3, None)
    assert expected in str(sent.error)


@pytest.mark.parametrize("status", [new_files._STATUS, "/dev/null"])
def test_chunks_have_the_mode_of_the_umask_of_their_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(new_files, "_STATUS", status)
    store = open_store(tmp_path / "store")
    seen: set[Path] = set()
    before = os.umask(0o077)
    try:
        for mask in (0o077, 0o002, 0o027):
            os.umask(mask)
            assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
            made = {
                path for path in (tmp_path / "store").rglob("*") if path.is_file() and "chunks" in path.parts
            } - seen
            assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o666 & ~mask}
            seen |= made
    finally:
        os.umask(before)


def test_another_user_gets_another_process(
    tmp_path: Path, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    pids = []
    for groups in ([1], [1], [1, 2], [2, 1]):
        monkeypatch.setattr(os, "getgroups", lambda groups=groups: groups)
        assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
        pids.append(pid_of(saves))
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_one_that_cannot_send_its_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (
        "from metaflow_artifacts._transfer import worker_messages\n"
        "worker_messages.Stored.__reduce__ = lambda stored: 1 / 0\n"
        "main("
    )
    monkeypatch.setattr(worker_process, "_BOOT", worker_process._BOOT.replace("main(", broken))
    told: list[str] = []
    pending = open_store(tmp_path / "store").save_model_async(
        {"a": os.urandom(MIB)}, options=SaveOptions(tell=told.append)
    )
    assert "it was stored here" in str(pending.exception(240))
    assert "exit code 1" in told[0]
