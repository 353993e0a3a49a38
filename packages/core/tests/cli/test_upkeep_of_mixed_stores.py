"""The commands that keep a store whole and small, in stores that hold more than what this version has written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultlib import foreign

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import NEEDS
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter

Run = Callable[..., Any]
CHUNK = 64 << 10


@pytest.fixture
def keys(store: Store, tmp_path: Path) -> dict[str, str]:
    """A model that is stored as chunks, and two checkpoints, by name."""
    (tmp_path / "weights").write_bytes(bytes(2 * CHUNK))
    base = store.save_model(tmp_path / "weights", "base")
    (tmp_path / "weights").write_bytes(b"small")
    writer = CheckpointWriter(
        store, CheckpointPlace("TrainFlow", "train", "0" * 12, "1" * 12), "0" * 8, 0, "TrainFlow/1/train/2"
    )
    first, second = (writer.save(tmp_path / "weights", label="l") for _ in range(2))
    return {"base": base["key"], "first": first["key"], "second": second["key"]}


def test_gc_says_what_the_grace_period_keeps(run: Run, store: Store, keys: dict[str, str]) -> None:
    """Else nothing tells why a gc after a delete frees nothing."""
    assert "grace" not in run("gc").out
    store.delete(keys["base"])
    for options in ((), ("--execute",)):
        out = run("gc", *options).out
        assert "in the store, for 2 artifacts\n" in out
        assert re.search(
            r"kept 1 chunk of 64 KiB that no artifact needs: written or needed within the grace period of 7d; "
            r"gc can remove them after \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n",
            out,
        )
    stats = run("gc", "--json").json
    assert (stats["artifacts"], stats["removed"]) == (2, 0)
    waiting = stats["waiting"]
    assert (waiting["chunks"], waiting["size"]) == (1, CHUNK)
    assert waiting["first"] == waiting["last"] > time.time() + 6 * 24 * 3600


def test_gc_says_that_a_versioned_bucket_keeps_what_was_removed(
    run: Run, store: Store, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "keeps versions: what gc removes takes space until a lifecycle rule"
    assert note not in run("gc").out
    monkeypatch.setattr(type(store.storage), "keeps_versions", lambda storage: True, raising=False)
    assert note in run("gc").out
    assert run("gc", "--json").json["keeps_versions"] is True


def test_what_is_not_understood(run: Run, store: Store, keys: dict[str, str]) -> None:
    """gc and retain refuse and tell the way out; the others go on."""
    stray = "mf.checkpoints/checkpoints/artifacts/old/x.tar"
    store.storage.put(stray, b"?")
    for command in (("gc",), ("gc", "--execute"), ("retain", "--last", "1")):
        refused = run(*command)
        assert refused.code == 2
        assert refused.out == ""
        assert f"{stray}; upgrade" in refused.err
        assert refused.err.count("\n") == 1
        assert run(*command, "--ignore", "mf.checkpoints/checkpoints/artifacts/old").code == 0
    assert run("gc", "--ignore", "").code == 2
    checked = run("check")
    assert checked.code == 0
    assert f"note: {stray}: not understood" in checked.out
    assert run("check", "--json").json["notes"][0]["keys"] == [stray]
    for command in (("ls",), ("du",), ("delete", keys["base"])):
        assert run(*command).code == 0


def test_a_store_that_needs_a_later_version(run: Run, store: Store, keys: dict[str, str]) -> None:
    store.storage.put(f"{NEEDS}rounds.0.3.0", b"")
    for command in (("gc",), ("gc", "--execute"), ("retain", "--last", "1"), ("retain", "--last", "1", "--execute")):
        refused = run(*command)
        assert refused.code == 2
        assert "'rounds' (metaflow-artifacts 0.3.0 and later know it); upgrade metaflow-artifacts" in refused.err
    checked = run("check")
    assert checked.code == 0
    assert "note: mf.artifacts/needs/rounds.0.3.0: the store uses 'rounds'" in checked.out
    for command in (("ls",), ("du",), ("show", keys["base"]), ("delete", keys["base"])):
        assert run(*command).code == 0


def test_beside_metaflow_checkpoint(run: Run, store: Store, keys: dict[str, str]) -> None:
    theirs = [foreign.save_model(store.storage, {"f": b"x"}), foreign.save_checkpoint(store.storage, {"f": b"x"})]
    before = run("ls", "--json")
    assert before.code == 0
    assert {artifact["key"] for artifact in before.json} == {*keys.values(), *theirs}
    assert run("du").code == 0
    assert run("gc", "--execute").code == 0
    checked = run("check")
    assert checked.code == 0
    assert "note: 2 artifacts of metaflow-checkpoint, which have no digests" in checked.out
    assert store.storage.stat(theirs[0]) is not None
