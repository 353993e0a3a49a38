"""The flows of the specification, written out anew, on the local datastore and on S3."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOWS = Path(__file__).parent / "flows"
TREE = "['config.json', 'weights.txt']"
AFTER_THE_RUN = """
import json, os, sys
from metaflow import Flow, delete_model, load_model
run = Flow("ModelSavingFlow").latest_successful_run
model, key = run.data.directory_model, run.data.model_key
assert load_model(model, path="./models/notebook") == "./models/notebook"
print("Model created for pathspec", model["pathspec"])
print("Model files:", sorted(os.listdir("./models/notebook")))
load_model(key, "./models/by_key")
print("By key:", sorted(os.listdir("./models/by_key")))
from metaflow_artifacts import ArtifactNotFound
assert delete_model(key) is True
# A reference is of something that was saved: it may be deleted again. A key may have a typing error.
assert delete_model(model) is True
for call in (lambda: load_model(key, "./models/gone"), lambda: delete_model(key)):
    try:
        call()
    except ArtifactNotFound as error:
        print("Deleted:", error)
print("Untouched:", os.path.exists("./models/gone"))
"""


LOADED = r"\[@model\] Loaded artifact `{}\[type:model\]` in \d+\.\d+ seconds"

# One process runs all tests of a datastore: they share runs.
LOCAL = pytest.param("local", marks=pytest.mark.xdist_group("specification local"), id="local")
# CI runs the same flows on S3, from the wheels.
S3 = pytest.param("s3", marks=[pytest.mark.xdist_group("specification s3"), pytest.mark.long], id="s3")


@pytest.fixture(scope="module", params=[LOCAL, S3])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FlowRunner:
    runner = FlowRunner(tmp_path_factory.mktemp(request.param))
    if request.param == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_server")
        variables = server.environment()
        # Only Metaflow's own setting says where the server is.
        del variables["AWS_ENDPOINT_URL_S3"]
        runner = runner.with_environment(**variables, METAFLOW_DEFAULT_DATASTORE="s3")
    return runner


@pytest.fixture(scope="module")
def saved(runner: FlowRunner) -> Result:
    return runner.run(FLOWS / "save_basic.py")


def artifact(runner: FlowRunner, result: Result, name: str) -> Any:
    code = f"""
import json
from metaflow import Run
print(json.dumps(Run("ModelSavingFlow/{result.run_id}").data.{name}))
"""
    return json.loads(runner.python(code).output.splitlines()[-1])


def test_saves_a_file_and_a_directory(runner: FlowRunner, saved: Result) -> None:
    assert "Model key: mf.models/models/artifacts/keras_model_" in saved.output
    model = artifact(runner, saved, "basic_model")
    key = model["key"]
    root = runner.environment.get("METAFLOW_DATASTORE_SYSROOT_S3") or runner.local_root
    assert {name: model[name] for name in ("type", "label", "size", "attempt", "metadata", "parents", "url")} == {
        "type": "model",
        "label": "basic_model",
        "size": 200,
        "attempt": 0,
        "metadata": {"version": "1.0", "accuracy": 0.95},
        "parents": [],
        "url": f"{root}/{key}",
    }
    assert model["pathspec"].startswith(f"ModelSavingFlow/{saved.run_id}/start/")
    assert key == f"mf.models/models/artifacts/{model['uuid']}"


def test_loads_in_later_steps(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "load_in_steps.py")
    key = r"mf.models/models/artifacts/basic_model_"
    start = f"LoadingFlow/{result.run_id}/start/"

    lines = result.lines_of("by_reference")
    assert lines[1].startswith(f"[@model] Loading Artifact with name `basic_model` [type:model] with key: {key}")
    assert re.fullmatch(LOADED.format("basic_model"), lines[2])
    assert lines[3].startswith(f"Path {runner.temporary}/metaflow_models_basic_model_")
    assert lines[3].endswith(f" contains {TREE}")
    assert lines[4].startswith(f"Loaded model from pathspec: {start}")

    assert f"Path ./models/basic_model contains {TREE}" in result.lines_of("to_path")

    lines = result.lines_of("by_key")
    assert lines[1].startswith(f"[@model] Loading Artifact with name `model_key` [type:model] with key: {key}")
    assert lines[3].startswith(f"Path {runner.temporary}/metaflow_models_model_key_")
    assert lines[4].startswith(f"Loaded model from pathspec: {start}")

    lines = result.lines_of("explicitly")
    name = lines[1].removeprefix("[@model] Loaded artifact `").split("[")[0]
    assert len(name) == 6
    assert re.fullmatch(LOADED.format(re.escape(name)), lines[1])
    assert lines[2].startswith(f"Path {runner.temporary}/metaflow_models_{name}_")
    assert re.fullmatch(LOADED.format(re.escape(name)), lines[3])
    assert lines[4] == f"Path ./manual_load contains {TREE}"

    assert runner.leftovers() == []


def test_loads_through_the_client_api(runner: FlowRunner, saved: Result) -> None:
    result = runner.run(FLOWS / "client_api.py")
    assert f"Loaded via decorator: {TREE}" in result.lines
    assert f"Loaded manually to: ./manual {TREE}" in result.lines
    key = artifact(runner, saved, "model_key")
    assert f"PARENTS ['{key}'] []" in result.lines


def test_loads_what_parameters_hold(runner: FlowRunner, saved: Result) -> None:
    key = artifact(runner, saved, "model_key")
    model = json.dumps(artifact(runner, saved, "basic_model"))
    result = runner.run(FLOWS / "key_parameter.py", "--model-key", key, "--reference", model)
    assert f"Model files: {TREE}" in result.lines
    assert f"Loaded model from pathspec: ModelSavingFlow/{saved.run_id}/start/" in result.output
    assert "By reference: True" in result.lines


def test_loads_from_the_run_that_triggered(runner: FlowRunner, saved: Result) -> None:
    result = runner.run(FLOWS / "triggered.py", top=("--trigger", f"ModelSavingFlow/{saved.run_id}"))
    assert f"Triggering run Run('ModelSavingFlow/{saved.run_id}')" in result.lines
    assert "Model files: ['model.h5']" in result.lines


def test_loads_and_deletes_after_the_run(runner: FlowRunner) -> None:
    saved = runner.run(FLOWS / "save_basic.py")
    lines = runner.python(AFTER_THE_RUN).lines
    assert any(line.startswith(f"Model created for pathspec ModelSavingFlow/{saved.run_id}/start/") for line in lines)
    assert f"Model files: {TREE}" in lines
    assert f"By key: {TREE}" in lines
    assert sum(line.startswith("Deleted: nothing is stored at ") for line in lines) == 2
    assert "Untouched: False" in lines
