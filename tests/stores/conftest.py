"""What the tests of artifact stores share: a server whose keys only the config of a flow has."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode adds no directory to the path; tests share the module storelib.
sys.path.insert(0, str(Path(__file__).parent))

from storelib import SECRET

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """SeaweedFS with a secret key that stands nowhere else."""
    with seaweedfs(tmp_path_factory.mktemp("private"), secret_key=SECRET) as server:
        yield server


@pytest.fixture
def root(private: SeaweedServer, tmp_path: Path) -> str:
    """A root that no other test uses."""
    return f"{private.root}/{tmp_path.name}"


@pytest.fixture
def runner(tmp_path: Path, private: SeaweedServer, root: str) -> FlowRunner:
    """Runs flows on a local datastore of the test's own. They read the config of their store from a file."""
    config = tmp_path / "config" / "store.json"
    config.parent.mkdir()
    params = {
        "endpoint_url": private.endpoint,
        "aws_access_key_id": private.access_key,
        "aws_secret_access_key": private.secret_key,
        "region_name": "us-east-1",
    }
    config.write_text(json.dumps({"root": root, "client_params": params}))
    return FlowRunner(tmp_path, {"STORE_CONFIG": str(config)})
