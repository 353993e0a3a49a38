"""What core's tests share: a store on each storage."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.faults import FaultProxy
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

# `faultlib`, for tests in any directory below: with import-mode importlib, tests are no packages.
sys.path.insert(0, str(Path(__file__).parent / "faults"))

from faultlib.page import PageCheck, pytest_addoption

__all__ = ["pytest_addoption"]

# Tests by Hypothesis try this many examples at every change, and `nox -s rare` many more.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("quick")

CHUNK_SIZE = 64 << 10
"""Small, so that a small artifact has many chunks."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PageCheck(config), PageCheck.__name__)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run long tests with a server one at a time: several that move 1 GiB make their servers stall on the disk."""
    if item.get_closest_marker("long") and "s3_server" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("long with a server"))


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store that cuts content into small chunks."""
    if request.param == "local":
        return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK_SIZE)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    return Store(open_storage(f"{server.root}/{uuid4().hex}", client=server.client), chunk_size=CHUNK_SIZE)


@pytest.fixture
def place() -> CheckpointPlace:
    """A place of checkpoints that no other test uses."""
    return CheckpointPlace("F", "train", "a" * 12, uuid4().hex[:12])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file to save."""
    path = tmp_path / "state"
    path.write_text("state")
    return path


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    """Counts the requests to SeaweedFS."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def remote(s3_server: SeaweedServer, proxy: FaultProxy) -> Store:
    """An empty store on SeaweedFS, behind the proxy."""
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    return Store(open_storage(f"{s3_server.root}/{uuid4().hex}", client=client), chunk_size=CHUNK_SIZE)
