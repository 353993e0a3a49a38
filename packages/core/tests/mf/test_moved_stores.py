"""An artifact that is no longer at the `url` of its reference is loaded from the configured store, if it is there."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import (
    ArtifactError,
    ArtifactNotFound,
    CheckpointPlace,
    CheckpointWriter,
    ModelArtifact,
    StorageError,
    Store,
    TransientStorageError,
    open_store,
)
from metaflow_artifacts._mf import datastore, stores
from metaflow_artifacts._mf.datastore import store_at
from metaflow_artifacts._mf.stores import store_for
from metaflow_artifacts.testing.seaweedfs import SeaweedServer


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


@pytest.fixture
def default(tmp_path: Path) -> Store:
    return store_at("local", str(tmp_path / "configured"))


def moved(reference: ModelArtifact, root: str) -> ModelArtifact:
    """The reference as it was before its store was moved from `root`."""
    return {**reference, "url": f"{root}/{reference['key']}"}


def as_configured(monkeypatch: pytest.MonkeyPatch, endpoint: str, access_key: str = "a", secret_key: str = "s") -> None:
    """Configure Metaflow in this process for an S3 server."""
    from metaflow import metaflow_config

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(metaflow_config, "DATATOOLS_CLIENT_PARAMS", {"endpoint_url": endpoint})
    for cached in (datastore.open_with, stores._storage):
        cached.cache_clear()


@pytest.fixture
def s3(s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    as_configured(monkeypatch, s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    yield s3_server
    for cached in (datastore.open_with, stores._storage):
        cached.cache_clear()


def test_the_configured_store_works_in_a_worker(
    s3: SeaweedServer, content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker makes a client as Metaflow is configured there."""
    monkeypatch.setenv("METAFLOW_S3_ENDPOINT_URL", s3.endpoint)
    store = store_at("s3", f"{s3.root}/{tmp_path.name}")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        saved = pool.submit(store.save_model, content).result()
    assert Path(store.load(saved, tmp_path / "out"), "file").read_text() == "content"
    assert s3.secret_key.encode() not in pickle.dumps(store)


def test_a_missing_directory_leads_to_the_configured_store(default: Store, content: Path, tmp_path: Path) -> None:
    saved = moved(default.save_model(content), str(tmp_path / "gone"))
    assert store_for(saved, default) is default
    default.delete(saved["key"])
    with pytest.raises(ArtifactNotFound) as raised:
        store_for(saved, default)
    assert str(tmp_path / "gone") in str(raised.value)
    assert default.root in str(raised.value)


def test_a_url_is_loaded_from_the_root_that_it_names(default: Store, content: Path, tmp_path: Path) -> None:
    there = open_store(tmp_path / "there").save_model(content)
    assert store_for(there["url"], default).root == str(tmp_path / "there")
    # The key of a model is random: whatever has it is this model.
    here = moved(default.save_model(content), str(tmp_path / "gone"))
    assert store_for(here["url"], default) is default
    with pytest.raises(ArtifactNotFound) as raised:
        store_for(moved(there, str(tmp_path / "gone"))["url"], default)
    assert str(tmp_path / "gone") in str(raised.value)
    assert default.root in str(raised.value)


def test_a_url_of_a_checkpoint_leads_to_no_other_store(default: Store, content: Path, tmp_path: Path) -> None:
    """Two deployments that both count their runs from 1 have the same keys of checkpoints."""
    place = CheckpointPlace("F", "train", "0" * 12, "1" * 12)
    saved = CheckpointWriter(default, place, "0" * 8, 0).save(content, label="x")
    assert store_for(saved["url"], default) is default
    with pytest.raises(ArtifactNotFound, match="a url does not tell whether it is the same one; pass the key alone"):
        store_for(moved(saved, str(tmp_path / "gone"))["url"], default)
    assert store_for(moved(saved, str(tmp_path / "gone")), default) is default


@pytest.mark.parametrize("root", ["s3://me:SECRET@b/x", "wasbs://c@a/p?sig=SECRET", "gs://b/x?X-Goog-Signature=SECRET"])
def test_a_secret_in_a_url_is_not_shown(default: Store, root: str) -> None:
    with pytest.raises(ArtifactError, match=r"//.*…") as caught:
        store_for(f"{root}/mf.models/models/artifacts/a_{'0' * 32}", default)
    assert "SECRET" not in str(caught.value)


def test_a_url_of_another_kind_of_store_is_an_error(default: Store, content: Path) -> None:
    saved = default.save_model(content)
    with pytest.raises(
        StorageError, match=f"hdfs://bucket cannot be read by this version; pass the key alone, {saved['key']}"
    ):
        store_for(f"hdfs://bucket/{saved['key']}", default)


def test_a_directory_that_has_lost_the_key_leads_to_the_configured_store(
    default: Store, content: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    other = open_store(old).save_model(content)
    saved = moved(default.save_model(content), str(old))
    assert store_for(saved, default) is default
    assert store_for(other, default).root == str(old)
    default.delete(saved["key"])
    with pytest.raises(ArtifactNotFound) as raised:
        store_for(saved, default)
    for place in (str(old), default.root):
        assert f"nothing is stored at {place}/{saved['key']}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_artifact_at_the_same_key_is_not_loaded(default: Store, content: Path, tmp_path: Path) -> None:
    saved = default.save_model(content)
    for field, value in (("created_on", "2020-01-01T00:00:00+00:00"), ("size", 1), ("pathspec", "F/1/s/2")):
        other = moved({**saved, field: value}, str(tmp_path / "gone"))  # type: ignore[misc]
        with pytest.raises(ArtifactNotFound, match=f"another artifact is stored there \\({field} "):
            store_for(other, default)


def test_a_directory_that_cannot_be_read_leads_to_the_configured_store(
    default: Store, content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = moved(default.save_model(content), str(tmp_path / "old"))
    (tmp_path / "old").mkdir()

    def refused(path: Any, **_: Any) -> Any:
        if str(path).startswith(str(tmp_path / "old" / "mf.models")):
            raise PermissionError(13, "Permission denied", str(path))
        return os_stat(path, **_)

    os_stat = os.stat
    monkeypatch.setattr(os, "stat", refused)
    assert store_for(saved, default) is default
    default.delete(saved["key"])
    with pytest.raises(StorageError, match=r"old.*ermission denied.*configured"):
        store_for(saved, default)


def test_without_a_configured_store_the_error_names_the_root_of_the_url(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = open_store(tmp_path / "old").save_model(content)

    def none() -> Store:
        raise StorageError("no local datastore")

    monkeypatch.setattr(stores, "default_store", none)
    assert store_for(saved).root == str(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(StorageError, match=r"old is no directory .* no datastore is configured: no local datastore"):
        store_for(saved)


@pytest.mark.parametrize("old", ["s3://no-such-bucket/metaflow", "s3://artifacts/moved-away", "s3://artifacts/a//b"])
def test_a_bucket_or_prefix_that_is_gone_leads_to_the_configured_store(
    s3: SeaweedServer, content: Path, tmp_path: Path, old: str
) -> None:
    default = store_at("s3", f"{s3.root}/{tmp_path.name}")
    saved = moved(default.save_model(content), old)
    assert store_for(saved, default) is default
    assert store_for(saved["key"], default) is default
    default.delete(saved["key"])
    with pytest.raises((ArtifactNotFound, StorageError)) as raised:
        store_for(saved, default)
    assert old in str(raised.value)
    assert default.root in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_the_old_root_still_holds_is_loaded_from_there(
    s3: SeaweedServer, default: Store, content: Path, tmp_path: Path
) -> None:
    old = f"{s3.root}/{tmp_path.name}/old"
    saved = store_at("s3", old).save_model(content)
    found = store_for(saved, default)
    assert found.root == old
    assert found.read_file(saved, "file") == b"content"


class Answers(BaseHTTPRequestHandler):
    """An S3 that gives one answer to all, as often as `failing` says; after that there is an object."""

    code = "AccessDenied"
    status = 403
    failing = -1

    def do_GET(self) -> None:
        cls = type(self)
        cls.failing -= cls.failing > 0
        body = b"x" if not cls.failing else f"<Error><Code>{cls.code}</Code></Error>".encode()
        self.send_response(cls.status if cls.failing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def serve(answers: type[Answers]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    answers = type("Answers", (Answers,), {})
    running = serve(answers)
    as_configured(monkeypatch, f"http://127.0.0.1:{running.server_port}")
    yield answers
    running.shutdown()
    running.server_close()
    for cached in (datastore.open_with, stores._storage):
        cached.cache_clear()


def test_a_bucket_that_refuses_leads_to_the_configured_store(
    server: type[Answers], default: Store, content: Path
) -> None:
    saved = moved(default.save_model(content), "s3://theirs/metaflow")
    assert store_for(saved, default) is default
    default.delete(saved["key"])
    with pytest.raises(StorageError, match=r"s3://theirs/metaflow/.*access denied.*configured") as raised:
        store_for(saved, default)
    assert not isinstance(raised.value, TransientStorageError)


def test_a_root_that_fails_for_a_while_is_asked_again_if_no_other_store_has_the_artifact(
    server: type[Answers], default: Store, content: Path
) -> None:
    saved = moved(default.save_model(content), "s3://busy/metaflow")
    default.delete(saved["key"])
    server.code, server.status, server.failing = "SlowDown", 503, 9
    assert store_for(saved, default).root == "s3://busy/metaflow"


def test_a_server_that_is_gone_leads_to_the_configured_store(
    default: Store, content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_configured(monkeypatch, "http://127.0.0.1:1")
    saved = moved(default.save_model(content), "s3://gone/metaflow")
    assert store_for(saved, default) is default
