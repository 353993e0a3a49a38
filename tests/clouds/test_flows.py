"""The decorators on the datastores azure and gs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloudlib import Cloud

from metaflow_artifacts.testing.flows import FlowRunner

PACKAGES = Path(__file__).parents[2] / "packages"
CHECKPOINT_FLOWS = PACKAGES / "metaflow-checkpoint" / "tests" / "flows"
MODEL_FLOWS = PACKAGES / "metaflow-model" / "tests" / "flows"
FLOWS = Path(__file__).parent / "flows"


def weights_after(epochs: int, seed: str) -> bytes:
    """What training.py makes."""
    weights = seed.encode()
    for epoch in range(epochs):
        weights = hashlib.sha256(weights + epoch.to_bytes(2, "big")).digest() * 2000
    return weights


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
    # The reference alone is enough elsewhere, where another datastore is configured.
    code = "import sys, json; from metaflow import load_model; load_model(json.loads(sys.argv[1]), sys.argv[2])"
    local.python(code, result.fact("as json"), "elsewhere")
    assert (local.work / "elsewhere" / "name.txt").read_text() == "saved in the cloud"


def test_killed_trainings_go_on(runner: FlowRunner) -> None:
    result = runner.run(CHECKPOINT_FLOWS / "sweep_flow.py")
    assert result.output.count("Task is starting (retry)") == 3
    assert result.facts("trainer resumes") == [None, 2]
    assert result.fact("trainer saved") == [5, 4, 3, 2, 1, 0]
    assert sorted(result.facts("resumes")) == [[rate, 4, 0, "mfchckpt", True] for rate in ("0.1", "0.2")]
    assert (runner.work / "latest of trainer").read_bytes() == weights_after(6, "trainer")
    for rate in ("0.1", "0.2"):
        assert (runner.work / f"latest of {rate}").read_bytes() == weights_after(6, rate)
