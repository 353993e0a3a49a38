"""What the tests of the storages share."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts._storage import remote_requests
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.testing.faults import FaultProxy
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

OTHER_SERVERS = ("TestMoto", "TestRclone")
LONG = ("test_exactly_one_of_many_processes_wins", "test_list_and_delete_find_all_of_many_objects")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what takes long on the servers that are only here to show what they do not keep."""
    of_class = getattr(getattr(item, "cls", None), "__name__", "")
    if of_class in OTHER_SERVERS and getattr(item, "originalname", "") in LONG:
        item.add_marker(pytest.mark.long)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that all users can enter; pytest's own is closed to them, and on some machines all of /tmp."""
    above = next(Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm") if os.stat(place).st_mode & 0o001)
    place = Path(tempfile.mkdtemp(prefix="metaflow-artifacts-", dir=above))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def root(s3_server: SeaweedServer) -> str:
    return f"{s3_server.root}/{uuid4().hex}"


@pytest.fixture
def direct(root: str, s3_server: SeaweedServer) -> S3Storage:
    """The storage without the proxy before it."""
    return S3Storage(root, s3_server.client)


@pytest.fixture
def storage(root: str, s3_server: SeaweedServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.001)
    return S3Storage(root, functools.partial(s3_server.client, endpoint_url=proxy.endpoint))
