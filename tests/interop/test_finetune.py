"""All three decorators in one flow, as the documentation of metaflow-checkpoint combines them, with every step killed
half-way: the content is right to the byte, and nothing is downloaded twice."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts.testing.flows import Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

HUB = Path(__file__).parents[2] / "packages" / "metaflow-hf" / "tests" / "hub.py"
PACKAGES = ("metaflow-artifacts-model", "metaflow-artifacts-checkpoint", "metaflow-artifacts-hf")
WEIGHTS = bytes(range(256)) * 8000
REPOS = {
    "models/org/base": {"weights.bin": WEIGHTS, "config.json": b"{}", "README.md": b"nobody asks for it"},
    "models/org/tokenizer": {"vocab.txt": b"words"},
    "datasets/org/data": {"train.csv": b"1,2,3"},
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A Hub on loopback. It prints its address, and then a line for each request."""
    for repo, files in REPOS.items():
        (tmp_path / "hub" / repo).mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / "hub" / repo / name).write_bytes(content)
    server = subprocess.Popen([sys.executable, HUB, tmp_path / "hub"], stdout=subprocess.PIPE, text=True)
    with server:
        yield server
        server.kill()


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.long), "s3"])
def variables(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """What chooses a datastore of the test's own."""
    if request.param == "local":
        return {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path)}
    server: SeaweedServer = request.getfixturevalue("s3_server")
    root = f"{server.root}/{uuid4().hex}"
    return {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": root}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_a_fine_tuning_goes_on_after_each_kill(
    environment: Callable[..., Any], variables: dict[str, str], tmp_path: Path, hub: subprocess.Popen[str]
) -> None:
    assert hub.stdout is not None
    address = hub.stdout.readline().split()[-1]
    flow = Path(__file__).with_name("finetune_flow.py")
    output = environment(*PACKAGES).python(flow, "run", cwd=tmp_path, HF_ENDPOINT=address, **variables)
    result = Result(0, output)
    hub.kill()
    fetched = re.findall(r"GET /(\S+)/resolve/\w+/(\S+)", hub.stdout.read())
    assert output.count("Task is starting (retry)") == 3

    assert result.facts("tokenizer") == [["./tokenizer", digests(REPOS["models/org/tokenizer"])]] * 2
    assert result.facts("data") == [["data", digests(REPOS["datasets/org/data"])]] * 2
    # What the killed attempt had downloaded is what its retry has.
    [base_key] = set(result.facts("base"))
    assert sorted(fetched) == [
        ("datasets/org/data", "train.csv"),
        ("org/base", "config.json"),
        ("org/base", "weights.bin"),
        ("org/tokenizer", "vocab.txt"),
    ]

    base = digests({"weights.bin": WEIGHTS, "config.json": b"{}"})
    assert result.facts("loaded base") == [base, base]
    assert result.fact("resumes") == 2
    weights = WEIGHTS
    for epoch in range(4):
        weights = hashlib.sha256(weights + bytes([epoch])).digest() * 2000
    tuned = digests({"config.json": b"{}", "weights.bin": weights})
    adapter = digests({"weights.bin": weights})
    used = {"tuned": tuned, "adapter": adapter, "tuned_key": tuned, "base": base}
    assert result.facts("used") == [used, used]
    assert result.facts("info") == [{"tuned": 4, "adapter": 4, "tuned_key": 4, "base": None}] * 2
    assert result.facts("explicitly") == [tuned, tuned]
    assert base_key in result.fact("parents")
    assert len(result.fact("parents")) == 3
    assert result.fact("merged") == tuned
