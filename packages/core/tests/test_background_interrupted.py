"""Saves in the background where something comes between: signals, interrupts, the end of the process."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import SaveOptions, SaveReplaced, StorageError, Store, open_store
from metaflow_artifacts._store import background
from metaflow_artifacts._store.background import BackgroundSaves
from metaflow_artifacts._transfer.snapshot import NoSnapshot, Snapshot

REPLACE = SaveOptions(on_busy="replace")


class Interrupted(BaseException):
    """As of Ctrl-C."""


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> BackgroundSaves:
    """A queue for this test alone."""
    mine = BackgroundSaves()
    monkeypatch.setattr(background, "_saves", mine)
    return mine


class Gate:
    """Holds the worker until it is opened."""

    def __init__(self, store: Store) -> None:
        reached, self._open = threading.Event(), threading.Event()

        def wait(artifact: Any) -> Any:
            reached.set()
            assert self._open.wait(240)
            return artifact

        self.pending = store.save_model_async({"a": b"gate"}, finish=wait)
        assert reached.wait(240)

    def open(self) -> None:
        self._open.set()


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("before", ["", "import metaflow_artifacts._store.background", "late()"])
def test_a_save_at_exit_is_stored(tmp_path: Path, before: str) -> None:
    code = f"""
import atexit, threading
def late():
    from metaflow_artifacts import open_store
    open_store({str(tmp_path)!r}).save_model_async({{"late": b"1" * 5_000_000}})
atexit.register(late)
{before}
"""
    done = run(code)
    assert done.stderr == ""
    assert len(list(open_store(tmp_path).list())) == 1 + (before == "late()")


def test_what_is_handed_over_later_is_not_waited_for(store: Store, saves: BackgroundSaves) -> None:
    stop = threading.Event()

    def until_another_waits(artifact: Any) -> Any:
        while saves.pending < 2 and not stop.wait(0.001):
            pass
        return artifact

    def go_on() -> None:
        while not stop.is_set():
            store.save_model_async({"a": b""}, finish=until_another_waits)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        until_another_waits(None)
        assert saves.settle(240)
        assert saves.wait(240)
    finally:
        stop.set()
        thread.join()
    assert saves.settle(240)


@pytest.mark.parametrize("consume", [False, True])
def test_a_save_that_is_interrupted_before_it_begins_is_dropped(
    store: Store, saves: BackgroundSaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consume: bool
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise NoSnapshot("no room at all")

    def interrupt(*args: Any) -> None:
        raise Interrupted

    (path := tmp_path / "state.bin").write_bytes(b"1")
    gate = Gate(store)
    monkeypatch.setattr(background, "take_snapshot", refused)
    with pytest.raises(Interrupted):
        store.save_model_async(path, options=SaveOptions(consume, tell=interrupt))
    wait_for = saves._wait_for

    def waits(is_so: Any, timeout: float | None) -> bool:
        if timeout is None:
            # It waits for the save that the gate holds. A signal that comes before the call would end the test.
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        return wait_for(is_so, timeout)

    monkeypatch.setattr(saves, "_wait_for", waits)
    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            store.save_model_async(path, options=SaveOptions(consume))
    finally:
        signal.signal(signal.SIGUSR1, previous)
        monkeypatch.setattr(saves, "_wait_for", wait_for)
    gate.open()
    assert saves.settle(240)
    assert path.exists()
    assert list(store.list()) == [gate.pending.result()["key"]]


def test_a_save_that_is_interrupted_while_it_is_stored_ends(
    store: Store, saves: BackgroundSaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise NoSnapshot("no room at all")

    def interrupt(*args: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(background, "take_snapshot", refused)
    with pytest.raises(Interrupted):
        store.save_model_async({"a": b""}, options=SaveOptions(tell=lambda line: None), finish=interrupt)
    assert saves.pending == 0
    assert saves.take_failures() == []


def test_what_is_replaced_ends_whatever_comes_between(
    store: Store, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(snapshot: Snapshot) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(background, "_saves", saves)
        raise Interrupted

    gate = Gate(store)
    old = store.save_model_async({"a": b"old"}, options=REPLACE)
    monkeypatch.setattr(Snapshot, "close", interrupted)
    with pytest.raises(Interrupted):
        store.save_model_async({"a": b"new"}, options=REPLACE)
    assert old.done()
    gate.open()
    assert saves.settle(240)
    assert isinstance(old.exception(), SaveReplaced)


def test_what_another_store_or_task_saves_is_not_replaced(store: Store, saves: BackgroundSaves, tmp_path: Path) -> None:
    gate, other = Gate(store), open_store(tmp_path / "other")
    first = store.save_model_async({"a": b"1"}, pathspec="F/1/s/1", options=REPLACE)
    threading.Timer(0.1, gate.open).start()
    second = other.save_model_async({"a": b"2"}, pathspec="F/1/s/1", options=REPLACE)
    third = other.save_model_async({"a": b"3"}, pathspec="F/1/s/2", options=REPLACE)
    assert [one.exception(240) for one in (first, second, third)] == [None, None, None]
    assert saves.settle(240)


def test_a_failure_holds_no_content(store: Store, saves: BackgroundSaves) -> None:
    class Tracked:
        pass

    references = []

    def inner() -> None:
        tracked = Tracked()
        references.append(weakref.ref(tracked))
        raise ValueError

    def fail(artifact: Any) -> Any:
        try:
            inner()
        except ValueError as error:
            raise StorageError("it failed") from error

    pending = store.save_model_async({"a": b""}, finish=fail)
    assert isinstance(pending.exception(240), StorageError)
    assert saves.settle(240)
    gc.collect()
    assert [reference() for reference in references] == [None]


def test_what_is_abandoned_is_an_error_at_once(store: Store, saves: BackgroundSaves) -> None:
    gate = Gate(store)
    copied: list[Any] = []
    saves.abandon()
    thread = threading.Thread(target=lambda: copied.append(copy.copy(gate.pending)))
    thread.start()
    thread.join(240)
    gate.open()
    thread.join()
    assert list(copied[0]) == ["error"]
