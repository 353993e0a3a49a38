"""Whatever two attempts of a task do, and wherever they are killed, the newest complete `latest` is what loads."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib.newest import find_latest
from faultlib.watched import ForwardingStorage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._storage import Storage, open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.checkpoints import latest_checkpoints, list_checkpoints
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK_SIZE = 16 << 10
PLACE = CheckpointPlace("F", "train", "a" * 12, "b" * 12)
ID = "0123abcd"
PATHSPEC = "F/1/train/2"
FOREIGN = "F/7/train/9"


class Killed(BaseException):
    """The process is gone."""


class MortalStorage(ForwardingStorage):
    """A storage whose process is killed right before one of its operations; nothing of it is done after that."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        # One after the other, so that the same number of operations is the same moment.
        self.threads = 1
        self.left: int | None = None
        self._lock = threading.Lock()

    def before(self, operation: str, key: str) -> None:
        with self._lock:
            if self.left is not None:
                if self.left <= 0:
                    raise Killed
                self.left -= 1


@dataclass
class Saved:
    attempt: int
    content: bytes
    latest: bool
    key: str


class TwoAttempts(RuleBasedStateMachine):
    """`complete` is what was committed, in order; the store must tell the same at any time."""

    open_storage: Callable[[], Storage]

    def __init__(self) -> None:
        super().__init__()
        self.storage = type(self).open_storage()
        self.mortal = [MortalStorage(self.storage) for _ in range(2)]
        self.writers = [self._process(attempt) for attempt in range(2)]
        self.reader = Store(self.storage, chunk_size=CHUNK_SIZE)
        self.complete: list[Saved] = []
        self.directory = Path(tempfile.mkdtemp(prefix="two-attempts-"))
        self.count = 0

    def _process(self, attempt: int) -> CheckpointWriter:
        store = Store(self.mortal[attempt], chunk_size=CHUNK_SIZE)
        return CheckpointWriter(store, PLACE, ID, attempt, PATHSPEC)

    def _source(self, size: int) -> tuple[Path, bytes]:
        self.count += 1
        # All of it differs from what was saved before, but for a part that every checkpoint shares.
        content = f"{self.count:08}".encode() * (size // 16) + b"shared  " * (size // 16)
        path = self.directory / "state"
        path.write_bytes(content)
        return path, content

    def _keys(self) -> set[str]:
        return {info.key for info in self.storage.list(PLACE.prefix())}

    attempts = st.integers(0, 1)
    sizes = st.sampled_from([0, 1600, 96 << 10, 160 << 10])
    names = st.sampled_from(["mfchckpt", "best"])

    @rule(attempt=attempts, size=sizes, latest=st.booleans(), name=names)
    def save(self, attempt: int, size: int, latest: bool, name: str) -> None:
        path, content = self._source(size)
        artifact = self.writers[attempt].save(path, name, label="l", latest=latest)
        self.complete.append(Saved(attempt, content, latest, artifact["key"]))

    @rule(attempt=attempts, size=sizes, latest=st.booleans(), name=names, operations=st.integers(0, 30))
    def save_and_be_killed(self, attempt: int, size: int, latest: bool, name: str, operations: int) -> None:
        path, content = self._source(size)
        before = self._keys()
        self.mortal[attempt].left = operations
        with suppress(Killed):
            self.writers[attempt].save(path, name, label="l", latest=latest)
        for key in self._keys() - before:
            # What is listed is complete, whether the save lived to tell or not.
            self.complete.append(Saved(attempt, content, latest, key))
        self.mortal[attempt].left = None
        self.writers[attempt] = self._process(attempt)

    @rule(size=sizes, latest=st.booleans())
    def another_task_saves(self, size: int, latest: bool) -> None:
        path, _ = self._source(size)
        CheckpointWriter(self.reader, PLACE, ID, 0, FOREIGN).save(path, "foreign", label="l", latest=latest)

    @precondition(lambda self: self.complete)
    @rule(data=st.data(), operations=st.none() | st.integers(0, 2))
    def delete(self, data: st.DataObject, operations: int | None) -> None:
        victim = data.draw(st.sampled_from(self.complete))
        self.mortal[0].left = operations
        with suppress(Killed):
            Store(self.mortal[0]).delete(victim.key)
        self.mortal[0].left = None
        if victim.key in self._keys():
            # A search may pass it over by now, but it is whole, and can be deleted again.
            assert self.reader.read_file(victim.key, "state") == victim.content
            self.reader.delete(victim.key)
        self.complete.remove(victim)

    def _in_order(self) -> list[Saved]:
        """The higher attempt is newer, whenever it saved; `complete` has the order within an attempt."""
        return sorted(self.complete, key=lambda saved: saved.attempt)

    @invariant()
    def the_newest_complete_latest_loads(self) -> None:
        for before in (1, 2):
            found = find_latest(self.reader, PLACE, id=ID, pathspec=PATHSPEC, before_attempt=before)
            expected = [saved for saved in self._in_order() if saved.latest and saved.attempt < before]
            assert (found and found["key"]) == (expected[-1].key if expected else None)
            if found:
                target = self.directory / "loaded"
                self.reader.load(found, target)
                assert (target / "state").read_bytes() == expected[-1].content

    @invariant()
    def all_that_is_complete_is_listed_and_nothing_else(self) -> None:
        listed = list_checkpoints(self.reader, PLACE.prefix() + ID, accept=_is_mine)
        assert [artifact["key"] for artifact in listed] == [saved.key for saved in reversed(self._in_order())]

    @invariant()
    def the_older_ones_come_in_order(self) -> None:
        found = latest_checkpoints(self.reader, PLACE, id=ID, pathspec=PATHSPEC)
        expected = [saved.key for saved in reversed(self._in_order()) if saved.latest]
        assert [artifact["key"] for artifact in found] == expected

    def teardown(self) -> None:
        for saved in self.complete:
            target = self.directory / "again"
            self.reader.load(saved.key, target)
            assert (target / "state").read_bytes() == saved.content
        shutil.rmtree(self.directory)


def _is_mine(artifact: ModelArtifact) -> bool:
    return artifact["pathspec"] == PATHSPEC


def run(open_: Callable[[], Storage], **limits: Any) -> None:
    machine = type("Machine", (TwoAttempts,), {"open_storage": staticmethod(open_)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **limits)
    )


def test_any_interleaving_on_disk(tmp_path: Path) -> None:
    run(lambda: open_storage(tmp_path / uuid4().hex), max_examples=30, stateful_step_count=20)


def test_any_interleaving_on_s3(s3_server: SeaweedServer) -> None:
    run(
        lambda: open_storage(f"{s3_server.root}/{uuid4().hex}", client=s3_server.client),
        max_examples=5,
        stateful_step_count=12,
    )


@pytest.mark.parametrize("latest", [True, False])
def test_killed_before_each_operation_in_turn(store: Store, tmp_path: Path, latest: bool) -> None:
    source = tmp_path / "state"
    source.write_bytes(bytes(96 << 10))
    CheckpointWriter(store, PLACE, ID, 0, PATHSPEC).save(source, label="l")
    for operations in range(100):
        source.write_bytes(b"".join(f"{operations:08}{n:08}".encode() for n in range(6 << 10)))
        before = list_checkpoints(store, PLACE.prefix())
        mortal = MortalStorage(store.storage)
        mortal.left = operations
        try:
            CheckpointWriter(Store(mortal, chunk_size=CHUNK_SIZE), PLACE, ID, 0, PATHSPEC).save(
                source, label="l", latest=latest
            )
        except Killed:
            after = list_checkpoints(store, PLACE.prefix())
            assert after[-len(before) :] == before
            found = find_latest(store, PLACE)
            assert found == (after if latest else before)[0 if latest else -1]
            continue
        break
    assert operations > 10
