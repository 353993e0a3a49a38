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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gangs", type=int, default=1, help="how many gangs are run and killed")
    parser.addoption("--deaths", type=int, default=1, help="in how many of its attempts a node is killed")
    parser.addoption("--lateness", type=float, default=1.0, help="the most seconds that a node of them starts late")


@pytest.fixture
def flows() -> Path:
    """Where the flow files are."""
    return FLOWS


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    """Runs flows on a local datastore of the test's own."""
    return FlowRunner(tmp_path)


@pytest.fixture
def s3_runner(tmp_path: Path, s3_server: SeaweedServer) -> FlowRunner:
    """Runs flows on a datastore of the test's own in S3."""
    variables = {**s3_server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3"}
    return FlowRunner(tmp_path, {**variables, "METAFLOW_DATASTORE_SYSROOT_S3": f"{s3_server.root}/{tmp_path.name}"})


@pytest.fixture(params=["runner", "s3_runner"], ids=["local", "s3"])
def either(request: pytest.FixtureRequest) -> FlowRunner:
    """Runs flows on a datastore of the test's own: on disk, then in S3."""
    chosen: FlowRunner = request.getfixturevalue(request.param)
    return chosen
