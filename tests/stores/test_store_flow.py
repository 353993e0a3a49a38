"""Flows with `@with_artifact_store`: what they save and load, who finds it, and where credentials are."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
from storelib import SECRET

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOWS = Path(__file__).parent / "flows"
FLOW = FLOWS / "store_flow.py"

OUTSIDE = """
import json, os, sys
from threading import Thread
from metaflow import Checkpoint, Run, artifact_store_from, load_model, namespace
from metaflow_artifacts.testing.flows import emit

namespace(None)
run = Run(sys.argv[1])
model, saved = run["start"].task.data.model, run["start"].task.data.saved
with open(os.environ["STORE_CONFIG"]) as file:
    config = {"client_params": json.load(file)["client_params"]}

def read(path):
    with open(path) as file:
        return file.read()

def use(where):
    emit("loads", read(load_model(model, f"{where}/by_reference") + "/weights"))
    emit("loads", read(load_model(model["key"], f"{where}/by_key") + "/weights"))
    with Checkpoint() as cp:
        emit("lists", [one["key"] for one in cp.list(task=run["start"].task)])
        cp.load(cp.list(task=run["start"].task)[0])
        emit("newest", read(os.path.join(cp.directory, "state")))

for given in ({"run": run}, {"task": run["start"].task}, {"task": run["start"].task.pathspec}):
    with artifact_store_from(**given, config=config):
        use("inside")
with artifact_store_from(run=run.pathspec, config=lambda: config):
    thread = Thread(target=use, args=("in_thread",))
    thread.start()
    thread.join()
for call in (lambda: load_model(model, "outside"), lambda: Checkpoint().list(task=run["start"].task)):
    try:
        call()
    except Exception as error:
        emit("outside", str(error))
emit("tags", sorted(tag for tag in run.system_tags if tag.startswith("artifact-store")))
metadata = run["start"].task.metadata_dict
emit("metadata", [metadata["artifact-store-ds-type"], metadata["artifact-store-ds-root"], metadata["ds-type"]])
"""


@pytest.fixture
def run(runner: FlowRunner) -> Result:
    return runner.run(FLOW)


def written(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def holds(path: Path, text: str) -> bool:
    """Whether a file has a text in it. Metaflow compresses artifacts and logs."""
    content = path.read_bytes()
    return text.encode() in (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)


def test_a_flow_keeps_everything_in_its_store_and_credentials_nowhere(
    run: Result, runner: FlowRunner, root: str, private: SeaweedServer, tmp_path: Path
) -> None:
    stored = {one.key for one in open_store(root, client=private.client).storage.list("mf.checkpoints/")}
    assert run.facts("resumed") == [False, True]
    assert run.fact("subprocess saves").startswith(f"{root}/mf.checkpoints/")
    assert run.fact("thread loads") == run.fact("model loads") == run.fact("plain step loads") == "1 2 3"
    assert run.facts("subprocess loads") == ["1 2 3", "1 2 3"]
    assert len(run.facts("sees")[0]) == 2
    assert set(run.fact("subprocess lists")) < stored
    assert run.facts("listed by the command") == [True, True]
    # Metaflow's artifacts stay in its datastore, and nothing else is there.
    local = Path(runner.local_root)
    assert {path.name for path in local.iterdir()} == {"StoreFlow", "mf.cards"}

    refused = {"AWS_ACCESS_KEY_ID": "another", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    elsewhere = runner.with_environment(METAFLOW_S3_ENDPOINT_URL=private.endpoint, **refused)
    outside = elsewhere.python(OUTSIDE, f"StoreFlow/{run.run_id}")
    assert outside.facts("loads") == ["1 2 3"] * 8
    assert outside.facts("newest") == ["of the second attempt"] * 4
    assert all(len(keys) == 2 for keys in outside.facts("lists"))
    assert ["`with artifact_store_from(" in said for said in outside.facts("outside")] == [True, True]
    assert outside.fact("tags") == [f"artifact-store-ds-root:{root}", "artifact-store-ds-type:s3"]
    assert outside.fact("metadata") == ["s3", root, "local"]

    archive = tmp_path / "package.tgz"
    runner.command(FLOW, "package", "save", str(archive))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", unpacked], check=True)
    assert (unpacked / "store_flow.py").is_file()
    searched = [*written(local), *written(unpacked), *written(runner.work)]
    assert any("card" in str(path) for path in searched)
    assert "ENVIRONMENT" in run.output
    assert SECRET not in run.output + outside.output
    assert not [path for path in searched if holds(path, SECRET)]
    # The file for subprocesses is gone with its task.
    assert runner.leftovers() == []
    assert [path for path in written(tmp_path) if holds(path, SECRET)] == [tmp_path / "config" / "store.json"]
