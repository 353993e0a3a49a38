"""What the tests of Azure and GCS share: servers on loopback, and flows that use them as Metaflow's datastore."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# pytest's importlib mode adds no directory to the path; tests share the module cloudlib.
sys.path.insert(0, str(Path(__file__).parent))

from cloudlib import Cloud

from metaflow_artifacts.testing.azurite import AzuriteServer
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer
from metaflow_artifacts.testing.flows import FlowRunner

EXTENSION = Path(__file__).parent / "extension"
PROVIDERS = {"azure": "METAFLOW_DEFAULT_AZURE_CLIENT_PROVIDER", "gs": "METAFLOW_DEFAULT_GCP_CLIENT_PROVIDER"}


@pytest.fixture(params=["azure", "gs"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Cloud:
    """A root that no other test uses, in each cloud."""
    kind: str = request.param
    server: AzuriteServer | FakeGcsServer
    server = request.getfixturevalue("azurite_tls" if kind == "azure" else "fake_gcs")
    provider = "azurite" if kind == "azure" else "fake-gcs"
    below = f"{server.bucket}/{tmp_path.name}"
    sysroot = below if kind == "azure" else f"gs://{below}"
    environment = {
        **server.environment(),
        f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}": sysroot,
        PROVIDERS[kind]: provider,
        "PYTHONPATH": str(EXTENSION),
    }
    return Cloud(kind, f"{server.root}/{tmp_path.name}", environment)


@pytest.fixture
def runner(cloud: Cloud, tmp_path: Path) -> FlowRunner:
    """Runs flows on a datastore of the test's own in each cloud."""
    return FlowRunner(tmp_path, {**cloud.environment, "METAFLOW_DEFAULT_DATASTORE": cloud.kind})


@pytest.fixture
def in_cloud(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Gives this process the variables of the cloud, for tests without Metaflow's runtime."""

    def enter() -> None:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)

    return enter
