"""The patterns that Metaflow's documentation shows for checkpoints, on each datastore."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

NOTEBOOK = """
import os, sys
from metaflow import Checkpoint, Flow
from metaflow_artifacts.testing.flows import emit
with Checkpoint() as cp:
    task = Flow("CheckpointCounterFlow").latest_run["flaky_count"].task
    every = [one for attempt in range(3) for one in cp.list(task=task, attempt=attempt)]
    emit("all", [[one["attempt"], one["version_id"]] for one in every])
    emit("by pathspec", cp.list(task=task.pathspec, attempt="0", name="mfchckpt") == cp.list(task=task, attempt=0))
    emit("no such name", cp.list(task=task, name="best"))
    latest = cp.list(task=task)[0]
    cp.load(latest)
    directory = cp.directory
    with open(os.path.join(directory, "counter")) as file:
        emit("counter", file.read())
    emit("returns", cp.load(latest["key"], "by key"))
emit("gone", [cp.directory, os.path.exists(directory)])
"""


@pytest.mark.parametrize("either", ["runner", pytest.param("s3_runner", marks=pytest.mark.long)], indirect=True)
def test_resume_after_retries(either: FlowRunner, flows: Path) -> None:
    counted = either.run(flows / "counter_flow.py")
    assert counted.facts("begins") == [0, 4, 6]
    assert counted.fact("listed") == [10, 8, 6, 4, 2]
    assert counted.fact("final") == 10
    assert [info["metadata"]["counter"] for info in counted.facts("info")] == [4, 6]

    # The log says what was loaded. Other lines may be in between: Metaflow reads two outputs of each task.
    begins = ("[@checkpoint]", "[pathspec]", "[key]", "[created on]", "[url]")
    lines = [line.strip() for line in counted.lines_of("flaky_count") if line.strip().startswith(begins)]
    expected = []
    for info in counted.facts("info"):
        expected += ["[@checkpoint] Loading the following checkpoint:", f"[pathspec] {info['pathspec']}"]
        expected += [f"[key] {info['key']}", f"[created on] {info['created_on']}", f"[url] {info['url']}"]
    assert lines == expected

    chosen = either.run(flows / "policy_flow.py")
    assert chosen.fact("loaded automatically") == [False, None]
    assert chosen.fact("by artifact") == 10
    assert chosen.fact("of the task") == [10, 8]
    assert chosen.fact("by list") == [8, ["counter"]]
    assert chosen.fact("elsewhere") == [["counter"], 8]
    assert len(chosen.fact("mine")["parents"]) == 2
    # These are about what was loaded when the task began, which is nothing.
    assert chosen.fact("still") == [False, None]

    notebook = either.python(NOTEBOOK)
    assert notebook.fact("all") == [[0, 1], [0, 0], [1, 0], [2, 1], [2, 0]]
    assert notebook.fact("by pathspec") is True
    assert notebook.fact("no such name") == []
    assert notebook.fact("counter") == "10"
    assert notebook.fact("returns") == "by key"
    assert (either.work / "by key" / "counter").read_text() == "10"
    assert notebook.fact("gone") == [None, False]
    assert either.leftovers() == []
