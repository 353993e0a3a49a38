"""The fault suite: what each fault leads to is recorded, and docs/reliability.md must say the same.

`pytest packages/core/tests/faults --write-page` writes the page's tables anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faultlib.outcomes import Outcomes
from faultlib.page import PageCheck

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage, remote_requests
from metaflow_artifacts._transfer import chunks
from metaflow_artifacts.testing.faults import FaultProxy
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """A directory that holds what must not change, and in which a test can make its target."""
    root = tmp_path / "sandbox"
    (root / "precious").mkdir(parents=True)
    (root / "precious" / "file").write_text("precious")
    return root


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """Where a test puts what it finds."""
    page: PageCheck | None = request.config.pluginmanager.get_plugin(PageCheck.__name__)
    assert page is not None
    return page.outcomes_of(request.node)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """An empty store on disk."""
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    """The proxy between `remote` and its server."""
    with FaultProxy(s3_server.endpoint, (s3_server.access_key, s3_server.secret_key)) as proxy:
        yield proxy


@pytest.fixture
def root(s3_server: SeaweedServer) -> str:
    """A root in S3 that no other test uses."""
    return f"{s3_server.root}/{uuid4().hex}"


@pytest.fixture
def direct(root: str, s3_server: SeaweedServer) -> Store:
    """The store in S3, without the proxy."""
    return Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK)


@pytest.fixture
def connect(s3_server: SeaweedServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes a client that goes through the proxy, and does not wait long for an answer or before a retry."""
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(chunks, "RETRY_WINDOW_S", 0.2)
    from metaflow_artifacts._storage.s3 import client_config

    config = client_config(read_timeout=0.7, connect_timeout=0.7)
    return functools.partial(s3_server.client, endpoint_url=proxy.endpoint, config=config)


@pytest.fixture
def remote(root: str, connect: Callable[[], Any]) -> Store:
    """The store in S3, through the proxy."""
    return Store(open_storage(root, client=connect), chunk_size=CHUNK)


@pytest.fixture
def impatient(remote: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """`remote`, for calls that must fail: four attempts are enough, also where the machine is slow."""
    monkeypatch.setattr(remote_requests, "_ATTEMPTS", 4)
    return remote
