"""Files downloaded through hf_xet, from a Xet storage in a local directory."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hf_xet
import pytest
from hub import Hub as HubServer
from hub_repo import Blob, Repo, lfs
from huggingface_hub import constants

from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as module
from metaflow_extensions.artifacts_hf.plugins.hf_deco import xet
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest
from metaflow_extensions.artifacts_hf.plugins.hf_deco.hub import Hub
from metaflow_extensions.artifacts_hf.plugins.hf_deco.streams import HubStreams

BIG = random.Random(5).randbytes(9_000_000)
OTHER = random.Random(6).randbytes(1_000_000)


@pytest.fixture
def repo(hub: HubServer, tmp_path: Path) -> Repo:
    """A repo with two files in Xet storage, one with LFS only, and one in git."""
    hub.cas = f"local://{tmp_path / 'cas'}"
    (tmp_path / "cas").mkdir()
    hashes = []
    for content in (BIG, OTHER):
        with hf_xet.XetSession().new_upload_commit(endpoint=hub.cas) as commit:
            handle = commit.start_upload_bytes(content, sha256=hf_xet.COMPUTE_SHA256)
        hashes.append(handle.result().xet_info.hash)
    files: dict[str, bytes | Blob] = {
        "big.bin": lfs(BIG, hashes[0]),
        "other.bin": lfs(OTHER, hashes[1]),
        "plain.bin": lfs(b"plain"),
        "config.json": b"{}",
    }
    return hub.repo("org/name", private=True, token="hf_right", files=files)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def asked(hub: HubServer, repo: Repo, warnings: list[str], notes: list[str]) -> HubStreams:
    request = RepoRequest.of({"repo_id": "org/name", "endpoint": hub.endpoint, "token": "hf_right"})
    return HubStreams(Hub(request, warnings.append, notes.append), "main")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pause", lambda seconds, cancelled: None)


def contents(asked: HubStreams) -> dict[str, bytes]:
    return {file.path: b"".join(asked.open(file)) for file in asked.files()}


def test_files_in_xet_storage_are_downloaded_from_there(
    hub: HubServer, repo: Repo, asked: HubStreams, warnings: list[str]
) -> None:
    assert contents(asked) == repo.files
    assert hub.fetched() == {"plain.bin": 1, "config.json": 1}
    assert hub.count("xet") == 1
    assert not warnings


@pytest.mark.parametrize("reason", ["switched off", "not installed"])
def test_without_hf_xet_files_are_downloaded_over_http(
    hub: HubServer, repo: Repo, asked: HubStreams, notes: list[str], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "switched off":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    else:
        monkeypatch.setattr(xet, "_is_installed", lambda: False)
    assert contents(asked) == repo.files
    assert hub.count("xet") == 0
    assert set(hub.fetched().values()) == {1}
    assert notes == []


class Changed:
    """A hf_xet whose sessions, groups and streams are not those that are known: `name` is the first of them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return self.fails if name == self.name else self

    def __call__(self, *_: object, **__: object) -> Changed:
        return self

    def fails(self) -> None:
        """What takes no arguments any more."""

    def __iter__(self) -> Iterator[Any]:
        yield 3


def _raise(error: Exception) -> Any:
    raise error


UNUSABLE: dict[str, tuple[Callable[[str], Any], str]] = {
    "of 1.4": (lambda name: object(), "has no streams, hf_xet 1.5 and later have"),
    "broken": (lambda name: _raise(OSError("wrong ELF class")), r"importing hf_xet fails \(OSError: wrong ELF class"),
    "unfit": (lambda name: _raise(AttributeError("x")), r"importing hf_xet fails \(AttributeError: x"),
    "other groups": (lambda name: Changed("new_download_stream_group"), r"in an unknown way \(TypeError: .*fails"),
    "other streams": (lambda name: Changed("download_stream"), r"in an unknown way \(TypeError: .*fails"),
    "other blocks": (lambda name: Changed(""), r"in an unknown way \(TypeError: .*len"),
}


@pytest.fixture
def _no_hf_xet_is_known() -> Iterator[None]:
    for known in (xet._library, xet._session):
        known.cache_clear()
    yield
    for known in (xet._library, xet._session):
        known.cache_clear()


@pytest.mark.usefixtures("_no_hf_xet_is_known")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_hf_xet_that_cannot_be_used_is_noted_once(
    hub: HubServer, repo: Repo, asked: HubStreams, notes: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, words = UNUSABLE[kind]
    known = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *rest: make(name) if name == "hf_xet" else known(name, *rest)
    )
    assert contents(asked) == repo.files
    assert set(hub.fetched().values()) == {1}
    [line] = notes
    assert re.search(words, line)
    assert line.endswith("files in Xet storage come over HTTP, one connection for each file")


def test_a_file_that_xet_storage_has_lost_is_downloaded_over_http(
    hub: HubServer, repo: Repo, asked: HubStreams, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    hub.cas = f"local://{tmp_path / 'empty'}"
    assert contents(asked) == repo.files
    assert set(hub.fetched().values()) == {1}


@pytest.mark.parametrize("answer", [{"status": 500}, {"status": 403}])
def test_without_access_to_xet_storage_files_are_downloaded_over_http(
    hub: HubServer, repo: Repo, asked: HubStreams, warnings: list[str], answer: dict[str, Any]
) -> None:
    hub.fault("xet", times=99, **answer)
    assert contents(asked) == repo.files
    assert "no access to its Xet storage" in warnings[-1]
    assert hub.count("xet") == (1 if answer["status"] == 403 else module.MAX_ATTEMPTS)


class Halves:
    """A Xet storage that gives the first half of each file, and then what it is told to."""

    def __init__(self, then: Any) -> None:
        self.then = then

    def download_stream(self, info: Any, start: int) -> Iterator[bytes]:
        content = BIG if info.file_size == len(BIG) else OTHER
        yield content[start : info.file_size // 2]
        if self.then is not None:
            raise self.then


@pytest.mark.parametrize("then", [None, ConnectionError("cut"), RuntimeError("Data integrity error")])
def test_a_file_that_xet_storage_breaks_off_is_continued_over_http(
    hub: HubServer, repo: Repo, asked: HubStreams, warnings: list[str], then: Exception | None
) -> None:
    asked._xet._group = Halves(then)
    assert contents(asked) == repo.files
    starts = {request.file: request.range for request in hub.requests if request.what == "cdn"}
    assert starts == {"big.bin": "bytes=4500000-", "other.bin": "bytes=500000-", "plain.bin": None}
    assert [f"its Xet storage fails ({then})" in line for line in warnings] == [True] * (2 if then else 0)
