"""The command that copies artifacts to another store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib import foreign

from metaflow_artifacts import Store
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store import copying
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

Run = Callable[..., Any]


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "target"))


def listed(store: Store) -> set[str]:
    return {key for prefix in ARTIFACT_PREFIXES for key in store.list(prefix)}


def test_copy(run: Run, target: Store, keys: dict[str, str]) -> None:
    shown = run("copy", keys["first"], "--to", target.root)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == f"copied {keys['first']}"
    assert f"1 artifact copied to {target.root}, a new store; 64 KiB copied by the service" in shown.out
    again = run("copy", keys["first"], keys["second"], "--lineage", "--verify", "--to", target.root)
    assert again.code == 0
    assert f"2 artifacts copied to {target.root}; 1 was there already; 19 B copied by the service" in again.out
    assert listed(target) == {keys[name] for name in ("base", "first", "second")}
    assert run("ls", "--json", root=target.root).json == [
        {**one, "url": f"{target.root}/{one['key']}"}
        for one in run("ls", "--json").json
        if one["key"] in listed(target)
    ]


def test_copy_prints_json(run: Run, store: Store, target: Store, keys: dict[str, str]) -> None:
    store.delete(keys["base"])
    shown = run("copy", keys["second"], "--lineage", "--to", target.root, "--json").json
    assert shown == {
        "to": target.root,
        "copied": [keys["first"], keys["second"]],
        "present": [],
        "missing_parents": [keys["base"]],
        "failed": {},
        "stopped": None,
        "sent": sum(len(store.storage.get(keys[name])) for name in ("first", "second")),
        "by_service": (64 << 10) + 19,
    }
    assert f"note: {keys['base']}, which others" in run("copy", keys["second"], "--lineage", "--to", target.root).out


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", {"base", "first", "second", "stranger"}),
        ("mf.models/*", {"base", "stranger"}),
        ("mf.checkpoints/*/TrainFlow/*", {"first", "second"}),
        ("*/base_????????????????????????????????", {"base"}),
        ("mf.models/models/artifacts/[b]*", {"base"}),
    ],
)
def test_copy_takes_patterns(run: Run, target: Store, keys: dict[str, str], pattern: str, names: set[str]) -> None:
    assert run("copy", pattern, "--to", target.root).code == 0
    assert listed(target) == {keys[name] for name in names}
    assert check(target, read=True).ok


def test_a_pattern_and_a_key_may_come_as_a_url(run: Run, store: Store, target: Store, keys: dict[str, str]) -> None:
    texts = [f"{store.root}/{keys['first']}", f"{store.root}/mf.models/models/artifacts/base*"]
    assert run("copy", *texts, "--to", target.root, root=None).code == 0
    assert listed(target) == {keys["first"], keys["base"]}


def test_a_pattern_that_nothing_matches(run: Run, store: Store, target: Store, keys: dict[str, str]) -> None:
    found = run("copy", "mf.models/*/nothing_*", "--to", target.root)
    assert found.code == 1
    assert f"{store.root}: no artifact has a key that matches 'mf.models/*/nothing_*'" in found.err
    assert not Path(target.root).exists()


@pytest.mark.parametrize("pattern", ["s3://bucket/x/*", "{store}/*", "{store}/mf.models/*", "./x/mf.models/*", "x*"])
def test_a_pattern_that_no_key_can_match(
    run: Run, store: Store, target: Store, keys: dict[str, str], pattern: str
) -> None:
    found = run("copy", pattern.format(store=store.root), "--to", target.root)
    assert found.code == 2
    assert "no key begins like this pattern" in found.err
    assert "--root" in found.err


@pytest.mark.parametrize("json", [True, False])
def test_what_was_copied_before_an_error_of_the_storage_is_told(
    run: Run, target: Store, keys: dict[str, str], json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BATCH", 1)
    Path(target.root).mkdir()
    (Path(target.root) / "mf.checkpoints").write_text("a file where a directory is needed")
    found = run("copy", keys["base"], keys["first"], "--to", target.root, *(["--json"] if json else []))
    assert found.code == 2
    assert "a file lies where a directory is needed" in found.err
    assert listed(target) == {keys["base"]}
    if json:
        assert found.json["copied"] == [keys["base"]]
        assert "a file lies where a directory is needed" in found.json["stopped"]
    else:
        assert f"copied {keys['base']}" in found.out


def test_what_cannot_be_copied_is_named_and_the_rest_is_copied(
    run: Run, store: Store, target: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "more").write_bytes(os.urandom(100_000))
    damaged = store.save_model(tmp_path / "more")["key"]
    chunk = chunk_key(store.manifest(damaged).chunks[0].sha256)
    store.storage.put(chunk, os.urandom(64 << 10))
    found = run("copy", "*", "--to", target.root)
    assert found.code == 1
    (line,) = found.err.splitlines()
    for name in (damaged, store.root, target.root, chunk):
        assert name in line
    assert listed(target) == set(keys.values())
    target.storage.put(keys["base"], b"another")
    found = run("copy", "*", "--to", target.root, "--json")
    assert found.code == 2
    assert set(found.json["failed"]) == {damaged, keys["base"]}
    assert "another artifact has this key" in found.json["failed"][keys["base"]]


def test_artifacts_of_metaflow_checkpoint_become_ours(
    run: Run, store: Store, target: Store, keys: dict[str, str]
) -> None:
    theirs = {
        foreign.save_model(store.storage, {"a": b"content"}),
        foreign.save_checkpoint(store.storage, {"a": b"content"}),
    }
    assert run("copy", "*", "--to", target.root).code == 0
    assert len(run("copy", "*", "--to", target.root, "--json").json["present"]) == len(keys) + 2
    assert listed(target) == set(keys.values()) | theirs
    assert {target.read_file(key, "a") for key in theirs} == {b"content"}
    report = check(target, read=True)
    assert (report.problems, report.foreign) == ((), 0)


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("", "--to is empty"),
        ("s3://", "--to 's3://' names no bucket"),
        ("gs:/bucket", "--to 'gs:/bucket' names no bucket"),
        ("s3:/b/x", "--to 's3:/b/x' names no bucket"),
        ("s3:b", "--to 's3:b' names no bucket"),
        ("s3//b/x", "looks like a misspelt URL"),
        (" s3://b/x", "looks like a misspelt URL"),
        ("  ", "--to is empty"),
        ("ftp://host/x", "ftp:// is not supported"),
        ("{store}", "both are the same store"),
        ("{store}/../tree/run.sh", "a file lies where a directory is needed"),
    ],
)
def test_wrong_targets(run: Run, store: Store, keys: dict[str, str], root: str, says: str) -> None:
    found = run("copy", keys["base"], "--to", root.format(store=store.root))
    assert found.code == 2
    assert says in found.err
    assert len(found.err.splitlines()) == 1
    assert found.out == ""


def test_a_key_that_is_wrong_and_a_missing_target(run: Run, target: Store, keys: dict[str, str]) -> None:
    assert run("copy", "mf.models/x", "--to", target.root).code == 2
    assert run("copy", "mf.models/models/artifacts/m_" + "0" * 32, "--to", target.root).code == 1
    assert run("copy", keys["base"]).code == 2


def test_copy_to_s3_and_back(
    run: Run, target: Store, keys: dict[str, str], s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    root = f"{s3_server.root}/{uuid4().hex}"
    assert f"4 artifacts copied to {root}, a new store; 0 B copied by the service" in run("copy", "*", "--to", root).out
    assert f"4 artifacts copied to {target.root}, a new store" in run("copy", "*", "--to", target.root, root=root).out
    assert listed(target) == set(keys.values())
    assert check(target, read=True).ok
