"""What the tests of metaflow-artifacts-hf share: the test Hub, and stores."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

# pytest's importlib mode does not add this directory, which has the modules of the test Hub.
sys.path.insert(0, str(Path(__file__).parent))

# huggingface_hub reads its settings when it is imported: none of this machine's may count.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[name]
HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ["HF_HOME"] = HF_HOME.name

from hub import Hub  # noqa: E402
from hub_client import FILES  # noqa: E402
from hub_repo import Repo  # noqa: E402

from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as module  # noqa: E402

CHUNK_SIZE = 128 << 10
"""Small, so that a small repo has many chunks."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without repos."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """The repo of the tests of the client, with a large file."""
    return hub.repo("org/name", files=FILES)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before retries, in seconds. The tests do not wait for them."""
    waited: list[float] = []
    monkeypatch.setattr(module, "pause", lambda seconds, cancelled: waited.append(seconds))
    return waited


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store that cuts content into small chunks."""
    if request.param == "local":
        return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK_SIZE)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    return Store(open_storage(f"{server.root}/{uuid4().hex}", client=server.client), chunk_size=CHUNK_SIZE)
