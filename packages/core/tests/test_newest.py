"""Which checkpoint is the newest depends on what the manifests say, and never on the storage's clock."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import pytest
from faultlib.memory import MemoryStorage
from faultlib.newest import find_latest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace
from metaflow_artifacts._format.manifest import Manifest, encode
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.checkpoints import latest_checkpoints, list_checkpoints, newest_first

PLACE = CheckpointPlace("F", "train", "a" * 12, "b" * 12)
BEGIN = 1_800_000_000.0
TEN_MINUTES = 600.0


@dataclass(frozen=True)
class Save:
    """One save: of which task, when it began and ended, by a clock that is wrong by so many seconds."""

    task: int
    attempt: int
    began: float
    took: float
    skew: float
    latest: bool


saves = st.lists(
    st.builds(
        Save,
        task=st.integers(0, 3),
        attempt=st.integers(0, 2),
        began=st.floats(0, 7200, width=16),
        took=st.floats(0, 100, width=16),
        skew=st.floats(-TEN_MINUTES, TEN_MINUTES, width=16),
        latest=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def id_of(pathspec: str) -> str:
    return hashlib.sha256(pathspec.encode()).hexdigest()[:8]


def artifact_of(save: Save, n: int) -> ModelArtifact:
    pathspec = f"F/1/train/{save.task}"
    key = CheckpointKey(PLACE, id_of(pathspec), save.attempt, "mfchckpt", n)
    created = datetime.fromtimestamp(BEGIN + save.began + save.took + save.skew, timezone.utc)
    fields = {
        "key": str(key),
        "uuid": key.filename,
        "type": "checkpoint",
        "pathspec": pathspec,
        "attempt": save.attempt,
        "created_on": created.isoformat(timespec="microseconds"),
        "size": 0,
        "url": f"memory/{key}",
        "metadata": {},
        "label": "l",
        "name": "mfchckpt",
        "version_id": n,
        "parents": [],
    }
    return cast(ModelArtifact, fields)


def build(saves: list[Save]) -> tuple[MemoryStorage, list[tuple[ModelArtifact, bool]]]:
    """A store as the saves left it: numbers in the order in which they began, times of when they ended."""
    storage = MemoryStorage()
    numbers: dict[tuple[int, int], int] = {}
    artifacts = []
    for save in sorted(saves, key=lambda one: one.began):
        n = numbers[save.task, save.attempt] = numbers.get((save.task, save.attempt), -1) + 1
        artifact = artifact_of(save, n)
        storage.put(artifact["key"], encode(Manifest(artifact, [], [], [], 1, b"", save.latest)))
        # Whole seconds, as S3 gives them.
        storage.times[artifact["key"]] = float(int(BEGIN + save.began + save.took))
        artifacts.append((artifact, save.latest))
    return storage, artifacts


def expected(artifacts: list[tuple[ModelArtifact, bool]]) -> str | None:
    """The rule of docs/format.md, said in another way."""
    tasks: dict[str, ModelArtifact] = {}
    for artifact, latest in artifacts:
        best = tasks.get(artifact["pathspec"])
        number = artifact["attempt"], artifact["version_id"]
        if latest and (best is None or number > (best["attempt"], best["version_id"])):
            tasks[artifact["pathspec"]] = artifact
    found = max(tasks.values(), key=lambda one: (one["created_on"], one["key"]), default=None)
    return found and found["key"]


@given(saves, st.randoms(use_true_random=False))
def test_any_order_of_commits_and_copies_gives_the_same(saves: list[Save], order: random.Random) -> None:
    storage, artifacts = build(saves)
    wanted = expected(artifacts)
    in_order = [artifact["key"] for artifact in newest_first(one for one, latest in artifacts if latest)]
    assert in_order[:1] == ([wanted] if wanted else [])
    copy = MemoryStorage()
    for number, key in enumerate(order.sample(list(storage.objects), len(storage.objects))):
        copy.put(key, storage.objects[key])
        copy.times[key] = BEGIN + 10**6 + number * order.choice([0, 1, 5000])
    for one in (storage, copy):
        store = Store(one)
        assert [artifact["key"] for artifact in latest_checkpoints(store, PLACE)] == in_order
        for task in range(4):
            pathspec = f"F/1/train/{task}"
            mine = [(artifact, latest) for artifact, latest in artifacts if artifact["pathspec"] == pathspec]
            found = find_latest(store, PLACE, id=id_of(pathspec), pathspec=pathspec)
            assert (found and found["key"]) == expected(mine)


@given(saves)
def test_a_list_has_the_same_order(saves: list[Save]) -> None:
    storage, artifacts = build(saves)
    listed = list_checkpoints(Store(storage), PLACE.prefix())
    assert listed == newest_first(artifact for artifact, _ in artifacts)


def test_one_head_is_read_of_each_task_that_may_be_the_newest() -> None:
    """100 tasks an hour apart, 10 checkpoints each: one read; of three within a quarter of an hour, three."""
    apart = [Save(task, 0, task * 3600.0 + n, 0, 0, True) for task in range(100) for n in range(10)]
    storage, artifacts = build(apart)
    assert find_latest(Store(storage), PLACE) == artifacts[-1][0]
    assert len(storage.reads) == 1
    close = [Save(task, 0, task * 100.0, 0, 0, True) for task in range(3)]
    storage, artifacts = build([*close, Save(3, 0, 9000.0, 0, 0, False)])
    assert find_latest(Store(storage), PLACE) == artifacts[2][0]
    assert len(storage.reads) == 4


@pytest.mark.parametrize("newest_first_copied", [True, False])
def test_a_store_that_is_copied_key_by_key_resumes_from_the_same(tmp_path: Path, newest_first_copied: bool) -> None:
    store = Store(LocalStorage(tmp_path / "store"))
    (tmp_path / "state").write_text("state")
    for run in range(3):
        pathspec = f"F/{run}/train/1"
        CheckpointWriter(store, PLACE, id_of(pathspec), 0, pathspec).save(tmp_path / "state", label="l")
    newest = find_latest(store, PLACE)
    assert newest is not None
    assert newest["pathspec"] == "F/2/train/1"
    copy = Store(LocalStorage(tmp_path / "copy"))
    keys = [artifact["key"] for artifact in list_checkpoints(store, PLACE.prefix())]
    for number, key in enumerate(keys if newest_first_copied else keys[::-1]):
        copy.storage.put(key, store.storage.get(key))
        os.utime(tmp_path / "copy" / key, (BEGIN + number * 3600, BEGIN + number * 3600))
    found = find_latest(copy, PLACE)
    assert found is not None
    assert found["key"] == newest["key"]
