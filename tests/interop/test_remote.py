"""A task as a remote image runs it: the code package unpacked in an empty folder, and Python with boto3 and requests.

Nothing of ours is installed there, nor Metaflow: all of it comes in the code package. For Azure and Google Cloud
Storage, the image has their SDKs, which Metaflow installs there.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts.testing.seaweedfs import SeaweedServer

ROOT = Path(__file__).parents[2]
# Credentials for the servers, which the code package carries as it does any extension.
EXTENSION = ROOT / "tests" / "clouds" / "extension"
TRAIN_FLOW = ROOT / "examples" / "quickstart" / "train_flow.py"
# Uses none of our decorators: even so its remote tasks import the extensions, which import core.
PLAIN_FLOW = """
from metaflow import FlowSpec, step

class PlainFlow(FlowSpec):
    @step
    def start(self):
        import metaflow_artifacts
        print("core from", metaflow_artifacts.__file__)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    PlainFlow()
"""


STORE_FLOW = """
import os
import subprocess
import sys
from metaflow import FlowSpec, current, model, step, with_artifact_store

CODE = "import sys; from metaflow import load_model; print('subprocess', load_model(sys.argv[1], 'there'))"

def config():
    return {
        "root": os.environ["STORE_ROOT"],
        "client_params": {
            "endpoint_url": os.environ["STORE_ENDPOINT"],
            "aws_access_key_id": os.environ["STORE_KEY"],
            "aws_secret_access_key": os.environ["STORE_SECRET"],
            "region_name": "us-east-1",
        },
    }

@with_artifact_store(type="s3", config=config)
class StoreFlow(FlowSpec):
    @model
    @step
    def start(self):
        self.kept = current.model.save({"name": b"remote"})
        print("saved", self.kept["url"])
        subprocess.run([sys.executable, "-c", CODE, self.kept["key"]], check=True)
        self.next(self.end)

    @model(load="kept")
    @step
    def end(self):
        print("loaded", open(current.model.loaded["kept"] + "/name").read())

if __name__ == "__main__":
    StoreFlow()
"""

# The command `package save` of Metaflow 2.16.8 ends with a TypeError: it calls this property.
PACKAGE_SAVE = """
import runpy, sys
from metaflow.package import MetaflowPackage

class Blob(bytearray):
    def __call__(self):
        return self

known = MetaflowPackage.blob
if isinstance(known, property):
    MetaflowPackage.blob = property(lambda self: Blob(known.fget(self)))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Remote:
    """Makes a flow's code package in one environment and runs its steps from the package in another."""

    def __init__(self, local: Any, image: Any, folder: Path, options: list[str], variables: dict[str, str]):
        self.local, self.image, self.folder = local, image, folder
        self.options, self.variables = [*options, "--metadata", "local"], variables

    def unpack(self, flow: Path) -> None:
        archive = self.folder.with_suffix(".tar")
        save = ("--quiet", *self.options, "package", "save", archive)
        self.local.python("-c", PACKAGE_SAVE, flow, *save, **self.variables)
        self.folder.mkdir()
        with tarfile.open(archive) as tar:
            # Python 3.12 and later warn where no filter is named; the first 3.10 releases know none.
            options: dict[str, Any] = {"filter": "data"} if sys.version_info >= (3, 12) else {}
            tar.extractall(self.folder, **options)
        self.flow = flow.name
        self.run("init", "--run-id", "77", "--task-id", "p1")

    def step(self, name: str, task: str, parent: str) -> str:
        return self.run("step", name, "--run-id", "77", "--task-id", task, "--input-paths", f"77/{parent}")

    def run(self, *arguments: str) -> str:
        variables = {
            **self.variables,
            "PYTHONPATH": str(self.folder / ".mf_code"),
            "METAFLOW_EXTRACTED_ROOT": str(self.folder),
        }
        log: str = self.image.python(self.flow, "--quiet", *self.options, *arguments, cwd=self.folder, **variables)
        return log


CLOUDS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "s3": ("s3_server", {}, []),
    "azure": (
        "azurite_tls",
        {"METAFLOW_DEFAULT_AZURE_CLIENT_PROVIDER": "azurite"},
        ["azure-storage-blob", "azure-identity"],
    ),
    "gs": ("fake_gcs", {"METAFLOW_DEFAULT_GCP_CLIENT_PROVIDER": "fake-gcs"}, ["google-cloud-storage"]),
}
"""For each datastore: its server, what its credentials need, and its SDK."""


@pytest.fixture(params=["local", "s3", "azure", "gs"])
def remote(request: pytest.FixtureRequest, environment: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    variables: dict[str, str] = {}
    root = str(tmp_path / "datastore")
    sdk: list[str] = []
    if request.param in CLOUDS:
        server, credentials, sdk = CLOUDS[request.param]
        variables = {**request.getfixturevalue(server).environment(), **credentials, "PYTHONPATH": str(EXTENSION)}
        root = variables[f"METAFLOW_DATASTORE_SYSROOT_{request.param.upper()}"]
    options = ["--datastore", request.param, "--datastore-root", root]
    image = environment("boto3", "requests", *sdk)
    return lambda *packages: Remote(
        environment("metaflow", *packages, *sdk), image, tmp_path / "image", options, variables
    )


def test_the_code_package_of_any_flow_carries_core(remote: Callable[..., Any], tmp_path: Path) -> None:
    flow = tmp_path / "plain_flow.py"
    flow.write_text(PLAIN_FLOW)
    task = remote("metaflow-artifacts-model")
    task.unpack(flow)
    assert f"core from {task.folder}/.mf_code/metaflow_artifacts" in task.step("start", "2", "_parameters/p1")


def test_a_remote_step_saves_and_another_loads(remote: Callable[..., Any]) -> None:
    task = remote("metaflow-artifacts-model")
    task.unpack(TRAIN_FLOW)
    task.step("start", "2", "_parameters/p1")
    log = task.step("check", "3", "start/2")
    assert "loaded mf.models/models/artifacts/line_" in log
    assert 'weights: {"slope": 2.0, "intercept": 1.0}' in log


def test_a_remote_task_and_its_subprocess_use_the_store_of_the_flow(
    environment: Callable[..., Any], s3_server: SeaweedServer, tmp_path: Path
) -> None:
    """Metaflow's datastore is a directory, and the environment has no keys of AWS."""
    flow = tmp_path / "store_flow.py"
    flow.write_text(STORE_FLOW)
    root = f"{s3_server.root}/{tmp_path.name}"
    variables = {
        "STORE_ROOT": root,
        "STORE_ENDPOINT": s3_server.endpoint,
        "STORE_KEY": s3_server.access_key,
        "STORE_SECRET": s3_server.secret_key,
    }
    options = ["--datastore", "local", "--datastore-root", str(tmp_path / "datastore")]
    local, image = environment("metaflow", "metaflow-artifacts-model"), environment("boto3", "requests")
    task = Remote(local, image, tmp_path / "image", options, variables)
    task.unpack(flow)
    log = task.step("start", "2", "_parameters/p1")
    assert f"saved {root}/mf.models/" in log
    assert "subprocess there" in log
    assert "loaded remote" in task.step("end", "3", "start/2")


HUB_FLOW = """
import os
from metaflow import FlowSpec, current, huggingface_hub, step

class HubFlow(FlowSpec):
    @huggingface_hub(cache_scope="flow")
    @step
    def start(self):
        import huggingface_hub
        print("version", huggingface_hub.__version__)
        self.repo = current.huggingface_hub.snapshot_download(repo_id="org/name", allow_patterns=["*.json", "*.bin"])
        print("size", self.repo["size"])
        self.next(self.end)

    @huggingface_hub(load=[("org/name", "here")], cache_scope="flow")
    @step
    def end(self):
        print("loaded", {name: os.path.getsize("here/" + name) for name in sorted(os.listdir("here"))})
        with current.huggingface_hub.load("org/name", allow_patterns=["*.json", "*.bin"]) as path:
            print("again", sorted(os.listdir(path)), path != "here")

if __name__ == "__main__":
    HubFlow()
"""


@pytest.fixture
def served(served: Path) -> Path:
    repo = served / "models" / "org" / "name"
    repo.mkdir(parents=True)
    for name, size in (("config.json", 2), ("weights.bin", 1_200_000), ("README.md", 1)):
        (repo / name).write_bytes(b"x" * size)
    return served


@pytest.mark.versions
@pytest.mark.parametrize("remote", ["local"], indirect=True)
@pytest.mark.parametrize("version", ["0.16.4", "0.25.2", "0.36.2", "1.0.0", ""])
def test_a_remote_step_takes_the_hub_library_that_is_there(
    remote: Callable[..., Any],
    environment: Callable[..., Any],
    hub: Any,
    tmp_path: Path,
    version: str,
) -> None:
    flow = tmp_path / "hub_flow.py"
    flow.write_text(HUB_FLOW)
    task = remote("metaflow-artifacts-hf")
    task.image = environment(
        "boto3", "requests", f"huggingface_hub=={version}" if version else "huggingface_hub", held=False
    )
    task.variables["HF_ENDPOINT"] = hub.address
    task.unpack(flow)
    log = task.step("start", "2", "_parameters/p1")
    assert f"version {version}" in log
    assert "size 1200002" in log
    assert ("files cannot be streamed" in log) == (version == "0.16.4")
    log = task.step("end", "3", "start/2")
    assert "loaded {'README.md': 1, 'config.json': 2, 'weights.bin': 1200000}" in log
    assert "again ['config.json', 'weights.bin'] True" in log
    # What is not streamed is not looked for in the store, file by file.
    assert hub.fetched().count(("org/name", "config.json")) == (2 if version == "0.16.4" else 1)


@pytest.mark.versions
@pytest.mark.parametrize("remote", ["local"], indirect=True)
@pytest.mark.parametrize("metaflow", ["metaflow==2.16.8", "metaflow"])
def test_each_metaflow_ships_what_a_remote_step_needs(
    remote: Callable[..., Any], environment: Callable[..., Any], tmp_path: Path, metaflow: str
) -> None:
    packages = ("metaflow-artifacts-model", "metaflow-artifacts-checkpoint", "metaflow-artifacts-hf")
    task = remote("metaflow-artifacts-model")
    task.local = environment(metaflow, *packages, held=False)
    flow = tmp_path / "plain_flow.py"
    flow.write_text(PLAIN_FLOW)
    task.unpack(flow)
    assert f"core from {task.folder}/.mf_code/metaflow_artifacts" in task.step("start", "2", "_parameters/p1")
    other = Remote(task.local, task.image, tmp_path / "other", task.options, task.variables)
    other.unpack(TRAIN_FLOW)
    other.step("start", "2", "_parameters/p1")
    assert 'weights: {"slope": 2.0, "intercept": 1.0}' in other.step("check", "3", "start/2")
