"""Where streaming is not possible, huggingface_hub downloads; what is told about one that cannot be imported."""

from __future__ import annotations

import os
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub import Hub as HubServer
from hub_repo import Repo, lfs
from huggingface_hub import constants

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import HUB, CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts.errors import TargetError, UsageError
from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as hub_module
from metaflow_extensions.artifacts_hf.plugins.hf_deco import streams
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest
from metaflow_extensions.artifacts_hf.plugins.hf_deco.cache import Cache, SnapshotResult
from metaflow_extensions.artifacts_hf.plugins.hf_deco.errors import HubDenied, HubError, HubMismatch, HubUnavailable
from metaflow_extensions.artifacts_hf.plugins.hf_deco.hub import import_library

PLACE = CheckpointPlace("Flow", "start", "0" * 12, "1" * 12, HUB)
WEIGHTS = random.Random(4).randbytes(3_000_000)
FILES: dict[str, Any] = {"config.json": b"{}", "empty": b"", "sub/ü x.txt": b"hello", "weights.bin": lfs(WEIGHTS)}
SLOWER = "which is slower"


class Task:
    """A task that asks for repos."""

    def __init__(self, store: Store, hub: HubServer, scratch: Path, number: int = 0) -> None:
        self.store, self.hub, self.scratch = store, hub, scratch
        self.log: list[str] = []
        writer = CheckpointWriter(store, PLACE, f"{number:08}", 0, f"Flow/{number}/start/1")
        self.cache = Cache(lambda request: writer, "Flow_start", self.log.append, self.log.append, scratch)

    def obtain(self, repo_id: str = "org/name", **arguments: Any) -> SnapshotResult:
        given = {"endpoint": self.hub.endpoint, "token": False, **arguments}
        return self.cache.obtain(RepoRequest.of({"repo_id": repo_id, **given}))

    def files(self, result: SnapshotResult, target: Path) -> dict[str, bytes]:
        loaded = Path(self.store.load(result.artifact["key"], target))
        return {str(path.relative_to(loaded)): path.read_bytes() for path in loaded.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "pause", lambda seconds, cancelled: None)


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    return hub.repo("org/name", files=FILES)


@pytest.fixture
def tasks(hub: HubServer, tmp_path: Path) -> Iterator[Callable[[], Task]]:
    """Makes tasks of different runs, with one store. None of them leaves a temporary directory."""
    store, scratch = Store(open_storage(tmp_path / "store"), chunk_size=128 << 10), tmp_path / "scratch"
    made: list[Task] = []

    def make() -> Task:
        made.append(Task(store, hub, scratch, len(made)))
        return made[-1]

    yield make
    assert not scratch.exists() or os.listdir(scratch) == []


class OtherSession:
    """A session of an HTTP library that nobody knows."""

    def request(self, url: str) -> None:
        """The only way to ask."""


def too_old(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> str:
    monkeypatch.setitem(streams._NEEDED, "constants", ("ADDED_LATER",))
    return "huggingface_hub .* has no .*ADDED_LATER"


class OtherUtils:
    """`huggingface_hub.utils` with such sessions. The library's own functions do not see it."""

    get_session = OtherSession

    def __getattr__(self, name: str) -> Any:
        return getattr(huggingface_hub.utils, name)


def too_new(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> str:
    library = types.SimpleNamespace(**{**vars(import_library()), "utils": OtherUtils()})
    for name in ("HfApi", "hf_hub_url", "snapshot_download"):
        setattr(library, name, getattr(huggingface_hub, name))
    monkeypatch.setattr(hub_module, "import_library", lambda: library)
    return r"huggingface_hub \S+ works in an unknown way \(AttributeError: .*'get'"


def other_list(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> str:
    monkeypatch.setattr(streams, "_file_of", lambda row: None)
    return "gives a file list of org/name that cannot be read"


@pytest.mark.parametrize("way", [too_old, too_new, other_list])
def test_what_cannot_be_streamed_is_downloaded_by_the_library(
    hub: HubServer,
    repo: Repo,
    tasks: Callable[[], Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[pytest.MonkeyPatch, HubServer], str],
) -> None:
    words = way(monkeypatch, hub)
    task = tasks()
    first = task.obtain()
    assert task.files(first, tmp_path / "loaded") == repo.files
    assert first.from_hub
    assert first.downloaded == first.artifact["size"] == sum(map(len, repo.files.values()))
    assert first.artifact["metadata"]["commit"] == repo.refs["main"]
    assert sorted(file.path for file in first.files) == sorted(FILES)
    # The same repo again, from this task and from another run.
    with hub.counting() as requests:
        assert task.obtain().artifact["key"] == first.artifact["key"]
        assert tasks().obtain().artifact["key"] == first.artifact["key"]
    assert not {"file", "cdn"} & set(requests)
    # What has changed is a new snapshot; it is said once what is slow.
    repo.commit({"config.json": b"new"})
    newer = task.obtain(force_download=True)
    assert task.files(newer, tmp_path / "newer") == repo.files
    [line] = [line for line in task.log if SLOWER in line]
    assert re.search(words, line)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch, hub: HubServer, repo: Repo) -> None:
    """A huggingface_hub that is too old to stream."""
    too_old(monkeypatch, hub)


@pytest.mark.usefixtures("old")
def test_patterns_and_an_empty_selection(hub: HubServer, repo: Repo, tasks: Callable[[], Task], tmp_path: Path) -> None:
    task = tasks()
    assert task.files(task.obtain(allow_patterns=["*.json", "sub/*"], ignore_patterns="*.txt"), tmp_path / "some") == {
        "config.json": b"{}"
    }
    nothing = task.obtain(allow_patterns="*.none")
    assert nothing.artifact["size"] == 0
    assert any("the snapshot is empty" in line for line in task.log)


@pytest.mark.usefixtures("old")
def test_private_and_gated_repos(hub: HubServer, tasks: Callable[[], Task], tmp_path: Path) -> None:
    hub.repo("org/private", private=True, token="hf_right", files=FILES)
    hub.repo("org/gated", gated=True, token="hf_right", files=FILES)
    for name in ("org/private", "org/gated"):
        task = tasks()
        with pytest.raises(HubDenied, match="access is restricted" if name == "org/gated" else "or it is private"):
            task.obtain(name)
        assert task.files(task.obtain(name, token="hf_right"), tmp_path / name)["weights.bin"] == WEIGHTS
        # It is stored now: whoever asks for it elsewhere must have access all the same.
        task.cache.writer_of = _elsewhere(task)
        with pytest.raises(HubDenied):
            task.obtain(name)
        assert not task.obtain(name, token="hf_right").from_hub
        assert "hf_right" not in "\n".join(task.log)


def _elsewhere(task: Task) -> Callable[[RepoRequest], CheckpointWriter]:
    place = CheckpointPlace("Flow", "other", "0" * 12, "1" * 12, HUB)
    writer = CheckpointWriter(task.store, place, "9" * 8, 0, "Flow/9/other/1")
    return lambda request: writer


@pytest.mark.usefixtures("old")
def test_a_failing_hub_is_asked_again_and_what_is_stored_is_used_when_it_is_down(
    hub: HubServer, repo: Repo, tasks: Callable[[], Task]
) -> None:
    hub.fault("info", status=503)
    first = tasks().obtain()
    hub.down()
    task = tasks()
    assert task.obtain().artifact["key"] == first.artifact["key"]
    assert any("cannot be reached" in line and "using commit" in line for line in task.log)
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        task.obtain("org/other")


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("status", [404, 500])
def test_a_download_that_broke_off_is_no_snapshot_when_the_hub_answers_no_more(
    hub: HubServer, repo: Repo, tasks: Callable[[], Task], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """huggingface_hub gives what there is of a download where it cannot ask for the repo."""

    def pause(seconds: float, cancelled: Any) -> None:
        hub.fault("info", times=99, status=status)
        hub.fault("tree", times=99, status=status)

    monkeypatch.setattr(hub_module, "pause", pause)
    hub.fault("cdn", times=99, status=500)
    task = tasks()
    with pytest.raises(HubError):
        task.obtain(max_workers=1)
    assert {"config.json", "empty"} <= set(hub.fetched())
    assert list(task.store.list(f"{HUB}/checkpoints/artifacts/")) == []


@pytest.mark.usefixtures("old")
def test_offline_no_request_is_made(
    hub: HubServer, repo: Repo, tasks: Callable[[], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tasks().obtain()
    with hub.counting() as requests:
        assert tasks().obtain(local_files_only=True).artifact["key"] == stored.artifact["key"]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set"):
            tasks().obtain("org/other")
    assert not requests


@pytest.mark.usefixtures("old")
def test_other_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo, tasks: Callable[[], Task]) -> None:
    hub.fault("cdn", body=lambda data: b"x" * len(data))
    with pytest.raises(HubMismatch, match=r"weights.bin of org/name: the content is not what the Hub lists"):
        tasks().obtain()
    assert list(tasks().store.list(f"{HUB}/checkpoints/artifacts/")) == []


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (OSError(28, "No space left on device"), TargetError, "No space left on device.*set temp_dir_root"),
        (ValueError("hf_transfer is not available"), HubError, r"huggingface_hub \S+ fails \(ValueError: hf_transfer"),
    ],
)
def test_a_library_that_fails_is_one_error(
    repo: Repo,
    tasks: Callable[[], Task],
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    error: type[Exception],
    words: str,
) -> None:
    def fails(endpoint: str, token: Any, library_name: str, library_version: str, user_agent: Any, **_: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(error, match=words):
        tasks().obtain()


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("name", ["endpoint", "headers"])
def test_an_argument_that_the_library_does_not_have_is_an_error(
    hub: HubServer, repo: Repo, tasks: Callable[[], Task], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo_id, token, library_name, library_version, user_agent: ""
    )
    if name == "headers":
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    with pytest.raises(UsageError, match=f"does not know the argument {name}="):
        tasks().obtain(headers={"x": "y"} if name == "headers" else None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "huggingface_hub, which is not installed here; install it"),
        ("import does_not_exist_here", r"fails \(ModuleNotFoundError: No module named 'does_not_exist_here'\)"),
        ("raise ImportError('cannot import name x')", r"is installed here, but importing it fails \(ImportError: ca"),
        ("raise OSError('wrong ELF class')", r"fails \(OSError: wrong ELF class\)"),
        ("raise AttributeError('no y')", r"fails \(AttributeError: no y\)"),
        ("x = 1", r"fails \(ImportError: cannot import name 'constants'"),
    ],
)
def test_what_is_told_about_a_library_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, words: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    if source is None:
        # Python reports None as a module that is not found.
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, types.ModuleType)])
    else:
        (tmp_path / "huggingface_hub.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=words):
        import_library()
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
