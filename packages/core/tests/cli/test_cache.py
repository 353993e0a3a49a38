"""The command `cache`, and what `get` says of the cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAFLOW_ARTIFACTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("METAFLOW_ARTIFACTS_CACHE_GB", "0.25")
    return tmp_path / "cache"


def test_what_it_holds_and_clear(
    cache: Path, s3_server: SeaweedServer, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    root = f"{s3_server.root}/{uuid4().hex}"
    (tmp_path / "file").write_bytes(os.urandom(3 * CHUNK))
    key = Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK).save_model(tmp_path / "file")["key"]
    empty = run("cache", root=None)
    assert (empty.code, empty.out) == (0, f"0 chunks of 0 B in {cache}; at most 238.4 MiB\n")
    assert not cache.exists()
    first, second = (run("get", key, str(tmp_path / target), root=root) for target in "ab")
    assert "cache" not in first.out
    assert second.out == f"192 KiB in {tmp_path / 'b'}, 192 KiB of it from the node's cache\n"
    assert run("get", key, str(tmp_path / "c"), "--json", root=root).json["cached"] == 3 * CHUNK
    shown = run("cache", root=None)
    assert shown.out.startswith(f"3 chunks of 192 KiB in {cache}, the oldest used at 20")
    assert run("cache", "--json", root=None).json["size"] == 3 * CHUNK
    cleared = run("cache", "--clear", root=None)
    assert (cleared.code, cleared.out.splitlines()[0]) == (0, "removed 3 chunks of 192 KiB")
    assert list(cache.rglob("*")) == [cache / "metaflow_artifacts"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "1 chunk could not be removed: Read-only file system"),
        (errno.EACCES, "1 chunk of other users, or written since, could not be removed"),
    ],
)
def test_clear_says_why_something_stays(
    cache: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def unlink(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    assert run("cache", root=None).code == 0
    (cache / "metaflow_artifacts").mkdir(parents=True)
    (cache / "metaflow_artifacts" / ("0" * 64)).write_bytes(b"chunk")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        result = run("cache", "--clear", root=None)
    assert result.code == 1
    assert said in result.err


def test_no_cache_is_configured(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFLOW_ARTIFACTS_CACHE", raising=False)
    result = run("cache", root=None)
    assert (result.code, result.out) == (1, "")
    assert "no cache is configured; set METAFLOW_ARTIFACTS_CACHE" in result.err


def test_what_cannot_work(cache: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("cache", root="/").code == 2
    cache.symlink_to("nowhere")
    result = run("cache", root=None)
    assert result.code == 2
    assert f"cannot use the cache in '{cache}'" in result.err
    assert "it is a link that leads to no directory; remove it, or set" in result.err
    monkeypatch.setenv("METAFLOW_ARTIFACTS_CACHE_GB", "much")
    for command in (("cache",), ("get", "mf.models/models/artifacts/m_" + "0" * 32, "x")):
        result = run(*command, root=None if command == ("cache",) else "s3://bucket/prefix")
        assert result.code == 2
        assert "METAFLOW_ARTIFACTS_CACHE_GB: expected a number" in result.err
