"""The upkeep flow beside savers in a loop, and that it leaves the store that the command leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts import Store, check, open_storage
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOW = Path(__file__).with_name("upkeep_soak_flow.py")
FAULTS = Path(__file__).parents[2] / "packages" / "core" / "tests" / "faults"
GRACE_S = {"local": 2, "s3": 8}
DAY = 24 * 3600
RESULT = r"""
import base64, dataclasses, re, sys
from metaflow import Run, namespace
from metaflow.cards import get_cards
from metaflow_artifacts.testing.flows import emit
namespace(None)
run = Run(sys.argv[1])
emit("successful", run.successful)
emit("result", dataclasses.asdict(run["report"].task.data.result))
(data,) = re.findall(r'__MF_DATA__\["[^"]*"\] = "([^"]*)"', get_cards(run["report"].task)[0].get())
emit("card", base64.b64decode(data).decode())
"""


class Upkeep:
    """Runs the flow on a store, and savers beside it."""

    def __init__(self, store: Store, runner: FlowRunner, grace: float) -> None:
        self.store = store
        self.grace = grace
        self.runner = runner.with_environment(REFRESH_AFTER=str(grace / 2))

    def run(self, *options: str, fails: bool = False) -> dict[str, Any]:
        """The result of a run, with its card as text."""
        runner = self.runner
        if fails:
            process = runner.start(FLOW, "run", "--root", self.store.root, *options)
            output = process.communicate()[0]
            assert process.returncode != 0
            run_id = output.split("(run-id ")[1].split(")")[0]
        else:
            run_id = runner.run(FLOW, "--root", self.store.root, *options).run_id
        found = runner.python(RESULT, f"UpkeepFlow/{run_id}")
        assert found.fact("successful") is not fails
        return {**found.fact("result"), "card": found.fact("card")}

    def savers(self) -> subprocess.Popen[str]:
        """Three processes that save, load, compare and delete, until standard input is closed.

        They take only the time of the processors that the flow does not need.
        """
        command = ["nice", "-n", "19", sys.executable, "-m", "faultlib.soak", self.store.root, "--without-gc"]
        command += ["--savers", "3", "--pieces", "300", "--grace", str(self.grace)]
        environment = {**os.environ, **self.runner.environment, "PYTHONPATH": str(FAULTS)}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in environment.items() if value is not None},
        )

    def wait_for_garbage(self) -> None:
        """Until a chunk is older than the grace period. Half of what is saved is deleted soon."""
        while not any(
            info.modified < self.store.storage.now() - self.grace - 1 for info in self.store.storage.list(CHUNKS)
        ):
            time.sleep(0.1)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def upkeep(request: pytest.FixtureRequest, tmp_path: Path) -> Upkeep:
    grace = GRACE_S[request.param]
    if request.param == "local":
        return Upkeep(Store(open_storage(tmp_path / "store")), FlowRunner(tmp_path), grace)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    store = Store(open_storage(f"{server.root}/{uuid4().hex}", client=server.client))
    return Upkeep(store, FlowRunner(tmp_path, server.environment()), grace)


def objects(store: Store) -> set[str]:
    """All keys but those of gc marks, which name the runs."""
    return {info.key for info in store.storage.list("") if not info.key.startswith("mf.artifacts/gc/")}


def run_beside_savers(upkeep: Upkeep, runs: int) -> None:
    """Run the flow so often, while others save, load and delete."""
    with upkeep.savers() as savers:
        upkeep.wait_for_garbage()
        beside = ["--execute", "True", "--grace", str(upkeep.grace / DAY), "--tasks", "2" if runs == 1 else "8"]
        removed = [upkeep.run(*beside)["gc"]["removed"] for _ in range(runs)]
        done = json.loads(savers.communicate()[0])
    assert savers.returncode == 0, done
    assert done["whole"]
    assert done["savers failed"] == 0
    assert sum(removed) > 0


@pytest.mark.parametrize("runs", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(5, marks=pytest.mark.long)])
def test_the_flow_leaves_what_the_command_leaves(upkeep: Upkeep, tmp_path: Path, runs: int) -> None:
    """Beside savers too, which take part in all but 0 runs."""
    if runs:
        run_beside_savers(upkeep, runs)
    else:
        for number in range(4):
            (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
            saved = upkeep.store.save_model(tmp_path / "weights")
            if number % 2:
                upkeep.store.delete(saved)

    # A copy, for the command.
    copy = Store(open_storage(tmp_path / "copy"))
    for key in objects(upkeep.store):
        copy.storage.put(key, upkeep.store.storage.get(key))
    options = ["--execute", "True", "--grace", "0", "--exclusive", "True", "--read", "True", "--tasks", "2"]
    result = upkeep.run(*options)
    command = [sys.executable, "-m", "metaflow_artifacts", "gc", "--root", copy.root, "--json"]
    command += ["--execute", "--grace", "0s", "--exclusive"]
    expected = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    same = ("dry_run", "artifacts", "chunks", "stored", "removed", "spared", "tombstones", "choices", "waiting")
    assert {name: result["gc"][name] for name in same} == {name: expected[name] for name in same}
    assert result["gc"]["removed"] > 0
    assert objects(upkeep.store) == objects(copy)
    report = check(copy, read=True)
    assert (result["check"]["chunks"], result["check"]["read"]) == (report.chunks, report.read)
    assert report.ok
    assert "check: whole" in result["card"]


def test_a_damaged_store_fails_the_run_and_the_card_says_why(tmp_path: Path) -> None:
    upkeep = Upkeep(Store(open_storage(tmp_path / "store")), FlowRunner(tmp_path), 2)
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    saved = upkeep.store.save_model(tmp_path / "weights")
    upkeep.store.storage.put(f"{saved['key'][:-1]}{'0' if saved['key'][-1] != '0' else '1'}", b"{}")
    (chunk,) = upkeep.store.storage.list(CHUNKS)
    upkeep.store.storage.put(chunk.key, bytes(1 << 20))
    before = objects(upkeep.store)
    result = upkeep.run("--read", "True", "--execute", "True", "--tasks", "1", fails=True)
    assert result["gc"] is None
    assert sorted(problem["kind"] for problem in result["check"]["problems"]) == ["content", "manifest"]
    for text in (saved["key"], "has changed", "gc has removed nothing", "2 problems"):
        assert text in result["card"]
    assert objects(upkeep.store) == before
