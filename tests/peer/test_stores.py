"""What metaflow-checkpoint has stored is read where it lies, byte for byte, and becomes ours in a copy.

The store is recorded, on local disk and uploaded to S3. With `--peer`, metaflow-checkpoint makes it there anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from peer_store import Expected, PeerStore, digests, make_store, peer_store, recorded_store, shape, upload

from metaflow_artifacts import ArtifactNotFound, ParsedReference, Store, is_model_artifact, list_checkpoints, open_store
from metaflow_artifacts._cli import main
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._store.checkpoints import list_foreign_checkpoints
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10
LARGE = 40 << 20
"""Bytes of the largest file of a store that is made: more than a chunk, and than what one request reads."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "origin" in metafunc.fixturenames:
        made = ["made", "made-s3"] if metafunc.config.getoption("--peer", default=None) else []
        # One process runs all tests of a store: they share it.
        origins = [pytest.param(one, marks=pytest.mark.xdist_group(one)) for one in ("recorded", "recorded-s3", *made)]
        metafunc.parametrize("origin", origins, scope="module")


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], PeerStore]:
    """Has metaflow-checkpoint write a store."""
    python = request.config.getoption("--peer")

    def make(on_s3: bool) -> PeerStore:
        directory = tmp_path_factory.mktemp("made")
        variables = {"LARGE_BYTES": str(LARGE)}
        if on_s3:
            server: SeaweedServer = request.getfixturevalue("s3_server")
            root = f"{server.root}/{uuid4().hex}"
            variables |= {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3"}
            variables |= {"METAFLOW_DATASTORE_SYSROOT_S3": root}
        runner = FlowRunner(directory, variables)
        path = f"{os.path.dirname(python)}{os.pathsep}{os.environ['PATH']}"
        told = make_store(python, runner.work, {**runner.variables(), "PATH": path})
        return peer_store(root if on_s3 else runner.local_root, told)

    return make


@pytest.fixture(scope="module")
def theirs(origin: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PeerStore:
    """A store of metaflow-checkpoint. Tests may add to it, and remove nothing."""
    if origin.startswith("made"):
        make: Callable[[bool], PeerStore] = request.getfixturevalue("made")
        return make(origin.endswith("s3"))
    recorded = recorded_store(tmp_path_factory.mktemp("recorded"))
    return uploaded(recorded, request.getfixturevalue("s3_server")) if origin.endswith("s3") else recorded


def uploaded(recorded: PeerStore, server: SeaweedServer) -> PeerStore:
    """The recorded store in a bucket."""
    root = f"{server.root}/{uuid4().hex}"
    upload(recorded, open_store(root, client=server.client).storage.put)
    return PeerStore(root, recorded.saved, recorded.task, recorded.listed)


@pytest.fixture
def store(theirs: PeerStore, request: pytest.FixtureRequest) -> Store:
    if not theirs.root.startswith("s3://"):
        return open_store(theirs.root)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    return open_store(theirs.root, client=server.client)


def load_all(store: Store, theirs: PeerStore, path: Path) -> None:
    """Load all artifacts, by what stands for them in turn, and compare each file."""
    for number, one in enumerate(theirs.saved):
        forms: list[Any] = [one.reference, one.key, f"{theirs.root}/{one.key}", ParsedReference.of(one.reference)]
        target = path / str(number)
        store.load(forms[number % len(forms)], target)
        assert digests(target) == one.files, one.kind


def test_it_has_an_artifact_of_each_kind(origin: str, theirs: PeerStore, tmp_path: Path) -> None:
    assert len(theirs.saved) == 26
    assert {one.reference["storage_format"] for one in theirs.saved} == {"tar", "files"}
    assert {one.kind.partition(":")[0] for one in theirs.saved} == {"model", "checkpoint", "snapshot"}
    recorded = recorded_store(tmp_path)
    assert [kinds(one) for one in theirs.saved] == [kinds(one) for one in recorded.saved]
    if not origin.endswith("s3"):
        assert shape(theirs.root) == shape(recorded.root)


def test_all_load_before_and_after_a_gc(store: Store, theirs: PeerStore, tmp_path: Path) -> None:
    (tmp_path / "ours").write_bytes(os.urandom(3 * CHUNK))
    load_all(store, theirs, tmp_path / "before")
    kept = store.save_model(tmp_path / "ours", "kept")
    (tmp_path / "ours").write_bytes(os.urandom(3 * CHUNK))
    store.delete(store.save_model(tmp_path / "ours", "deleted"))
    assert gc(store, grace=0, exclusive=True, dry_run=False).removed == 1
    load_all(store, theirs, tmp_path / "after")
    store.delete(kept)


def test_each_form_of_a_reference_names_it(store: Store, theirs: PeerStore) -> None:
    for one in theirs.saved:
        assert is_model_artifact(one.reference)
        whole, bare = store.info(one.reference), store.info(one.key)
        assert whole == bare == store.info(f"{theirs.root}/{one.key}")
        for name in ("key", "pathspec", "created_on", "metadata", "type"):
            assert whole[name] == one.reference[name]
        assert whole["uuid"] == one.reference.get("model_uuid", one.key.rpartition("/")[2])
        assert whole["url"] == f"{theirs.root}/{one.key}"
        assert whole["label"]
        assert store.manifest(one.key).size == sum(file.size for file in store.manifest(one.reference).files)


def test_a_part_of_it(store: Store, theirs: PeerStore, tmp_path: Path) -> None:
    tried = 0
    for number, one in enumerate(theirs.saved):
        for path in [path for path in one.files if path.endswith("weights.bin")]:
            target = tmp_path / str(number)
            store.load(one.reference, target, only="*weights.bin")
            assert digests(target) == {path: one.files[path]}
            assert store.read_file(one.key, path, 3, 5) == (target / path).read_bytes()[3:8]
            tried += 1
    assert tried > 15
    with pytest.raises(ArtifactNotFound, match="has no file that matches 'nothing'"):
        store.load(theirs.saved[0].key, tmp_path / "none", only="nothing")


def test_modes_and_empty_directories_of_a_tar(store: Store, theirs: PeerStore, tmp_path: Path) -> None:
    store.load(theirs.saved[0].reference, tmp_path / "out")
    assert os.access(tmp_path / "out" / "run.sh", os.X_OK)
    assert not os.access(tmp_path / "out" / "weights.bin", os.X_OK)
    assert [*(tmp_path / "out" / "empty").iterdir()] == []


def test_the_checkpoints_of_a_task_are_listed(store: Store, theirs: PeerStore) -> None:
    assert {one["key"] for one in list_foreign_checkpoints(store, theirs.task, attempt=1)} == set(theirs.listed)
    of_task = [one for one in theirs.saved if one.reference["pathspec"] == theirs.task]
    listed = list_foreign_checkpoints(store, theirs.task)
    assert {one["key"] for one in listed} == {one.key for one in of_task}
    # Those of one process come newest first: another one counts from 0 again.
    numbers = [(one["attempt"], one["version_id"]) for one in listed if one["name"] != "rank"]
    assert numbers == sorted(numbers, reverse=True)
    best = list_foreign_checkpoints(store, theirs.task, name="best")
    assert [(one["attempt"], one["version_id"]) for one in best] == [(1, 3), (1, 2), (0, 2)]
    every = [key for prefix in ARTIFACT_PREFIXES for key in store.list(prefix)]
    assert sorted(every) == sorted(one.key for one in theirs.saved)
    assert list_checkpoints(store, "mf.checkpoints/checkpoints/artifacts/StoreFlow/train/") == []


def test_they_become_ours_in_a_copy(store: Store, theirs: PeerStore, tmp_path: Path) -> None:
    target = open_store(tmp_path / "target")
    result = store.copy_to(target, [one.reference for one in theirs.saved])
    assert len(result.copied) == len(theirs.saved)
    report = check(target, read=True)
    assert (report.problems, report.notes, report.artifacts, report.foreign) == ((), (), len(theirs.saved), 0)
    load_all(target, theirs, tmp_path / "loaded")
    for one in theirs.saved:
        copied = target.info(one.key)
        for name in ("pathspec", "created_on", "metadata", "type"):
            assert copied[name] == one.reference[name]
        assert copied["size"] == target.manifest(one.reference).size == store.manifest(one.key).size
        # Older ones may have been saved so, too: nothing tells, and they are not chosen.
        assert target.head(one.key).latest is ("not latest" not in one.kind), one.kind
        odd = "mf:internal" in one.key or "label" in one.kind
        assert (copied["key"] == one.key) is not odd
    again = store.copy_to(target, [one.key for one in theirs.saved], verify=True)
    assert (again.copied, again.sent, len(again.present)) == ((), 0, len(theirs.saved))
    assert gc(target, grace=0, exclusive=True, dry_run=False).removed == 0
    load_all(target, theirs, tmp_path / "after")


@pytest.fixture
def run(
    store: Store,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Callable[..., bytes]:
    """The command line, on the store."""
    if store.root.startswith("s3://"):
        for name, value in request.getfixturevalue("s3_server").environment().items():
            monkeypatch.setenv(name, value)

    def call(*arguments: str) -> bytes:
        code = main([arguments[0], "--root", store.root, *arguments[1:]])
        out, err = capfdbinary.readouterr()
        assert (code, err) == (0, b""), err
        return out

    return call


def test_commands(run: Callable[..., bytes], store: Store, theirs: PeerStore, tmp_path: Path) -> None:
    assert {one["key"] for one in json.loads(run("ls", "--json"))} == {one.key for one in theirs.saved}
    assert b"26 artifacts of metaflow-checkpoint" in run("check", "--read")
    for number, kind in enumerate(("directory, tar", "directory, files", "slash in the label", "links, tar")):
        one = next(one for one in theirs.saved if one.kind == f"model: {kind}")
        shown = json.loads(run("show", one.key, "--json"))
        assert (shown["files"], shown["stored_by"]) == (len(one.files), "metaflow-checkpoint")
        assert json.loads(run("check", one.key, "--json"))["foreign"] == 1
        run("get", one.key, str(tmp_path / str(number)))
        assert digests(tmp_path / str(number)) == one.files
        file = next(iter(one.files))
        assert run("cat", one.key, file) == (tmp_path / str(number) / file).read_bytes()
        assert file.rpartition("/")[2].encode() in run("tree", one.key)


def objects(store: Store) -> set[str]:
    return {info.key for info in store.storage.list("mf.")}


@pytest.mark.parametrize("on_s3", [False, True])
def test_they_are_deleted_with_all_that_belongs_to_them(
    on_s3: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    recorded = recorded_store(tmp_path)
    store = open_store(recorded.root)
    if on_s3:
        server: SeaweedServer = request.getfixturevalue("s3_server")
        store = open_store(uploaded(recorded, server).root, client=server.client)
    kept, *others = recorded.saved
    for one in others:
        store.delete(one.reference)
        with pytest.raises(ArtifactNotFound):
            store.delete(one.key)
        with pytest.raises(ArtifactNotFound):
            store.load(one.key, tmp_path / "gone")
    left = {key for key in objects(store) if not key.endswith("/latest")}
    assert left == {key for key in left if kept.key.rpartition("/")[2] in key}
    assert len(left) == 3
    store.load(kept.reference, tmp_path / "kept")
    assert digests(tmp_path / "kept") == kept.files


def kinds(one: Expected) -> tuple[str, list[str], list[str]]:
    return one.kind, sorted(one.reference), sorted(one.files)
