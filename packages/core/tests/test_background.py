"""Saves in the background: the state of the call, the order of the calls, and errors that cannot be missed."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import (
    CheckpointPlace,
    CheckpointWriter,
    InvalidInput,
    InvalidReference,
    PendingSave,
    SaveOptions,
    SaveReplaced,
    SaveTimeout,
    SourceError,
    StorageError,
    Store,
    UsageError,
    latest_checkpoints,
    list_checkpoints,
)
from metaflow_artifacts._store import background
from metaflow_artifacts._store.background import BackgroundSaves
from metaflow_artifacts._transfer.snapshot import NoSnapshot

BIG = 3 << 20
PLACE = CheckpointPlace("TrainFlow", "train", "0123456789ab", "ba9876543210")
REPLACE = SaveOptions(on_busy="replace")


@pytest.fixture(autouse=True)
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundSaves]:
    """A queue for this test alone."""
    mine = BackgroundSaves()
    monkeypatch.setattr(background, "_saves", mine)
    yield mine
    assert mine.settle(240)


@pytest.fixture
def writer(store: Store) -> CheckpointWriter:
    return CheckpointWriter(store, PLACE, "deadbeef", 0, start=0)


class Gate:
    """Holds the worker until it is opened."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, artifact: Any) -> Any:
        self.reached.set()
        assert self._open.wait(240)
        return artifact

    def open(self) -> None:
        self._open.set()


def save(writer: CheckpointWriter, content: Any, **kwargs: Any) -> PendingSave:
    return writer.save_async(content, label="a", **kwargs)


def loaded(store: Store, reference: Any, tmp_path: Path, name: str = "loaded") -> dict[str, bytes]:
    target = Path(store.load(reference, tmp_path / name))
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def numbers(store: Store) -> list[int]:
    return [artifact["version_id"] for artifact in list_checkpoints(store, PLACE.prefix())]


@pytest.mark.parametrize("size", [1000, BIG])
def test_what_loads_is_the_state_of_the_call(store: Store, tmp_path: Path, size: int) -> None:
    path = tmp_path / "state.bin"
    path.write_bytes(before := os.urandom(size))
    changing = bytearray(before)
    first = store.save_model_async(path)
    second = store.save_model_async({"a": changing, "b": path})
    with open(path, "r+b") as file:
        file.write(bytes(size))
    changing[:] = bytes(size)
    assert loaded(store, first, tmp_path, "1") == {"state.bin": before}
    assert loaded(store, second.result(), tmp_path, "2") == {"a": before, "b": before}
    assert sorted(os.listdir(tmp_path)) in (["1", "2", "state.bin"], ["1", "2", "state.bin", "store"])


def test_it_is_stored_after_the_call_and_in_order(writer: CheckpointWriter, saves: BackgroundSaves) -> None:
    gate = Gate()
    first = save(writer, {"a": b"0"}, finish=gate)
    second = save(writer, {"a": b"1"})
    assert gate.reached.wait(240)
    assert [first.done(), second.done(), saves.pending] == [False, False, 2]
    assert numbers(writer.store) == [0]
    with pytest.raises(SaveTimeout):
        second.result(timeout=0)
    with pytest.raises(TimeoutError):
        saves.wait(timeout=0)
    gate.open()
    assert [one["version_id"] for one in saves.wait()] == [0, 1]
    assert saves.wait() == []
    assert [first.done(), first.result()["version_id"], second.exception()] == [True, 0, None]


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_the_wait_for_a_result_counts_as_a_wait(writer: CheckpointWriter, saves: BackgroundSaves, ask: str) -> None:
    gate = Gate()
    pending = save(writer, {"a": b"0"}, finish=gate)
    before = saves.seconds_waited
    with pytest.raises(SaveTimeout):
        getattr(pending, ask)(timeout=0.2)
    gate.open()
    assert saves.seconds_waited - before > 0.1


def test_a_third_call_waits_for_the_first(writer: CheckpointWriter) -> None:
    gate = Gate()
    save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    save(writer, {"a": b"1"})
    third: list[PendingSave] = []
    calling = threading.Thread(target=lambda: third.append(save(writer, {"a": b"2"})))
    calling.start()
    calling.join(0.2)
    assert calling.is_alive()
    gate.open()
    calling.join(240)
    assert third[0].result()["version_id"] == 2


def test_a_call_replaces_the_one_that_waits(writer: CheckpointWriter, saves: BackgroundSaves, tmp_path: Path) -> None:
    gate = Gate()
    save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    waiting = save(writer, {"a": b"1"}, options=REPLACE)
    last = save(writer, {"a": b"2"}, options=REPLACE)
    with pytest.raises(SaveReplaced):
        waiting.result()
    gate.open()
    assert loaded(writer.store, last, tmp_path) == {"a": b"2"}
    assert len(saves.wait()) == 2
    assert numbers(writer.store) == [2, 0]
    assert saves.take_failures() == []


def test_what_has_another_name_is_not_replaced(writer: CheckpointWriter, saves: BackgroundSaves) -> None:
    gate = Gate()
    save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    best = save(writer, {"a": b"1"}, name="best", options=REPLACE)
    opening = threading.Timer(0.1, gate.open)
    opening.start()
    save(writer, {"a": b"2"}, options=REPLACE)
    assert best.result()["name"] == "best"
    assert len(saves.wait()) == 3


def test_the_latest_is_not_replaced_by_one_that_is_not(writer: CheckpointWriter) -> None:
    gate = Gate()
    save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    save(writer, {"a": b"1"}, options=REPLACE)
    second = save(writer, {"a": b"2"}, options=REPLACE)
    threading.Timer(0.1, gate.open).start()
    other = save(writer, {"a": b"3"}, latest=False, options=REPLACE)
    assert [second.result()["version_id"], other.result()["version_id"]] == [2, 3]
    newest = next(latest_checkpoints(writer.store, PLACE, id="deadbeef", before_attempt=1))
    assert newest["version_id"] == 2
    assert numbers(writer.store) == [3, 2, 0]


def test_a_plain_save_comes_after_those_that_are_pending(writer: CheckpointWriter) -> None:
    gate = Gate()
    pending = save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    threading.Timer(0.1, gate.open).start()
    plain = writer.save({"a": b"1"}, label="a")
    assert pending.done()
    assert plain["version_id"] == 1


@pytest.mark.parametrize("arguments", [{"start": None}, {"start": 0, "gang": "TrainFlow/1/train/1"}])
def test_numbers_that_the_store_is_asked_for(store: Store, arguments: Any) -> None:
    CheckpointWriter(store, PLACE, "deadbeef", 0).save({"a": b""}, label="a")
    writer = CheckpointWriter(store, PLACE, "deadbeef", 0, **arguments)
    given = [save(writer, {"a": b"%d" % number}) for number in range(4)]
    assert [one.result()["version_id"] for one in given] == [1, 2, 3, 4]


def test_what_is_wrong_with_the_arguments_is_said_at_once(writer: CheckpointWriter, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="metadata"):
        save(writer, {"a": b""}, metadata=[1])
    with pytest.raises(InvalidInput, match=r"\.result\(\)"):
        save(writer, {"a": PendingSave()})
    with pytest.raises(InvalidInput, match="name"):
        save(writer, {"a": b""}, name="x" * 1000)
    with pytest.raises(InvalidInput, match="on_busy"):
        save(writer, {"a": b""}, options=SaveOptions(on_busy="skip"))  # type: ignore[arg-type]
    with pytest.raises(SourceError):
        save(writer, tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="label"):
        writer.store.save_model_async({"a": b""}, "x" * 1000)
    assert save(writer, {"a": b""}).result()["version_id"] == 0


@pytest.fixture
def broken(tmp_path: Path) -> Store:
    """A store that cannot be written to."""
    from metaflow_artifacts import open_store

    (tmp_path / "a file").write_bytes(b"")
    return open_store(tmp_path / "a file" / "store")


def test_a_failure_is_told_until_somebody_has_seen_it(broken: Store, saves: BackgroundSaves, tmp_path: Path) -> None:
    first, second, third = [broken.save_model_async({"a": b"%d" % number}) for number in range(3)]
    with pytest.raises(StorageError):
        first.result()
    assert isinstance(second.exception(), StorageError)
    with pytest.raises(InvalidReference, match=r"a save in the background that failed: \w+Error: .*a file"):
        broken.info(pickle.loads(pickle.dumps(third)))
    assert [type(error) for error in saves.take_failures()] == [type(third.exception())]
    assert saves.take_failures() == []


def test_wait_raises_the_first_failure(broken: Store, saves: BackgroundSaves) -> None:
    broken.save_model_async({"a": b""})
    broken.save_model_async({"a": b""})
    with pytest.raises(StorageError):
        saves.wait(kind="model")
    assert len(saves.take_failures()) == 1, "the second one"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pending: pickle.loads(pickle.dumps(pending))])
def test_what_is_kept_is_the_reference(writer: CheckpointWriter, copied: Callable[[Any], Any]) -> None:
    pending = save(writer, {"a": b""}, metadata={"epoch": 3})
    kept = copied({"state": pending})["state"]
    assert type(kept) is dict
    assert kept == pending.result()
    assert kept["metadata"] == {"epoch": 3}


def test_what_is_consumed_is_moved_and_given_back_where_it_fails(store: Store, broken: Store, tmp_path: Path) -> None:
    path = tmp_path / "work" / "weights"
    path.mkdir(parents=True)
    (path / "a").write_bytes(b"1" * BIG)
    options = SaveOptions(consume=True)
    assert broken.save_model_async(path, options=options).exception() is not None
    assert os.listdir(tmp_path / "work") == ["weights"]
    pending = store.save_model_async(path, options=options)
    assert not path.exists()
    assert loaded(store, pending, tmp_path) == {"a": b"1" * BIG}
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize("consume", [False, True])
def test_without_a_snapshot_the_caller_waits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consume: bool
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise NoSnapshot("no room at all")

    monkeypatch.setattr(background, "take_snapshot", refused)
    told: list[str] = []
    options = SaveOptions(consume=consume, tell=told.append)
    for number in range(2):
        path = tmp_path / f"{number}"
        path.write_bytes(b"%d" % number)
        pending = store.save_model_async(path, options=options)
        assert pending.done()
        assert path.exists() is not consume
        assert loaded(store, pending, tmp_path, f"loaded {number}") == {f"{number}": b"%d" % number}
    assert len(told) == 1
    assert "no room at all" in told[0]


def test_a_forked_child(writer: CheckpointWriter, store: Store) -> None:
    gate = Gate()
    done, pending = save(writer, {"a": b"0"}), save(writer, {"a": b"1"}, finish=gate)
    done.result()
    assert gate.reached.wait(240)
    reader, written = os.pipe()
    child = os.fork()
    if not child:
        try:
            answers = [done.result()["version_id"], type(copy.copy(pending)).__name__]
            try:
                pending.result()
            except UsageError as error:
                answers.append("forked" in str(error))
            try:
                background.background_saves().wait()
            except UsageError:
                answers.append("waits")
            answers.append(Store(store.storage).save_model_async({"a": b"child"}).result()["size"])
            os.write(written, repr(answers).encode())
        finally:
            os._exit(0)
    os.close(written)
    assert os.read(reader, 1000).decode() == "[0, 'dict', True, 'waits', 5]"
    os.waitpid(child, 0)
    gate.open()
    assert pending.result()["version_id"] == 1


ENDS = {
    "return": "",
    "exit": "sys.exit(3)",
    "error": "1 / 0",
    "at exit": "atexit.register(lambda: store.save_model_async({'late': b'1' * 5_000_000}))",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_does_not_end_before_all_is_stored(tmp_path: Path, end: str) -> None:
    code = f"""
import atexit, sys, time
from metaflow_artifacts import open_store
store = open_store({str(tmp_path / "store")!r})
def slow(artifact):
    time.sleep(0.2)
    print(artifact["size"], flush=True)
    return artifact
for size in range(3):
    store.save_model_async({{"a": bytes(size * 1_000_000)}}, finish=slow)
{ENDS[end]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1000000", "2000000"], done.stderr
    assert done.returncode == {"exit": 3, "error": 1}.get(end, 0)
    from metaflow_artifacts import open_store

    assert len(list(open_store(tmp_path / "store").list())) == 3 + (end == "at exit")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_does_not_end_before_all_is_stored(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import multiprocessing, time
from metaflow_artifacts import open_store

def slow(artifact):
    time.sleep(0.2)
    return artifact

def work():
    for size in range(2):
        open_store({str(tmp_path / "store")!r}).save_model_async({{"a": bytes(size)}}, finish=slow)

if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=work)
    process.start()
    process.join()
"""
    )
    subprocess.run([sys.executable, script], check=True)
    from metaflow_artifacts import open_store

    assert len(list(open_store(tmp_path / "store").list())) == 2


def test_a_failure_that_nobody_has_seen_is_printed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    code = f"""
from metaflow_artifacts import open_store
open_store({str(tmp_path / "a file" / "store")!r}).save_model_async({{"a": b"1"}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a save in the background failed: " in done.stderr
    assert "a file" in done.stderr


def test_after_it_is_closed_nothing_is_taken_over(writer: CheckpointWriter, saves: BackgroundSaves) -> None:
    gate = Gate()
    save(writer, {"a": b"0"}, finish=gate)
    assert gate.reached.wait(240)
    assert not saves.close_when_done(0.01)
    saves.reopen()
    gate.open()
    assert saves.close_when_done(240)
    calling = threading.Thread(target=save, args=(writer, {"a": b"1"}))
    calling.start()
    calling.join(0.2)
    assert calling.is_alive()
    saves.reopen()
    calling.join(240)
    assert len(saves.wait()) == 2
