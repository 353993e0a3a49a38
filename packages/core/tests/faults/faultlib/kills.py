"""Kills a process at each moment of a save, load, gc…, and examines what it has left. Run as a program:

    PYTHONPATH=packages/core/tests/faults python -m faultlib.kills SCENARIO STORE DIRECTORY [--random N]

STORE is `local`, or the root of a store in S3, which boto3's environment must lead to. For each moment a child is
forked, kills itself there by SIGKILL, and the parent examines the store. Prints how often, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faultlib.newest import find_latest
from faultlib.outcomes import content
from faultlib.watched import Watched
from metaflow_artifacts import ArtifactNotFound, Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import CHECKPOINTS, GC_MARKS, MODEL_ARTIFACTS, TOMBSTONES, checkpoint_prefix
from metaflow_artifacts._storage import LocalStorage, open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer import gc_marks
from metaflow_artifacts._transfer.staging import STAGING_PREFIX
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import execute_gc, plan_gc
from metaflow_artifacts._upkeep.retain import Rules, execute_retention, plan_retention

CHUNK = 64 << 10
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)

_CALLS = ("open", "write", "copy_file_range", "replace", "rename", "link", "unlink", "utime", "mkdir", "rmdir")


class Scenario:
    """An action, and what must hold after it was done in part."""

    def __init__(self, store: Store, work: Path, chunks: int) -> None:
        self.store = store
        self.work = work
        self.finished = 0
        self.unfinished = 0
        tree = self.tree = work / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "weights.bin").write_bytes(random.randbytes(chunks * CHUNK + 5))
        (tree / "sub" / "b.bin").write_bytes(random.randbytes(CHUNK))
        for number in range(5):
            (tree / "sub" / f"{number}.txt").write_text(f"{number} " * number)
        (tree / "empty").mkdir()
        self.expected = content(tree)
        # Something else is in the store, and shares a chunk.
        other = work / "other"
        other.mkdir()
        shutil.copy(tree / "sub" / "b.bin", other)
        self.other = store.save_model(other)["key"]
        self.prepare()
        self.baseline = self.objects()

    def objects(self) -> set[str]:
        """All objects in the store, temporary files too, except for gc marks."""
        if isinstance(self.store.storage, LocalStorage):
            root = Path(self.store.root)
            found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        else:
            found = {info.key for info in self.store.storage.list("")}
        return {key for key in found if not key.startswith(GC_MARKS)}

    def prepare(self) -> None:
        """Before the first time."""

    def before(self) -> None:
        """Before each time."""

    def act(self, store: Store) -> None:
        """In the child."""
        raise NotImplementedError

    def after(self) -> bool:
        """In the parent, after each time: whether the child's work was complete."""
        raise NotImplementedError

    def examine(self) -> None:
        """What must hold after every kill."""
        report = check(self.store, read=True)
        assert report.ok, report.problems
        if self.after():
            self.finished += 1
        else:
            self.unfinished += 1
        execute_gc(self.store, plan_gc(self.store, grace=0, exclusive=True))
        expected = self.baseline | self.tombstones()
        assert self.objects() == expected, self.objects() ^ expected

    def tombstones(self) -> set[str]:
        """What keeps numbers from being reused: the tombstone of the attempt's highest number, which was deleted."""
        return set()

    def load(self, key: str) -> None:
        """Load an artifact, and compare."""
        target = self.work / "loaded"
        self.store.load(key, target)
        assert content(target) == self.expected
        shutil.rmtree(target)


class Save(Scenario):
    """A model."""

    def act(self, store: Store) -> None:
        store.save_model(self.tree)

    def after(self) -> bool:
        done = [key for key in self.store.list() if key != self.other]
        for key in [*done, self.store.save_model(self.tree)["key"]]:
            self.load(key)
            self.store.delete(key)
        assert len(done) < 2
        return bool(done)


class Checkpoints(Scenario):
    """Checkpoints of one attempt. A number is never given twice."""

    highest = -1

    def prepare(self) -> None:
        # The first checkpoint in a store tests the server, which leaves an object.
        self.store.storage.require_put_if_absent()

    def save(self, store: Store, *, latest: bool) -> str:
        """The next checkpoint: its key."""
        return CheckpointWriter(store, PLACE, "0" * 8, 0).save(self.tree, label="l", latest=latest)["key"]

    def note(self, *keys: str) -> None:
        """Keys of checkpoints that were just saved: each has a number that none had before."""
        numbers = [int(key.rpartition(".")[2]) for key in keys]
        assert numbers == [self.highest + 1 + count for count in range(len(keys))]
        self.highest = numbers[-1]
        self.last = keys[-1]

    def tombstones(self) -> set[str]:
        return {self.last.replace("/artifacts/", "/not_latest/")}


class Checkpoint(Checkpoints):
    """A checkpoint with `latest=False`, after one with `latest=True`."""

    def prepare(self) -> None:
        self.latest = self.save(self.store, latest=True)
        self.note(self.latest)

    def act(self, store: Store) -> None:
        self.save(store, latest=False)

    def after(self) -> bool:
        found = find_latest(self.store, PLACE)
        assert found is not None
        assert found["key"] == self.latest
        done = [info.key for info in self.store.storage.list(PLACE.prefix()) if info.key != self.latest]
        keys = [*done, self.save(self.store, latest=False)]
        self.note(*keys)
        for key in keys:
            self.load(key)
            self.store.delete(key)
        return bool(done)


class Load(Scenario):
    """Into a directory that holds an earlier version, and another file."""

    def prepare(self) -> None:
        self.key = self.store.save_model(self.tree)["key"]
        self.target = self.work / "target"

    def before(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        (self.target / "sub").mkdir(parents=True)
        (self.target / "weights.bin").write_bytes(b"old")
        (self.target / "sub" / "3.txt").write_bytes(b"old")
        (self.target / "sub" / "mine").write_bytes(b"mine")

    def act(self, store: Store) -> None:
        store.load(self.key, self.target)

    def after(self) -> bool:
        found = {
            path: value
            for path, value in content(self.target).items()
            if not path.startswith(os.fsencode(STAGING_PREFIX))
        }
        assert found.pop(b"sub/mine") == b"mine"
        complete = found == self.expected
        for path, value in found.items():
            old = path in (b"weights.bin", b"sub/3.txt") and value == b"old"
            assert old or value == self.expected[path], path
        self.store.load(self.key, self.target)
        assert not [name for name in os.listdir(self.target) if name.startswith(STAGING_PREFIX)]
        now = content(self.target)
        assert {path: now[path] for path in self.expected} == self.expected
        return complete


class Gc(Scenario):
    """Half of what is stored is garbage."""

    def before(self) -> None:
        self.kept = self.store.save_model(self.tree)["key"]
        (self.work / "garbage").write_bytes(random.randbytes(6 * CHUNK))
        self.store.delete(self.store.save_model(self.work / "garbage"))

    def act(self, store: Store) -> None:
        execute_gc(store, plan_gc(store, grace=0, exclusive=True))

    def after(self) -> bool:
        self.load(self.kept)
        needed = {chunk.sha256 for key in self.store.list() for chunk in self.store.manifest(key).chunks}
        stored = sum(1 for _ in self.store.storage.list("mf.artifacts/chunks/"))
        again = self.store.save_model(self.work / "garbage")
        self.store.load(again, self.work / "loaded")
        assert (self.work / "loaded" / "garbage").read_bytes() == (self.work / "garbage").read_bytes()
        shutil.rmtree(self.work / "loaded")
        for key in (self.kept, again["key"]):
            self.store.delete(key)
        return stored == len(needed)


class Delete(Checkpoints):
    """A checkpoint with a tombstone that others follow, and the last one, which has none."""

    def before(self) -> None:
        self.keys = [self.save(self.store, latest=False), self.save(self.store, latest=True)]
        self.note(*self.keys)

    def act(self, store: Store) -> None:
        for key in self.keys:
            store.delete(key)

    def after(self) -> bool:
        left = []
        for key in self.keys:
            with contextlib.suppress(ArtifactNotFound):
                self.load(key)
                left.append(key)
        # A tombstone that stayed hides no later checkpoint, and a deleted number is not given again.
        keys = [self.save(self.store, latest=latest) for latest in (True, False)]
        self.note(*keys)
        found = find_latest(self.store, PLACE)
        assert found is not None
        assert found["key"] == keys[0]
        for key in [*left, *keys]:
            self.store.delete(key)
        return not left


class Retain(Checkpoints):
    """The last of five stays."""

    def before(self) -> None:
        self.keys = [self.save(self.store, latest=True) for _ in range(5)]
        self.note(*self.keys)

    def act(self, store: Store) -> None:
        execute_retention(store, plan_retention(store, Rules(last=1)))

    def after(self) -> bool:
        left = [info.key for info in self.store.storage.list(PLACE.prefix())]
        assert self.keys[-1] in left
        for key in left:
            self.load(key)
            self.store.delete(key)
        return len(left) == 1


class Copy(Checkpoints):
    """A model and two checkpoints, from another store on the same disk or server."""

    def prepare(self) -> None:
        super().prepare()
        self.source = Store(open_storage(self.store.root + "-source"), chunk_size=CHUNK)
        self.keys = [
            self.source.save_model(self.tree)["key"],
            *(self.save(self.source, latest=latest) for latest in (True, False)),
        ]
        self.note(*self.keys[1:])

    def act(self, store: Store) -> None:
        self.source.copy_to(store, self.keys)

    def after(self) -> bool:
        prefixes = (MODEL_ARTIFACTS, checkpoint_prefix(CHECKPOINTS))
        there = {key for prefix in prefixes for key in self.store.list(prefix)} - {self.other}
        # The checkpoints of the attempt are an older state of the source. The model has nothing to do with them.
        checkpoints = [key for key in self.keys[1:] if key in there]
        assert checkpoints == self.keys[1 : 1 + len(checkpoints)]
        complete = there == set(self.keys)
        result = self.source.copy_to(self.store, self.keys)
        assert result.present == tuple(key for key in self.keys if key in there)
        assert result.copied == tuple(key for key in self.keys if key not in there)
        assert result.sent == sum(len(self.store.storage.get(key)) for key in result.copied)
        found = find_latest(self.store, PLACE)
        assert found is not None
        assert found["key"] == self.keys[1]
        assert {info.key for info in self.store.storage.list(PLACE.prefix(TOMBSTONES))} == self.tombstones()
        for key in self.keys:
            self.load(key)
        # The highest number last: its tombstone is what remains.
        for key in self.keys:
            self.store.delete(key)
        return complete


SCENARIOS = {one.__name__.lower(): one for one in (Save, Checkpoint, Load, Gc, Delete, Retain, Copy)}


class Countdown:
    """Counts calls from any thread, and kills the process before the one that is `left` calls away."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.lock = threading.Lock()

    def __call__(self, *_: object) -> None:
        with self.lock:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self()
            return call(*arguments, **options)

        return counted


def child(scenario: Scenario, store: Store, moment: int | None) -> int:
    """Fork one that does the scenario, and dies before its operation number `moment`: its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if moment is not None:
            countdown = Countdown(moment)
            if isinstance(store.storage, LocalStorage):
                for name in _CALLS:
                    setattr(os, name, countdown.before(getattr(os, name)))
            else:
                store = Store(Watched(store.storage, countdown), chunk_size=CHUNK)
        scenario.act(store)
    except BaseException as error:
        print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("store")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--random", type=int, default=0, help="so many kills at moments that a clock chooses")
    parser.add_argument("--step", type=int, default=1, help="how many operations lie between two moments")
    options = parser.parse_args()
    gc_marks.LEASE_S = 0.2
    root = str(options.directory / "store") if options.store == "local" else options.store
    store = Store(open_storage(root), chunk_size=CHUNK)
    scenario = SCENARIOS[options.scenario](store, options.directory, 100 if options.random else 3)
    kills, moment, longest = 0, 0, 0.0
    while True:
        scenario.before()
        began = time.monotonic()
        pid = child(scenario, store, None if options.random else moment)
        pause = random.uniform(0, longest)
        if pause:
            time.sleep(pause)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or os.WEXITSTATUS(status) == 0, "see above"
        if options.random and not killed:
            # It takes no longer than this; the first time, it may have taken much longer.
            longest = pause or time.monotonic() - began
        scenario.examine()
        kills += killed
        moment += options.step
        if moment > options.random if options.random else not killed:
            break
    print(json.dumps({"kills": kills, "finished": scenario.finished, "unfinished": scenario.unfinished}))


if __name__ == "__main__":
    main()
