"""What the tests of this package share: real flows on each datastore."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

# pytest's importlib mode adds no directory to the path; tests share the module stored_task.
sys.path.insert(0, str(Path(__file__).parent))

FLOWS = Path(__file__).parent / "flows"


@pytest.fixture
def flows() -> Path:
    """Where the flow files are."""
    return FLOWS


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    """Runs flows on a local datastore of the test's own."""
    return FlowRunner(tmp_path)


@pytest.fixture(params=["local", "s3"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> FlowRunner:
    """Runs flows on a datastore of the test's own: on disk, then in S3."""
    if request.param == "local":
        return FlowRunner(tmp_path)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    variables = {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3"}
    return FlowRunner(tmp_path, {**variables, "METAFLOW_DATASTORE_SYSROOT_S3": f"{server.root}/{tmp_path.name}"})
