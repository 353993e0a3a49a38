"""All three decorators in one flow, as the documentation of metaflow-checkpoint combines them, with every step killed
half-way: the content is right to the byte, and nothing is downloaded twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts.testing.flows import Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

PACKAGES = ("metaflow-artifacts-model", "metaflow-artifacts-checkpoint", "metaflow-artifacts-hf")
WEIGHTS = bytes(range(256)) * 8000
REPOS = {
    "models/org/base": {"weights.bin": WEIGHTS, "config.json": b"{}", "README.md": b"nobody asks for it"},
    "models/org/tokenizer": {"vocab.txt": b"words"},
    "datasets/org/data": {"train.csv": b"1,2,3"},
}


@pytest.fixture
def served(served: Path) -> Path:
    for repo, files in REPOS.items():
        (served / repo).mkdir(parents=True)
        for name, content in files.items():
            (served / repo / name).write_bytes(content)
    return served


@pytest.fixture
def variables(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """What chooses a datastore of the test's own."""
    if request.param == "local":
        return {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path)}
    server: SeaweedServer = request.getfixturevalue("s3_server")
    root = f"{server.root}/{uuid4().hex}"
    return {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": root}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


OTHER_VERSIONS = [
    pytest.param("local", requirement, marks=pytest.mark.versions)
    for requirement in (
        "huggingface_hub==0.16.4",
        "huggingface_hub==0.25.2",
        "huggingface_hub==0.36.2",
        "huggingface_hub==1.0.0",
        "metaflow==2.16.8",
        "metaflow",
    )
]
"""The oldest that are promised, some between, and the newest of everything."""


@pytest.mark.parametrize(
    ("variables", "requirement"),
    [("s3", None), pytest.param("local", None, marks=pytest.mark.long), *OTHER_VERSIONS],
    indirect=["variables"],
)
def test_a_fine_tuning_goes_on_after_each_kill(
    environment: Callable[..., Any], variables: dict[str, str], requirement: str | None, tmp_path: Path, hub: Any
) -> None:
    where = environment(*PACKAGES) if requirement is None else environment(*PACKAGES, requirement, held=False)
    flow = Path(__file__).with_name("finetune_flow.py")
    output = where.python(flow, "run", cwd=tmp_path, HF_ENDPOINT=hub.address, **variables)
    result = Result(0, output)
    fetched = hub.fetched()
    # Versions that cannot stream say so once in each attempt that downloads: here, only the first does.
    streams = requirement != "huggingface_hub==0.16.4"
    assert output.count("files cannot be streamed") == (0 if streams else 1)
    assert output.count("Task is starting (retry)") == 3

    assert result.facts("tokenizer") == [["./tokenizer", digests(REPOS["models/org/tokenizer"])]] * 2
    assert result.facts("data") == [["data", digests(REPOS["datasets/org/data"])]] * 2
    # What the killed attempt had downloaded is what its retry has.
    [base_key] = set(result.facts("base"))
    assert fetched == [
        ("datasets/org/data", "train.csv"),
        ("org/base", "config.json"),
        # A large file is elsewhere: huggingface_hub asks for its address with HEAD.
        *([("org/base", "weights.bin")] if streams else []),
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
