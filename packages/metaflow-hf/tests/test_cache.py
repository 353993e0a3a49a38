"""What is downloaded, and what is not: the Hub's requests are counted, and the store is inspected."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hub import Hub as HubServer
from hub_repo import Repo, lfs

from metaflow_artifacts import ModelArtifact, Store
from metaflow_artifacts._format.keys import HUB, CheckpointPlace
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts.errors import TargetError
from metaflow_extensions.artifacts_hf.plugins.hf_deco import cache as cache_module
from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as hub_module
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest
from metaflow_extensions.artifacts_hf.plugins.hf_deco.cache import Cache, SnapshotResult
from metaflow_extensions.artifacts_hf.plugins.hf_deco.errors import HubDenied, HubError, HubUnavailable

PLACE = CheckpointPlace("Flow", "start", "0" * 12, "1" * 12, HUB)
DRAW = random.Random(2)
WEIGHTS = [DRAW.randbytes(200_000 + n) for n in range(3)]
SMALL = {f"small/{n:02}.json": DRAW.randbytes(5_000) for n in range(30)}
FILES: dict[str, Any] = {
    "config.json": b"{}",
    "empty": b"",
    "model-1.bin": lfs(WEIGHTS[0]),
    "model-2.bin": lfs(WEIGHTS[1]),
    "tokenizer/ü.bin": lfs(b"small lfs"),
    **SMALL,
}


class Caller:
    """Makes one task after another at one place in a flow."""

    def __init__(self, store: Store, hub: HubServer, place: CheckpointPlace = PLACE) -> None:
        self.store = store
        self.hub = hub
        self.place = place
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def cache(self, run: str | None = None) -> Cache:
        """The cache of a new task, in a new run or in `run`."""
        pathspec = f"Flow/{run or uuid4().hex}/start/{uuid4().hex}"
        writer = CheckpointWriter(self.store, self.place, uuid4().hex[:8], 0, pathspec)
        return Cache(lambda request: writer, "Flow_start", self.lines.append, self.warnings.append)

    def obtain(self, repo_id: str = "org/name", **arguments: Any) -> SnapshotResult:
        """Ask for a repo, in a new run."""
        return self.cache().obtain(self.request(repo_id, **arguments))

    def request(self, repo_id: str = "org/name", **arguments: Any) -> RepoRequest:
        arguments = {"endpoint": self.hub.endpoint, "token": False, **arguments}
        return RepoRequest.of({"repo_id": repo_id, **arguments})

    def elsewhere(self) -> Caller:
        """The same store and Hub, in another step."""
        return Caller(self.store, self.hub, replace(self.place, step="other"))

    def snapshots(self) -> list[str]:
        """All keys of snapshots in the store."""
        return list(self.store.list(f"{HUB}/checkpoints/artifacts/"))


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    return hub.repo("org/name", files=FILES)


@pytest.fixture
def caller(store: Store, hub: HubServer, repo: Repo) -> Caller:
    return Caller(store, hub)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "pause", lambda seconds, cancelled: None)


@pytest.fixture
def holds(tmp_path: Path, store: Store) -> Callable[[ModelArtifact, Repo], None]:
    """Checks that the stored content is that of the repo."""

    def check(artifact: ModelArtifact, repo: Repo) -> None:
        assert below(Path(store.load(artifact["key"], tmp_path / uuid4().hex))) == repo.files

    return check


def test_a_snapshot_is_fetched_once(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    first = caller.obtain()
    holds(first.artifact, repo)
    assert first.from_hub
    assert first.downloaded == sum(len(data) for data in repo.files.values()) == first.artifact["size"]
    assert set(hub.fetched().values()) == {1}
    assert len(hub.fetched()) == len(FILES) - 1
    assert hub.count("info") == hub.count("tree") == 1
    assert first.artifact["type"] == "checkpoint"
    assert first.artifact["name"] == caller.request().name
    assert first.artifact["label"] == "Flow_start"
    assert first.artifact["metadata"] == {
        "registry": "huggingface",
        "repo_id": "org/name",
        "repo_type": "model",
        "revision": "main",
        "commit": repo.refs["main"],
        "allow_patterns": None,
        "ignore_patterns": None,
    }
    with hub.counting() as requests:
        second = caller.obtain()
    assert requests == {"info": 1}
    assert second.artifact == first.artifact
    assert not second.from_hub
    assert not caller.warnings


def below(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def test_files_are_written_to_the_target_while_they_are_downloaded(
    caller: Caller, hub: HubServer, repo: Repo, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    (target / "config.json").write_bytes(b"old")
    hub.fault("cdn", file="model-1.bin", body=lambda data: b"x" * len(data))
    first = caller.cache().obtain(caller.request(), target)
    assert first.delivered
    assert below(target) == {**repo.files, "mine": b"mine"}
    # Content that the datastore already has is not written to the target.
    for later in (caller, caller.elsewhere()):
        found = later.cache().obtain(later.request(), tmp_path / "other")
        assert not found.delivered
    repo.commit({"new": b"new"})
    assert not caller.cache().obtain(caller.request(), tmp_path / "other").delivered
    assert below(tmp_path / "other") == {}


def test_a_download_that_fails_leaves_no_target(caller: Caller, hub: HubServer, tmp_path: Path) -> None:
    hub.fault("cdn", file="model-2.bin", times=99, cut=100_000)
    with pytest.raises(HubError):
        caller.cache().obtain(caller.request(), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_target_that_cannot_be_written_costs_no_download(caller: Caller, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TargetError):
        caller.cache().obtain(caller.request(), tmp_path / "file")
    assert hub.fetched() == {}


def test_a_commit_id_needs_no_request(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    commit = repo.refs["main"]
    first = caller.obtain(revision=commit)
    holds(first.artifact, repo)
    with hub.counting() as requests:
        assert caller.obtain(revision=commit).artifact == first.artifact
    assert not requests


def test_a_task_asks_once_for_a_commit(caller: Caller, hub: HubServer) -> None:
    cache = caller.cache()
    cache.obtain(caller.request())
    with hub.counting() as requests:
        cache.obtain(caller.request())
    assert not requests


def test_all_tasks_of_a_run_use_the_same_commit(caller: Caller, hub: HubServer, repo: Repo) -> None:
    first = caller.cache(run="7").obtain(caller.request())
    repo.commit({"config.json": b"changed"})
    with hub.counting() as requests:
        assert caller.cache(run="7").obtain(caller.request()).artifact == first.artifact
        elsewhere = caller.elsewhere()
        assert elsewhere.cache(run="7").obtain(elsewhere.request()).commit == first.commit
    assert not requests
    assert caller.cache(run="8").obtain(caller.request()).commit == repo.refs["main"]
    # force_download resolves the revision again, for the later tasks of the run too.
    assert caller.cache(run="7").obtain(caller.request(force_download=True)).commit == repo.refs["main"]
    assert caller.cache(run="7").obtain(caller.request()).commit == repo.refs["main"]
    assert elsewhere.cache(run="7").obtain(elsewhere.request(revision=first.commit)).commit == first.commit


def test_a_commit_of_a_run_that_cannot_be_read_is_asked_for(caller: Caller, hub: HubServer) -> None:
    first = caller.cache(run="7").obtain(caller.request())
    [info] = caller.store.storage.list(f"{HUB}/runs/Flow/7/")
    for damaged in (b"", b"[]", b'{"commit":"x","restricted":false}', b'{"commit":null}'):
        caller.store.storage.put(info.key, damaged)
        with hub.counting() as requests:
            assert caller.cache(run="7").obtain(caller.request()).artifact == first.artifact
        assert requests == {"info": 1}


def test_entries_of_runs_of_long_ago_are_deleted(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    caller.cache(run="old").obtain(caller.request())
    listed = type(caller.store.storage).list

    def aged(self: Any, prefix: str) -> Any:
        for info in listed(self, prefix):
            yield replace(info, modified=info.modified - 3e6) if "/runs/Flow/old/" in info.key else info

    monkeypatch.setattr(type(caller.store.storage), "list", aged)
    caller.cache(run="new").obtain(caller.request())
    assert [info.key.split("/")[3] for info in caller.store.storage.list(f"{HUB}/runs/")] == ["new"]


def test_offline_nothing_is_asked(caller: Caller, hub: HubServer) -> None:
    with pytest.raises(HubUnavailable, match=r"HF_HUB_OFFLINE.*the datastore has no snapshot of it"):
        caller.obtain(local_files_only=True)
    first = caller.obtain()
    with hub.counting() as requests:
        assert caller.obtain(local_files_only=True).artifact == first.artifact
    assert not requests
    assert not caller.warnings


def test_a_repo_that_changed_is_fetched_anew(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    first = caller.obtain()
    stored = chunks(caller.store)
    hub.clear()
    repo.commit({"model-2.bin": lfs(WEIGHTS[2]), "small/07.json": b"changed", "new.json": b"new", "config.json": None})
    second = caller.obtain()
    holds(second.artifact, repo)
    assert second.commit != first.commit
    # Only changed files were downloaded, and only they are new in the store.
    assert hub.fetched() == {"model-2.bin": 1, "small/07.json": 1, "new.json": 1}
    new = chunks(caller.store) - stored
    assert sum(size for _, size in new) < len(WEIGHTS[2]) + 2 * caller.store.chunk_size
    # The branch is set back to the first commit.
    repo.refs["main"] = first.commit
    with hub.counting() as requests:
        assert caller.obtain().artifact == first.artifact
    assert requests == {"info": 1}


def chunks(store: Store) -> set[tuple[str, int]]:
    return {(info.key, info.size) for info in store.storage.list(CHUNKS)}


def test_files_move_without_being_fetched(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    caller.obtain()
    hub.clear()
    moved = {f"moved/{path}": content for path, content in FILES.items()}
    repo.commit({**dict.fromkeys(FILES), **moved})
    holds(caller.obtain().artifact, repo)
    assert hub.fetched() == {}


def test_another_revision_of_the_same_commit_costs_the_list(caller: Caller, hub: HubServer, repo: Repo) -> None:
    first = caller.obtain()
    repo.tag("v1")
    hub.clear()
    second = caller.obtain(revision="v1")
    assert second.artifact["name"] != first.artifact["name"]
    assert second.artifact["metadata"]["revision"] == "v1"
    assert hub.count() == hub.count("info") == 1


def test_patterns_are_part_of_what_is_asked(caller: Caller, hub: HubServer) -> None:
    caller.obtain()
    hub.clear()
    some = caller.obtain(allow_patterns=["*.json"], ignore_patterns="small/1*")
    manifest = caller.store.manifest(some.artifact)
    expected = ["config.json", *(path for path in SMALL if not path.startswith("small/1"))]
    assert [file.path for file in manifest.files] == expected
    assert hub.fetched() == {}
    assert caller.obtain(ignore_patterns="small/1*", allow_patterns=["*.json"] * 2).artifact == some.artifact


def test_a_snapshot_without_matching_files_is_empty_and_a_warning(caller: Caller) -> None:
    empty = caller.obtain(allow_patterns="*.none")
    assert empty.artifact["size"] == 0
    assert "no file of commit" in caller.warnings[0]


def test_another_step_reuses_a_stored_snapshot_without_a_download(
    caller: Caller, hub: HubServer, repo: Repo, holds: Any
) -> None:
    first = caller.obtain()
    stored = chunks(caller.store)
    with hub.counting() as requests:
        second = caller.elsewhere().obtain()
    assert requests == {"info": 1}
    assert second.artifact["key"].startswith(f"{HUB}/checkpoints/artifacts/Flow/other/")
    assert second.artifact["metadata"] == first.artifact["metadata"]
    assert chunks(caller.store) == stored
    caller.store.delete(first.artifact)
    holds(second.artifact, repo)


def test_a_fork_brings_only_its_own_files(caller: Caller, hub: HubServer, holds: Any) -> None:
    caller.obtain()
    hub.clear()
    fork = hub.repo("me/fork", files={**FILES, "head.bin": lfs(WEIGHTS[2])})
    holds(caller.obtain("me/fork").artifact, fork)
    fetched = hub.fetched()
    assert not {"model-1.bin", "model-2.bin", "tokenizer/ü.bin"} & set(fetched)
    assert fetched["head.bin"] == 1


def test_a_file_that_a_model_has_is_not_downloaded(caller: Caller, hub: HubServer, tmp_path: Path, holds: Any) -> None:
    """The chunk of a one-chunk file has the SHA-256 of the file in its name, whichever decorator saved it."""
    content = DRAW.randbytes(caller.store.chunk_size)
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    caller.store.save_model(path)
    one = hub.repo("org/one", files={"weights.bin": lfs(content)})
    holds(caller.obtain("org/one").artifact, one)
    assert hub.fetched() == {}


def test_force_download_fetches_all_of_it(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    first = caller.obtain()
    stored = chunks(caller.store)
    hub.clear()
    second = caller.obtain(force_download=True)
    holds(second.artifact, repo)
    assert second.artifact["key"] != first.artifact["key"]
    assert len(hub.fetched()) == len(FILES) - 1
    assert chunks(caller.store) == stored
    assert caller.obtain().artifact in (first.artifact, second.artifact)


def test_without_the_hub_the_stored_snapshot_is_used(caller: Caller, hub: HubServer, repo: Repo) -> None:
    old = caller.obtain()
    repo.commit({"config.json": b"new"})
    new = caller.obtain()
    hub.down()
    found = caller.obtain()
    assert found.artifact == new.artifact != old.artifact
    [warning] = [line for line in caller.warnings if "using commit" in line]
    assert "cannot be reached (Connect" in warning
    assert f"using commit {new.commit[:12]}, stored {new.artifact['created_on']}" in warning
    with pytest.raises(HubUnavailable, match="no snapshot of it for this cache_scope"):
        caller.elsewhere().obtain()
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        caller.obtain(force_download=True)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("what", ["info", "tree", "file"])
def test_a_hub_that_fails_during_the_download_leads_to_the_stored_snapshot(
    caller: Caller, hub: HubServer, repo: Repo, what: str, status: int
) -> None:
    def fail() -> None:
        hub.fault(what, times=99, status=status)
        if what == "tree":
            # Without a list, older versions of huggingface_hub ask for the repo again, and get the names of its files.
            hub.fault("info", times=99, status=status, after=1)

    fail()
    with pytest.raises(HubError) as caught:
        caller.obtain()
    assert "\n" not in str(caught.value)
    assert caller.snapshots() == []
    hub.clear()
    first = caller.obtain()
    repo.commit({"model-2.bin": lfs(WEIGHTS[2])})
    fail()
    assert caller.obtain().artifact == first.artifact
    assert f"answers {status}" in caller.warnings[-1]
    assert caller.snapshots() == [first.artifact["key"]]


@pytest.mark.parametrize(
    "fault",
    [
        {"cut": 1},
        {"cut": 0},
        {"body": lambda data: data[:-1]},
        {"body": lambda data: data + b"x"},
        {"body": lambda data: b"x" + data[1:]},
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "1"}},
    ],
)
@pytest.mark.parametrize("file", ["model-1.bin", "config.json"])
def test_a_faulty_download_gives_the_right_bytes_or_an_error(
    caller: Caller, hub: HubServer, repo: Repo, holds: Any, fault: dict[str, Any], file: str
) -> None:
    what = "cdn" if file.endswith(".bin") else "file"
    hub.fault(what, file=file, times=999, **fault)
    with pytest.raises(HubError, match=rf"{file} of org/name: .*; the datastore has no snapshot"):
        caller.obtain()
    assert caller.snapshots() == []
    assert list(caller.store.storage.leftovers()) == []
    # What goes wrong once goes right.
    hub.clear()
    hub.fault(what, file=file, **fault)
    holds(caller.obtain().artifact, repo)


def test_files_that_came_before_a_failure_are_not_fetched_again(
    caller: Caller, hub: HubServer, repo: Repo, holds: Any
) -> None:
    hub.fault("cdn", file="model-2.bin", times=99, status=500)
    with pytest.raises(HubUnavailable):
        caller.obtain(max_workers=1)
    hub.clear()
    holds(caller.obtain().artifact, repo)
    assert "model-1.bin" not in hub.fetched()


def test_entries_of_the_dedupe_index_are_verified(caller: Caller, hub: HubServer, repo: Repo, holds: Any) -> None:
    """Missing chunks and damaged entries cost a download, and nothing else."""
    first = caller.obtain()
    storage = caller.store.storage
    storage.delete([chunk_key(chunk.sha256) for chunk in caller.store.manifest(first.artifact).chunks])
    holds(caller.elsewhere().obtain().artifact, repo)
    for info in list(storage.list(f"{HUB}/files/")) + list(storage.list(f"{HUB}/snapshots/")):
        for damaged in (b"", b"[]", b"{}", b'{"chunks":[["x",1]],"offset":0}', b'{"key":"x","oids":{}}'):
            storage.put(info.key, damaged)
    third = Caller(caller.store, hub, replace(PLACE, step="third"))
    holds(third.obtain().artifact, repo)


def test_a_chunk_that_gc_removes_before_the_commit_is_downloaded_again(
    caller: Caller, hub: HubServer, repo: Repo, holds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that chunk is downloaded again."""
    commit = Store.commit_checkpoint
    tries = []

    def commit_checkpoint(self: Store, files: Any, chunks: Any, *args: Any, **kwargs: Any) -> ModelArtifact:
        tries.append(len(chunks))
        if len(tries) == 1:
            self.storage.delete([chunk_key(chunks[-1].sha256)])
            kwargs["since"] = None
        return commit(self, files, chunks, *args, **kwargs)

    monkeypatch.setattr(Store, "commit_checkpoint", commit_checkpoint)
    obtained = caller.cache().obtain(caller.request(), tmp_path / "target")
    holds(obtained.artifact, repo)
    assert len(tries) == 2
    assert obtained.delivered
    assert below(tmp_path / "target") == repo.files
    assert not {"model-1.bin", "model-2.bin"} & {file for file, count in hub.fetched().items() if count > 1}


def test_a_private_repo_is_reused_only_with_access(caller: Caller, hub: HubServer) -> None:
    kinds: dict[str, dict[str, Any]] = {"org/private": {"private": True}, "org/gated": {"gated": True}}
    for name, kind in kinds.items():
        hub.repo(name, token="hf_right", files=FILES, **kind)
        caller.obtain(name, token="hf_right")
        with hub.counting() as requests:
            caller.elsewhere().obtain(name, token="hf_right")
        assert requests == {"info": 1, "auth": 1}
        with pytest.raises(HubDenied):
            Caller(caller.store, hub, replace(PLACE, step="third")).obtain(name)


def test_a_server_whose_ids_are_not_those_of_git(caller: Caller, hub: HubServer, holds: Any) -> None:
    """If the listed ids do not verify the content, a file that changed under the same id is downloaded again."""
    hub.own_ids = True
    odd = hub.repo("org/odd", files={"a": b"1", "b": b"2", "weights.bin": lfs(WEIGHTS[0])})
    holds(caller.obtain("org/odd").artifact, odd)
    odd.commit({"a": b"3"})
    hub.clear()
    holds(caller.obtain("org/odd").artifact, odd)
    assert hub.fetched() == {"a": 1, "b": 1}


def test_twenty_at_once_fetch_each_file_once(
    caller: Caller, hub: HubServer, repo: Repo, holds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MAX_COMMIT_WAIT_S", 600.0)
    callers = [Caller(caller.store, hub, replace(PLACE, task=f"{n:012x}")) for n in range(20)]
    results: list[SnapshotResult] = []
    request = caller.request()
    threads = [
        threading.Thread(target=lambda one=one: results.append(one.cache(run="1").obtain(request))) for one in callers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert set(hub.fetched().values()) == {1}
    assert hub.count("tree") == hub.count("info") == 1
    assert len({one.artifact["key"] for one in results}) == 20
    holds(results[0].artifact, repo)
    assert sum("waiting for Flow/1/start/" in line for one in callers for line in one.lines) <= 19
    assert list(caller.store.storage.list(f"{HUB}/leases/")) == []
