"""The decorators on the datastores azure and gs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cloudlib import Cloud

from metaflow_artifacts.testing.flows import FlowRunner

PACKAGES = Path(__file__).parents[2] / "packages"
CHECKPOINT_FLOWS = PACKAGES / "metaflow-checkpoint" / "tests" / "flows"
HUB_TESTS = PACKAGES / "metaflow-hf" / "tests"
FLOWS = Path(__file__).parent / "flows"


seldom_on_gs = pytest.mark.parametrize(
    "cloud", ["azure", pytest.param("gs", marks=pytest.mark.long)], ids=str, indirect=True
)
seldom_on_azure = pytest.mark.parametrize(
    "cloud", [pytest.param("azure", marks=pytest.mark.long), "gs"], ids=str, indirect=True
)
"""For what takes long and depends little on the cloud: `nox -s rare` runs the other one."""


def weights_after(epochs: int, seed: str) -> bytes:
    """What training.py makes."""
    weights = seed.encode()
    for epoch in range(epochs):
        weights = hashlib.sha256(weights + epoch.to_bytes(2, "big")).digest() * 2000
    return weights


@pytest.mark.long
def test_a_model_is_saved_and_loaded(cloud: Cloud, runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "cloud_flow.py")
    saved = result.fact("saved")
    assert saved["url"] == f"{cloud.root}/{saved['key']}"
    assert result.fact("loaded") == ["saved in the cloud", 3 << 20]
    assert runner.leftovers() == []


def test_the_datastore_of_the_command_line_is_used(cloud: Cloud, runner: FlowRunner) -> None:
    local = runner.with_environment(METAFLOW_DEFAULT_DATASTORE="local")
    result = local.run(FLOWS / "cloud_flow.py", top=("--datastore", cloud.kind))
    assert result.fact("saved")["url"].startswith(f"{cloud.root}/mf.models/")
    assert result.fact("loaded") == ["saved in the cloud", 3 << 20]
    assert local.leftovers() == []
    # The reference alone is enough elsewhere, where another datastore is configured.
    code = "import sys, json; from metaflow import load_model; load_model(json.loads(sys.argv[1]), sys.argv[2])"
    local.python(code, result.fact("as json"), "elsewhere")
    assert (local.work / "elsewhere" / "name.txt").read_text() == "saved in the cloud"


IN_A_NOTEBOOK = """
import sys
from metaflow import Run, artifact_store_from, delete_model, load_model, namespace
namespace(None)
run = Run(sys.argv[1])
with artifact_store_from(run=run):
    load_model(run.data.kept["key"], "in_a_notebook")
for _ in range(2):
    # A step that deletes can be retried.
    delete_model(run.data.kept)
"""


@seldom_on_gs
def test_a_flow_keeps_its_models_in_another_store_than_its_artifacts(cloud: Cloud, runner: FlowRunner) -> None:
    root = cloud.environment[f"METAFLOW_DATASTORE_SYSROOT_{cloud.kind.upper()}"]
    local = runner.with_environment(METAFLOW_DEFAULT_DATASTORE="local", STORE_TYPE=cloud.kind, STORE_ROOT=root)
    result = local.run(FLOWS / "store_flow.py")
    saved = result.fact("saved")
    assert saved["url"] == f"{cloud.root}/{saved['key']}"
    assert result.fact("loaded") == "saved in the cloud"
    local.python(IN_A_NOTEBOOK, f"StoreFlow/{result.run_id}")
    for directory in ("by_subprocess", "in_a_notebook"):
        assert (local.work / directory / "name.txt").read_text() == "saved in the cloud"
    assert [path.name for path in Path(local.local_root).iterdir()] == ["StoreFlow"]


@seldom_on_azure
def test_killed_trainings_go_on(runner: FlowRunner) -> None:
    result = runner.run(CHECKPOINT_FLOWS / "sweep_flow.py")
    assert result.output.count("Task is starting (retry)") == 3
    assert result.facts("trainer resumes") == [None, 2]
    assert result.fact("trainer saved") == [5, 4, 3, 2, 1, 0]
    assert sorted(result.facts("resumes")) == [[rate, 4, 0, "mfchckpt", True] for rate in ("0.1", "0.2")]
    assert (runner.work / "latest of trainer").read_bytes() == weights_after(6, "trainer")
    for rate in ("0.1", "0.2"):
        assert (runner.work / f"latest of {rate}").read_bytes() == weights_after(6, rate)


@seldom_on_gs
def test_a_gang_resumes_in_step_and_eagerly(runner: FlowRunner) -> None:
    """A node is killed; all nodes of the next run, which is eager, begin where the gang was, however late they are."""
    flow = CHECKPOINT_FLOWS / "gang_flow.py"
    runner = runner.with_late_workers(1).with_environment(NODES="2", RETRIES="0")
    runner.with_environment(DEATHS=json.dumps({"0": [1, 2]})).run(flow, fails=True)
    runner.with_environment(POLICY="eager").command(flow, "resume")
    lines = [json.loads(line) for line in (runner.work / "record").read_text().splitlines()]
    begins = [(epoch, key) for kind, _, _, epoch, key in (line for line in lines if line[0] == "begins")]
    assert begins[:2] == [(0, None)] * 2
    assert len(begins) == 4
    assert begins[2] == begins[3]
    assert begins[2][0] in (2, 3)


@seldom_on_azure
def test_a_repo_of_the_hub_is_stored_and_downloaded_once(cloud: Cloud, runner: FlowRunner, tmp_path: Path) -> None:
    done = runner.python(HUB_RUNS, str(HUB_TESTS), str(HUB_TESTS / "flows" / "reference_flow.py"))
    first, again = done.facts("reference")
    assert first["url"].startswith(f"{cloud.root}/mf.huggingface_hub/")
    assert again["key"] == first["key"]
    assert done.fact("downloads") == [{"config.json": 1, "weights.bin": 1}, {"config.json": 1, "weights.bin": 1}]


HUB_RUNS = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
os.environ["HF_HOME"] = os.path.abspath("hf-home")
from hub import Hub
from hub_repo import lfs
from metaflow_artifacts.testing.flows import emit
with Hub() as hub:
    hub.repo("org/name", files={"config.json": b"{}", "weights.bin": lfs(os.urandom(2_000_000))})
    downloads = []
    for _ in range(2):
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
        subprocess.run([sys.executable, sys.argv[2], "run"], env=environment, check=True)
        downloads.append(hub.fetched())
    emit("downloads", downloads)
"""
"""Runs a flow twice beside a Hub, in a process of its own: huggingface_hub reads its settings when it is imported."""
