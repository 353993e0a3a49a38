"""Deletes of many artifacts: in few requests, and in an order in which a run can be killed at any of them."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from faultlib import foreign
from faultlib.watched import ForwardingStorage

from metaflow_artifacts import Store
from metaflow_artifacts._cli import upkeep
from metaflow_artifacts._format.keys import CheckpointPlace, parse_key
from metaflow_artifacts._layout import CHECKPOINTS
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.numbering import highest_number
from metaflow_artifacts._upkeep.retain import Rules, execute_retention, plan_retention
from metaflow_artifacts.errors import InvalidReference
from metaflow_artifacts.testing.faults import FaultProxy


class Killed(BaseException):
    """Ends the process that deletes."""


def checkpoints(store: Store, file: Path, attempts: int, each: int, flow: str = "F") -> list[str]:
    """Save so many checkpoints in each of some attempts; every second one is not latest."""
    keys = []
    for attempt in range(attempts):
        place = CheckpointPlace(flow, "train", "0" * 12, f"{attempt % 3:012x}")
        writer = CheckpointWriter(store, place, f"{attempt:08x}", attempt % 2, f"{flow}/{attempt}/train/1", start=0)
        keys += [writer.save(file, label="l", latest=n % 2 == 0)["key"] for n in range(each)]
    return keys


def tombstones(store: Store) -> set[str]:
    return {info.key for info in store.storage.list(f"{CHECKPOINTS}/checkpoints/not_latest/")}


def tombstone(key: str) -> str:
    return key.replace("/artifacts/", "/not_latest/")


def highest(store: Store, key: str) -> int:
    parts: Any = parse_key(key)
    return highest_number(store.storage, parts.place, parts.id, parts.attempt)


@pytest.mark.parametrize("attempts", [3, 20])
def test_the_highest_number_of_each_attempt_leaves_its_tombstone(store: Store, file: Path, attempts: int) -> None:
    """With few attempts each is listed, with many what is around them."""
    keys = checkpoints(store, file, attempts, 3)
    kept = keys.pop(2)
    other = checkpoints(store, file, 1, 2, flow="Other")
    model = store.save_model(file)["key"]
    gone = "mf.models/models/artifacts/m_" + "0" * 32
    assert list(store.delete_all([*keys, gone, model, keys[0]])) == [*keys, model]
    last = {key for key in keys if key.endswith(".2")}
    assert tombstones(store) == {tombstone(key) for key in (*last, other[1])}
    assert {*store.list(f"{CHECKPOINTS}/checkpoints/artifacts/"), *store.list()} == {kept, *other}
    assert [highest(store, key) for key in keys] == [2] * len(keys)
    assert list(store.delete_all(keys)) == []


def test_a_malformed_key_deletes_nothing(store: Store, file: Path) -> None:
    key = store.save_model(file)["key"]
    with pytest.raises(InvalidReference):
        list(store.delete_all([key, "nothing"]))
    assert list(store.list()) == [key]


@pytest.mark.parametrize("others", [0, 20])
def test_those_of_metaflow_checkpoint_are_deleted_whole(store: Store, others: int) -> None:
    """A tar is an object at its key, like a manifest; of files there is none."""
    ours = [store.save_model({"a": b"content"})["key"] for _ in range(others + 1)]
    theirs = [foreign.save_model(store.storage, {"a": b"x"}, form, "odd label") for form in ("tar", "files")]
    theirs.append(foreign.save_model(store.storage, {"a": b"x"}))
    assert list(store.delete_all([*theirs, *ours])) == [*ours, *theirs]
    assert list(store.storage.list("mf.models")) == []


def test_the_requests_for_one_artifact(remote: Store, proxy: FaultProxy, file: Path, tmp_path: Path) -> None:
    """That the key may be one of metaflow-checkpoint costs none, unless nothing is there."""
    first, second = (remote.save_model({"a": b"content"}) for _ in range(2))

    def requests(call: Callable[[], object]) -> int:
        proxy.requests.clear()
        call()
        return len(proxy.requests)

    assert requests(lambda: remote.load(first["key"], tmp_path / "by key")) == 1
    assert requests(lambda: remote.load(first, tmp_path / "by reference")) == 1
    assert requests(lambda: remote.info(first)) == 1
    assert requests(lambda: remote.delete(first["key"])) == 2
    assert requests(lambda: remote.delete(second)) == 3
    assert list(remote.list()) == []


def test_a_command_that_deletes_many_makes_few_requests(
    remote: Store, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [remote.save_model({"a": b"content"})["key"] for _ in range(20)]
    theirs = foreign.save_model(remote.storage, {"a": b"content"})
    options = argparse.Namespace(execute=True, json=True)
    proxy.requests.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "resolve", lambda options, keys, patterns: (remote, keys))
        options.keys = [*ours, theirs]
        assert upkeep._delete(options) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == [*ours, theirs]
    assert len(proxy.requests) < 20
    assert list(remote.list()) == []


def test_retention_makes_few_requests(remote: Store, proxy: FaultProxy, file: Path) -> None:
    checkpoints(remote, file, 20, 5)
    plan = plan_retention(remote, Rules(last=0))
    assert len(plan.delete) == 100
    proxy.requests.clear()
    assert execute_retention(remote, plan).deleted == 100
    made = Counter(request.method for request in proxy.requests)
    # A tombstone for each attempt; four prefixes of needs, the artifacts and the tombstones are listed.
    assert made["PUT"] == 20
    assert made["POST"] == 2
    assert made["GET"] == 6
    assert set(made) == {"PUT", "POST", "GET"}
    assert len(tombstones(remote)) == 20


class MortalStorage(ForwardingStorage):
    """A storage whose process is killed right before one of the objects that it writes or removes."""

    left = 0
    threads = 1

    def before(self, operation: str, key: str) -> None:
        if operation == "put":
            if not self.left:
                raise Killed
            self.left -= 1

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.before("put", key)
            self.inner.delete([key])


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_no_number_is_given_again_wherever_a_run_is_killed(store: Store, file: Path) -> None:
    """And what is left still has the tombstone that says it is not latest; repeating the run removes the rest."""
    for left in range(11):
        keys = checkpoints(store, file, 2, 3, flow=f"Flow{left}")
        mortal = MortalStorage(store.storage)
        mortal.left = left
        # Two tombstones are written, six manifests and two tombstones removed.
        with nullcontext() if left == 10 else pytest.raises(Killed):
            list(Store(mortal).delete_all(keys))
        there = set(store.list(f"{CHECKPOINTS}/checkpoints/artifacts/Flow{left}/"))
        assert {tombstone(key) for key in there if key.endswith(".1")} <= tombstones(store)
        assert [highest(store, key) for key in keys] == [2] * 6
        assert list(store.delete_all(keys)) == [key for key in keys if key in there]
        assert [highest(store, key) for key in keys] == [2] * 6
