"""A store can be handed to other processes: it is pickled as its root and settings, and never with credentials."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store, open_store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.azure_client import default_credential
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._storage.s3_client import default_client
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_artifacts.testing.servers import s3_client

SECRET = "very-secret-key"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


@pytest.fixture
def configured(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of each kind; credentials, but no endpoint, are in the environment."""
    if isinstance(store.storage, S3Storage):
        server: SeaweedServer = request.getfixturevalue("s3_server")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return store


def pickled(store: Store) -> Store:
    again: Store = pickle.loads(pickle.dumps(store))
    return again


@pytest.mark.parametrize("make", [pickled, copy.deepcopy])
def test_a_copy_is_another_store_at_the_same_root(
    configured: Store, make: Callable[[Store], Store], file: Path, tmp_path: Path
) -> None:
    configured.refresh_after = 5.0
    saved = configured.save_model(file)
    again = make(configured)
    assert again.storage is not configured.storage
    for name in ("root", "chunk_size", "refresh_after"):
        assert getattr(again, name) == getattr(configured, name)
    assert Path(again.load(saved, tmp_path / "out"), "file").read_text() == "content"
    assert again.save_model(file)["url"].startswith(f"{configured.root}/")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_save_and_load(configured: Store, method: str, file: Path, tmp_path: Path) -> None:
    saved = configured.save_model(file)
    # The server that forks has the environment of its start, which may be that of another test.
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    begin = f"import os; os.environ.update({variables!r})"
    with ProcessPoolExecutor(1, get_context(method), initializer=exec, initargs=(begin,)) as pool:
        loaded = pool.submit(configured.load, saved, tmp_path / "out").result()
        of_worker = pool.submit(configured.save_model, file, "worker").result()
    assert Path(loaded, "file").read_text() == "content"
    assert configured.info(of_worker["key"]) == of_worker


def clients() -> dict[str, Callable[[], Any]]:
    return {
        "partial": partial(s3_client, "http://127.0.0.1:1", "key", SECRET),
        "closure": lambda: s3_client("http://127.0.0.1:1", "key", SECRET),
    }


@pytest.mark.parametrize("kind", clients())
def test_credentials_are_in_no_pickle(kind: str) -> None:
    store = open_store("s3://bucket/prefix", client=clients()[kind])
    data = pickle.dumps(store)
    assert SECRET.encode() not in data
    again = pickle.loads(data).storage
    assert isinstance(again, S3Storage)
    assert again.server == "http://127.0.0.1:1"
    assert again._requests.client("read", "").meta.region_name == "us-east-1"
    assert again._connect is not store.storage._connect  # type: ignore[attr-defined]


def test_a_function_with_a_name_makes_the_client_of_the_copy() -> None:
    # With the settings of the process that reads the pickle.
    options: dict[str, Any] = {"sse": "aws:kms", "sse_kms_key_id": "id", "patience": 7.0}
    storage = open_storage("s3://bucket/prefix", client=default_client, **options)
    assert isinstance(storage, S3Storage)
    again = pickle.loads(pickle.dumps(storage))
    assert again._connect is default_client
    assert again._requests.patience == 7.0
    assert again._written == storage._written
    assert again._requests._client is None


def test_a_deep_copy_in_the_same_process_keeps_any_function() -> None:
    make = clients()["closure"]
    storage = open_storage("s3://bucket/prefix", client=make)
    assert isinstance(storage, S3Storage)
    copied = copy.deepcopy(storage)
    assert copied._connect is make
    assert copied._requests is not storage._requests


@pytest.mark.parametrize("kind", ["azure", "gcs"])
def test_credentials_for_other_clouds_are_in_no_pickle(kind: str) -> None:
    def with_secret() -> tuple[str, None]:
        return SECRET, None

    def opened(credentials: Callable[[], Any]) -> Any:
        if kind == "azure":
            root = "https://account.blob.core.windows.net/container/prefix"
            return AzureStorage(root, credentials, endpoint="https://account.blob.core.windows.net", patience=7)
        return GcsStorage("gs://bucket/prefix", credentials, endpoint="http://127.0.0.1:1", patience=7)

    for given, kept in ((with_secret, None), (default_credential, default_credential)):
        storage = opened(given)
        data = pickle.dumps(Store(storage))
        assert SECRET.encode() not in data
        again: Any = pickle.loads(data).storage
        assert (again.root, again._requests.patience) == (storage.root, 7)
        found = again._credential if kind == "azure" else again._credentials
        assert found is (kept or (default_credential if kind == "azure" else None))
        copied = copy.deepcopy(storage)
        assert (copied._credential if kind == "azure" else copied._credentials) is given


def test_a_local_store_keeps_how_it_writes(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, sync=True)
    again = pickle.loads(pickle.dumps(storage))
    assert (again.root, again._sync) == (str(tmp_path), True)
