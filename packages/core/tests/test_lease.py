"""One of many processes does the work, and a process that was killed delays the others only briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._store.lease import Lease, _is_gone, _process, single_flight

NAME = "mf.huggingface_hub/leases/x"


def test_one_process_holds_the_lease(store: Store) -> None:
    first, second = Lease(store.storage, NAME, "first"), Lease(store.storage, NAME, "second")
    with first.attempt() as held:
        assert held
        with second.attempt() as also:
            assert not also
        assert second.holder == "first"
    with second.attempt() as held:
        assert held
    assert list(store.storage.list(NAME)) == []


def test_the_lease_is_released_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease(store.storage, NAME, "first").attempt():
        raise ZeroDivisionError
    with Lease(store.storage, NAME, "second").attempt() as held:
        assert held


def test_nobody_waits_for_a_holder_that_is_not_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take the lease between the look at it and the attempt to take it."""
    put = store.storage.put_if_absent
    taken: list[str] = []

    def put_if_absent(key: str, content: bytes) -> bool:
        if key.startswith(NAME) and not taken:
            taken.append(key)
            return False
        return put(key, content)

    monkeypatch.setattr(store.storage, "put_if_absent", put_if_absent)
    waits: list[str] = []
    assert single_flight(store.storage, NAME, lambda: None, lambda: 1, waits.append, "me") == 1
    assert taken
    assert waits == []


def test_a_lease_without_a_heartbeat_expires(store: Store) -> None:
    store.storage.put(f"{NAME}/3", json.dumps({"who": "gone", "host": "elsewhere", "pid": 1, "beat": 0}).encode())
    lease = Lease(store.storage, NAME, "next", ttl=0.3)
    with lease.attempt() as held:
        assert not held
    time.sleep(0.4)
    with lease.attempt() as held:
        assert held
        assert [info.key for info in store.storage.list(NAME) if info.key.endswith("/4")]
    assert list(store.storage.list(NAME)) == []


def test_a_holder_rewrites_its_lease(store: Store) -> None:
    with Lease(store.storage, NAME, "slow", ttl=0.3).attempt():
        signs: set[bytes] = set()
        while len(signs) < 3:
            signs.add(store.storage.get(f"{NAME}/0"))
            time.sleep(0.05)


def test_a_heartbeat_extends_the_lease(store: Store) -> None:
    lease = Lease(store.storage, NAME, "next", ttl=0.1)
    for beat in range(4):
        store.storage.put(f"{NAME}/0", json.dumps({"who": "slow", "host": "elsewhere", "beat": beat}).encode())
        with lease.attempt() as held:
            assert not held
        time.sleep(0.2)
    with lease.attempt() as held:
        assert held


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(store: Store) -> None:
    code = "import os,sys; sys.stdout.write(str(os.getpid())); sys.stdout.flush(); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read(1)
    holder = {"who": "killed", "beat": 0, **_process(child.pid)}
    store.storage.put(f"{NAME}/0", json.dumps(holder).encode())
    lease = Lease(store.storage, NAME, "next", ttl=3600)
    with lease.attempt() as held:
        assert not held
    child.kill()
    child.communicate()
    with lease.attempt() as held:
        assert held


def test_only_an_ended_process_of_this_machine_is_known_to_have_ended() -> None:
    me = _process(os.getpid())
    assert not _is_gone(me)
    assert _is_gone({**me, "start": "1"})
    assert not _is_gone({**me, "start": "1", "host": "elsewhere"})
    assert not _is_gone({**me, "start": "1", "space": "another container"})
    assert not _is_gone({**me, "start": ""})
    assert not _is_gone({})


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}"])
def test_a_lease_that_cannot_be_read_expires(store: Store, content: bytes) -> None:
    store.storage.put(f"{NAME}/0", content)
    lease = Lease(store.storage, NAME, "next", ttl=0.1)
    with lease.attempt() as held:
        assert not held
    time.sleep(0.2)
    with lease.attempt() as held:
        assert held


def test_the_work_is_done_once(store: Store) -> None:
    done: list[str] = []
    told: list[str] = []

    def find() -> str | None:
        return done[0] if done else None

    def work(name: str) -> str:
        time.sleep(0.2)
        done.append(name)
        return name

    results: list[str] = []

    def call(name: str) -> None:
        results.append(single_flight(store.storage, NAME, find, lambda: work(name), told.append, name))

    threads = [threading.Thread(target=call, args=(str(n),)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert results == done * 12
    assert set(told) <= {"", *done}


def test_after_max_wait_the_work_is_done_without_the_lease(store: Store) -> None:
    store.storage.put(f"{NAME}/0", json.dumps({"who": "stuck", "host": "elsewhere", "beat": 0}).encode())
    result = single_flight(
        store.storage, NAME, lambda: None, lambda: "mine", lambda who: None, "me", 3600, max_wait=0.2
    )
    assert result == "mine"


def test_after_a_failure_the_next_caller_does_the_work(store: Store) -> None:
    done: list[str] = []
    tries: list[int] = []
    results: list[object] = []

    def work(number: int) -> str:
        tries.append(number)
        if len(tries) < 3:
            raise OSError(f"{number}")
        done.append("done")
        return "done"

    def call(number: int) -> None:
        try:
            find = lambda: done[0] if done else None  # noqa: E731
            results.append(single_flight(store.storage, NAME, find, lambda: work(number), lambda who: None, "x"))
        except OSError as error:
            results.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 3
    assert sum(isinstance(result, OSError) for result in results) == 2
    assert results.count("done") == 3
