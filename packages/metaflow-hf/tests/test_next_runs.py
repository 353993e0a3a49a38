"""What a run asks of the Hub when an earlier one has stored the repo. All tests share the earlier run and the Hub."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from hub_repo import Repo, lfs

from metaflow_artifacts._format.keys import HUB
from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOW = Path(__file__).parent / "flows" / "reference_flow.py"
WEIGHTS = random.Random(3).randbytes(2_000_000)
FILES: dict[str, Any] = {"config.json": b"{}", "sub/vocab.txt": b"words", "weights.bin": lfs(WEIGHTS)}
SIZES = {"config.json": 2, "sub/vocab.txt": 5, "weights.bin": 2_000_000}

# One process runs all tests of a datastore: they share runs.
LOCAL = pytest.param("local", marks=pytest.mark.xdist_group("next runs local"), id="local")
# It hardly matters to what depends on the Hub.
S3 = pytest.param("s3", marks=[pytest.mark.xdist_group("next runs s3"), pytest.mark.long], id="s3")


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def repo(shared_hub: Hub) -> Repo:
    return shared_hub.repo("org/name", files=FILES)


@pytest.fixture(scope="module", params=[LOCAL, S3])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_hub: Hub) -> FlowRunner:
    """Runs with either datastore."""
    directory = tmp_path_factory.mktemp(request.param)
    variables = {"HF_ENDPOINT": shared_hub.endpoint}
    if request.param == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_server")
        variables.update(server.environment())
        variables["METAFLOW_DATASTORE_SYSROOT_S3"] = f"{server.root}/{directory.name}"
        variables["METAFLOW_DEFAULT_DATASTORE"] = "s3"
    return FlowRunner(directory, variables)


@pytest.fixture(scope="module")
def first(runner: FlowRunner, shared_hub: Hub, repo: Repo) -> Result:
    """A run that has downloaded the repo."""
    repo.commit(FILES)
    shared_hub.clear()
    result = runner.run(FLOW)
    assert shared_hub.fetched() == dict.fromkeys(SIZES, 1)
    return result


@pytest.fixture
def hub(first: Result, shared_hub: Hub) -> Hub:
    """The Hub, after that run."""
    shared_hub.clear()
    return shared_hub


def test_a_run_downloads_each_file_once_and_keeps_a_plain_reference(first: Result, repo: Repo) -> None:
    reference = first.fact("reference")
    assert first.fact("plain") is True
    assert first.fact("files") == SIZES
    assert reference["key"].startswith(f"{HUB}/checkpoints/artifacts/ReferenceFlow/start/")
    assert reference["type"] == "checkpoint"
    assert reference["size"] == sum(SIZES.values())
    assert reference["pathspec"] == f"ReferenceFlow/{first.run_id}/start/{reference['pathspec'].split('/')[-1]}"
    assert reference["label"] == "ReferenceFlow_start"
    assert reference["metadata"]["commit"] == repo.refs["main"]
    assert any(line.startswith("[@huggingface_hub] Downloading org/name at main, commit ") for line in first.lines)


def test_the_next_run_makes_one_small_request(first: Result, runner: FlowRunner, hub: Hub) -> None:
    with hub.counting() as requests:
        again = runner.run(FLOW)
    assert requests == {"info": 1}
    assert again.fact("reference")["key"] == first.fact("reference")["key"]
    assert again.fact("files") == SIZES


def test_a_run_offline_makes_no_request(first: Result, runner: FlowRunner, hub: Hub) -> None:
    with hub.counting() as requests:
        offline = runner.with_environment(HF_HUB_OFFLINE="1").run(FLOW)
    assert not requests
    assert offline.fact("reference")["key"] == first.fact("reference")["key"]


def test_a_run_without_the_hub_uses_the_stored_snapshot(
    first: Result, runner: FlowRunner, hub: Hub, repo: Repo
) -> None:
    hub.down()
    try:
        down = runner.run(FLOW)
    finally:
        hub.up()
    reference = first.fact("reference")
    assert down.fact("reference")["key"] == reference["key"]
    assert f"using commit {repo.refs['main'][:12]}, stored {reference['created_on']}" in down.output


def test_force_download_downloads_every_file_again(first: Result, runner: FlowRunner, hub: Hub) -> None:
    forced = runner.run(FLOW, "--force", "True")
    assert forced.fact("reference")["key"] != first.fact("reference")["key"]
    assert hub.fetched() == dict.fromkeys(SIZES, 1)


def test_of_a_new_commit_only_changed_files_are_downloaded(runner: FlowRunner, hub: Hub, repo: Repo) -> None:
    repo.commit({"config.json": b"new", "weights.bin": lfs(WEIGHTS)})
    changed = runner.run(FLOW)
    assert hub.fetched() == {"config.json": 1}
    assert changed.fact("files") == {**SIZES, "config.json": 3}
