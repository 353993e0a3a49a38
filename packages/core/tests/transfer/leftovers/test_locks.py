"""Loads that run at the same time: none takes from another what that still uses."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest
from faultlib.leftovers import (
    PACKED,
    SIZE,
    content,
    fill,
    left,
    load,
    stages,
)

from metaflow_artifacts import ModelArtifact, Store
from metaflow_artifacts._transfer import locks
from metaflow_artifacts._transfer.staging import left_stages, make_stage


def test_a_forked_child_keeps_no_lock(target: Path) -> None:
    target.mkdir()
    stage = make_stage(str(target))
    child_lives, parent_lives = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_lives[1])
        os.write(child_lives[1], b".")
        os.read(parent_lives[0], 1)
        os._exit(0)
    try:
        os.read(child_lives[0], 1)
        stage.leave()
        (found,) = left_stages(str(target))
        found.remove()
    finally:
        for end in (*child_lives, *parent_lives):
            os.close(end)
        os.waitpid(child, 0)


def test_a_load_that_runs_keeps_its_private_directory(
    store: Store, saved: ModelArtifact, tree: Path, target: Path
) -> None:
    target.mkdir()
    running = make_stage(str(target))
    fill(running, tree)
    assert load(store, saved, target) == 0
    assert stages(target) == [Path(running.files).parent.name]
    assert {name: data for name, (data, _) in content(Path(running.files)).items()} == {
        name: data for name, (data, _) in content(tree).items()
    }
    # One thread of it still writes.
    with running.used():
        running.leave()
        assert list(left_stages(str(target))) == []
    (found,) = left_stages(str(target))
    assert found.files == running.files
    assert list(left_stages(str(target))) == []
    found.remove()
    assert stages(target) == []


def test_a_lock_that_another_load_has_removed_meanwhile_is_not_had(
    saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = left(target, tree, saved).parent
    (lock,) = stage.glob("lock-*")
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        lock.unlink()
        lock.touch()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert list(left_stages(str(target))) == []


def test_many_loads_at_once_into_one_directory(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    left(target, tree, saved)
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def run() -> None:
        barrier.wait()
        try:
            for _ in range(5):
                load(store, saved, target)
                (target / "sub" / "weights").unlink(missing_ok=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    load(store, saved, target)
    assert content(target) == fresh


def test_what_another_machine_may_have_left_is_not_touched(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system is local, it was this machine, before it was started again."""
    monkeypatch.setattr(locks, "_kernel", lambda: "before")
    monkeypatch.setattr(locks, "_is_local", lambda path: True)
    left(target, tree, saved)
    monkeypatch.setattr(locks, "_kernel", lambda: "now")
    assert load(store, saved, target) == SIZE + PACKED
    shutil.rmtree(target)
    monkeypatch.setattr(locks, "_kernel", lambda: "another")
    monkeypatch.setattr(locks, "_is_local", lambda path: False)
    stage = left(target, tree, saved).parent
    monkeypatch.setattr(locks, "_kernel", lambda: "now")
    assert load(store, saved, target) == 0
    assert stages(target) == [stage.name]
    assert (stage / "files" / "sub" / "weights").read_bytes() == (tree / "sub" / "weights").read_bytes()


def test_without_locks_nothing_is_taken_over(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        stage = left(target, tree, saved).parent
        assert os.listdir(stage) == ["files"]
        assert load(store, saved, target) == 0
        assert stages(target) == [stage.name]
    assert load(store, saved, target) == SIZE + PACKED
    assert stages(target) == [stage.name]
