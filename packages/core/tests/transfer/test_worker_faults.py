"""The process that stores the chunks of saves in the background, where something is wrong with it or around it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib.patient_worker import be_patient

from metaflow_artifacts import Progress, SaveOptions, SourceError, StorageError, Store, open_storage, open_store
from metaflow_artifacts._store import background
from metaflow_artifacts._store.background import BackgroundSaves
from metaflow_artifacts._transfer import worker, worker_process
from metaflow_artifacts._transfer.worker_messages import Alive, Failed, Stored
from metaflow_artifacts._transfer.worker_process import WorkerProcess
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20


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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the worker answers; None where it did not."""
    found: list[Any] = []
    run = WorkerProcess._run

    def noted(self: WorkerProcess, *args: Any) -> Any:
        found.append(None)
        found[-1] = run(self, *args)
        return found[-1]

    monkeypatch.setattr(WorkerProcess, "_run", noted)
    return found


def loaded(store: Store, reference: Any, target: Path) -> dict[str, bytes]:
    store.load(reference, target)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("by", ["a watch", "another answer"])
def test_the_answer_for_one_save_is_not_taken_for_another(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    often = "from metaflow_artifacts._transfer import worker\nworker._COUNT_S = 0\nmain("
    monkeypatch.setattr(worker_process, "_BOOT", worker_process._BOOT.replace("main(", often))
    contents = [{"x": os.urandom(2 * MIB)} for _ in range(4)]
    assert store.save_model_async(contents[0]).exception(240) is None
    if by == "a watch":

        def watch(progress: Progress) -> None:
            raise RuntimeError("the progress bar is broken")

        error = store.save_model_async(contents[1], progress=Progress(watch)).exception(240)
        assert str(error) == "the progress bar is broken"
    else:
        # It is interrupted between the question and the answer.
        with monkeypatch.context() as patched:
            patched.setattr(WorkerProcess, "_wait_for_message", lambda self, share: 1 / 0)
            patched.setattr(WorkerProcess, "close", lambda self: None)
            assert isinstance(store.save_model_async(contents[1]).exception(240), ZeroDivisionError)
    pending = [store.save_model_async(content) for content in contents[2:]]
    for number, one in enumerate(pending, 2):
        assert loaded(store, one.result(240), tmp_path / f"{number}") == contents[number]


def test_an_answer_that_lacks_chunks_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = WorkerProcess._run

    def short(self: WorkerProcess, *args: Any) -> Any:
        outcome = run(self, *args)
        assert isinstance(outcome, Stored)
        return replace(outcome, chunks=outcome.chunks[1:])

    monkeypatch.setattr(WorkerProcess, "_run", short)
    error = store.save_model_async({"a": os.urandom(MIB)}).exception(240)
    assert isinstance(error, StorageError)
    assert f"of {MIB}" in str(error)
    assert not list(store.list())


def test_empty_files_that_share_a_descriptor_are_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    monkeypatch.setattr("metaflow_artifacts._transfer.snapshot_parts._DESCRIPTORS", 3)
    tree = tmp_path / "tree"
    tree.mkdir()
    expected = {**{f"{number}": os.urandom(MIB) for number in range(2)}, **{f"empty{n}": b"" for n in range(4)}}
    for name, content in expected.items():
        (tree / name).write_bytes(content)
    pending = store.save_model_async(tree)
    assert loaded(store, pending.result(240), tmp_path / "loaded") == expected
    assert [type(outcome) for outcome in outcomes] == [Stored]


def test_what_fails_there_alone_is_stored_here_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    fails = "from metaflow_artifacts._storage.local import LocalStorage\nLocalStorage.identity = lambda self: 1 / 0\n"
    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(worker_process, "_BOOT", worker_process._BOOT.replace("main(", f"{fails}main("))
        store = open_store(tmp_path / "store")
        for number in range(2):
            content = {"a": os.urandom(2 * MIB)}
            pending = store.save_model_async(content, options=SaveOptions(tell=told.append))
            assert loaded(store, pending.result(240), tmp_path / f"{number}") == content
    assert [type(outcome) for outcome in outcomes] == [Failed]
    assert len(told) == 1
    assert "ZeroDivisionError" in told[0]


def test_what_fails_here_too_has_the_error_of_a_plain_save(tmp_path: Path, outcomes: list[Any]) -> None:
    (tmp_path / "a file").write_bytes(b"")
    broken = open_store(tmp_path / "a file" / "store")
    told: list[str] = []
    content = {"a": os.urandom(2 * MIB)}
    with pytest.raises(StorageError) as here:
        broken.save_model(content)
    for _ in range(2):
        error = broken.save_model_async(content, options=SaveOptions(tell=told.append)).exception(240)
        assert type(error) is StorageError
        assert str(error) == str(here.value)
    # Nothing says that the worker is what is wrong.
    assert [type(outcome) for outcome in outcomes] == [Failed, Failed]
    assert told == []


def test_an_error_of_the_source_is_not_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    monkeypatch.setattr("metaflow_artifacts._store.store.store_chunks", lambda *args, **kwargs: 1 / 0)
    run = WorkerProcess._run
    monkeypatch.setattr(WorkerProcess, "_run", lambda *args: Failed(run(*args).job, SourceError("it keeps changing")))
    error = store.save_model_async({"a": os.urandom(MIB)}).exception(240)
    assert isinstance(error, SourceError)


def test_an_s3_client_is_made_there_as_it_was_here(
    s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", "bundle.pem")
    store = Store(open_storage(f"{s3_server.root}/{uuid4().hex}"))
    content = {"a": os.urandom(2 * MIB)}
    saved = store.save_model(content)
    verify = pickle.loads(WorkerProcess()._handed_over.find(store.storage)[1]).open.args[1].verify
    assert verify == str(tmp_path / "bundle.pem")
    # It is made already.
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    content = {"a": os.urandom(2 * MIB)}
    saved = store.save_model_async(content).result(240)
    assert [type(outcome) for outcome in outcomes] == [Stored]
    assert loaded(store, saved, tmp_path / "loaded") == content


def pid_of(saves: BackgroundSaves) -> int:
    process = saves._worker_process._process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("files", [1, 2000])
@pytest.mark.parametrize("is_awaited", [True, False])
def test_one_that_is_stopped_is_given_up(
    store: Store,
    tmp_path: Path,
    saves: BackgroundSaves,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    is_awaited: bool,
) -> None:
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    os.kill(pid_of(saves), signal.SIGSTOP)
    monkeypatch.setattr(worker_process, "_SILENCE_S" if is_awaited else "_LONGEST_SILENCE_S", 0.01)
    monkeypatch.setattr(worker_process, "_LOOK_S", 0.01)
    # What is sent of many files does not fit into the channel.
    monkeypatch.setattr(worker_process, "_CALL_S", 0.01)
    content = {f"{number}": os.urandom(MIB // files + 1) for number in range(files)}
    told: list[str] = []
    pending = store.save_model_async(content, options=SaveOptions(tell=told.append))
    while not is_awaited and not pending.done():
        time.sleep(0.01)
    assert loaded(store, pending.result(240), tmp_path / "loaded") == content
    assert saves._worker_process._process is None
    assert len(told) == 1
    assert "does not answer" in told[0]


def test_one_that_is_never_ready_is_given_up(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_BOOT", "import time; time.sleep(600)")
    monkeypatch.setattr(worker_process, "_LOOK_S", 0.01)
    monkeypatch.setattr(worker_process, "_READY_S", 0.01)
    content = {"a": os.urandom(MIB)}
    pending = store.save_model_async(content)
    assert loaded(store, pending.result(240), tmp_path / "loaded") == content


def test_one_that_stores_says_that_it_lives(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    # Its storage hangs until there is a file.
    hangs = f"""
import os, time
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts._transfer import worker
identity, worker._LOOK_S = LocalStorage.identity, 0.01
def waiting(self):
    while not os.path.exists({str(tmp_path / "go")!r}):
        time.sleep(0.01)
    return identity(self)
LocalStorage.identity = waiting
main("""
    monkeypatch.setattr(worker_process, "_BOOT", worker_process._BOOT.replace("main(", hangs))
    signs: list[Any] = []
    receive = WorkerProcess._receive

    def noted(self: WorkerProcess) -> Any:
        message = receive(self)
        signs.extend([message] * isinstance(message, Alive))
        if len(signs) == 5:
            (tmp_path / "go").touch()
        return message

    monkeypatch.setattr(WorkerProcess, "_receive", noted)
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    assert len(signs) >= 5
    assert [type(outcome) for outcome in outcomes] == [Stored]


def test_in_a_hurry_it_is_stored_here(store: Store, tmp_path: Path, saves: BackgroundSaves) -> None:
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    worker = pid_of(saves)
    # It stands for one that gets no processor.
    os.kill(worker, signal.SIGSTOP)
    pending = [store.save_model_async({"a": bytes([number]) * MIB}) for number in range(2)]
    saves.hurry()
    for number, one in enumerate(pending):
        assert loaded(store, one.result(240), tmp_path / f"{number}") == {"a": bytes([number]) * MIB}
    assert saves._worker_process._process is None
    saves.reopen()
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    assert pid_of(saves) != worker


def test_one_that_has_nothing_to_do_does_not_stay_for_long() -> None:
    # Code that waits for all children of its process waits for this one too.
    assert worker._IDLE_S <= 10


def test_a_signal_before_it_has_begun_does_not_end_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    early = "import os, signal\nfor number in (1, 2, 3, 10, 12, 15): os.kill(os.getpid(), number)\n"
    monkeypatch.setattr(worker_process, "_BOOT", early + worker_process._BOOT)
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    assert [type(outcome) for outcome in outcomes] == [Stored]


def test_one_that_was_lost_twice_is_used_later(
    store: Store, saves: BackgroundSaves, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    told: list[str] = []
    options = SaveOptions(tell=told.append)
    with monkeypatch.context() as patched:
        patched.setattr(worker_process, "_BOOT", "import os; os.kill(os.getpid(), 9)")
        for _ in range(2):
            assert store.save_model_async({"a": os.urandom(MIB)}, options=options).exception(240) is None
    assert outcomes == [None]
    # Some minutes later.
    monkeypatch.setattr(saves._worker_process, "_rests_until", saves._worker_process._rests_until - 300)
    assert store.save_model_async({"a": os.urandom(MIB)}, options=options).exception(240) is None
    assert [type(outcome) for outcome in outcomes[1:]] == [Stored]
    assert len(told) == 1


def test_its_modules_are_those_of_python_wherever_this_process_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]
) -> None:
    mine, gone = tmp_path / "mine", tmp_path / "gone"
    mine.mkdir()
    gone.mkdir()
    for name in ("queue", "mmap"):
        (mine / f"{name}.py").write_text("raise RuntimeError('not that one')")
    monkeypatch.setattr(sys, "path", [str(mine), "", "a\0b", "\ud800", *sys.path])
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert store.save_model_async({"a": os.urandom(MIB)}).exception(240) is None
    assert [type(outcome) for outcome in outcomes] == [Stored]


def test_very_many_files_are_stored_here(store: Store, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]) -> None:
    monkeypatch.setattr(worker_process, "_MOST_FILES", 3)
    for files in (4, 3):
        content = {f"{number}": os.urandom(MIB) for number in range(files)}
        assert store.save_model_async(content).exception(240) is None
        assert len(outcomes) == (files == 3)
