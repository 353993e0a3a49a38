"""Checkpoints do not change, and are found while the task runs, after it was killed, and by its subprocesses."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

LIST = """
import json, sys
from metaflow import Checkpoint, Flow, namespace
from metaflow_artifacts.testing.flows import emit
namespace(None)
try:
    task = Flow("EndlessFlow").latest_run["start"].task
    found = Checkpoint().list(task=task)
    emit("found", [[one["name"], one["metadata"]["number"]] for one in found])
    emit("odd", [one["metadata"]["number"] for one in Checkpoint().list(task=task, name="odd")])
    with Checkpoint() as cp:
        path = cp.load(found[0])
        emit("loaded", open(f"{path}/number").read())
except Exception as error:
    emit("not yet", repr(error))
"""


@pytest.mark.parametrize("either", ["runner", pytest.param("s3_runner", marks=pytest.mark.long)], indirect=True)
def test_what_a_retry_does_to_its_directory_changes_no_checkpoint(either: FlowRunner, flows: Path) -> None:
    result = either.run(flows / "unchanged_flow.py")
    saved = dict(result.facts("saved"))
    assert len(saved) == 4
    assert dict(result.facts("later")) == saved
    contents = list(saved.values())
    assert len({str(content) for content in contents}) == 4
    assert result.facts("loaded") == [{}, contents[1], contents[2]]
    code = """
import sys
from metaflow_artifacts.testing.flows import emit
from metaflow import Checkpoint
sys.path.insert(0, sys.argv[1])
from unchanged_flow import content
for key in sys.argv[2:]:
    emit("content", content(Checkpoint().load(key, key.rpartition("/")[2])))
"""
    assert either.python(code, str(flows), *saved).facts("content") == contents


def test_a_task_is_listed_while_it_runs_and_after_it_was_killed(either: FlowRunner, flows: Path) -> None:
    process = either.start(flows / "endless_flow.py", "run")
    try:
        end = time.monotonic() + 240
        while len((found := either.python(LIST)).facts("found") or [[]][0]) == 0 or len(found.fact("found")) < 3:
            assert time.monotonic() < end, found.output
        numbers = [number for _, number in found.fact("found")]
        assert numbers == list(range(len(numbers)))[::-1]
        # It was listed later.
        assert found.fact("odd")[-(len(numbers) // 2) :] == [number for number in numbers if number % 2]
        assert found.fact("loaded") == str(numbers[0])
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    dead = either.python(LIST)
    assert [number for _, number in dead.fact("found")][-len(numbers) :] == numbers
    assert dead.fact("loaded") == str(dead.fact("found")[0][1])


def test_ranks_save_and_load_for_their_task(flows: Path, tmp_path: Path, s3_server: SeaweedServer) -> None:
    # On the datastore of the command line, which is not the configured one: ranks know better than to use that.
    runner = FlowRunner(tmp_path, s3_server.environment())
    result = runner.run(flows / "ranks_flow.py", top=("--datastore", "s3"))
    assert result.facts("codes") == [[0, 0, 0]] * 2, result.output
    assert sorted(result.facts("rank")) == sorted([[f"{rank} 2", True, True] for rank in range(3)] * 2)
    assert result.facts("listed") == [[11, 11, True]] * 2
    assert result.facts("child") == [0, 0]
    assert result.facts("last") == [True, True]
    none, loaded = result.facts("loaded")
    assert none is None
    # What the task had loaded is what its ranks' checkpoints come from.
    parents = result.facts("parents")
    assert [one[0] for one in parents[3:]] == [loaded["key"]] * 3
    assert runner.leftovers() == []


def test_a_damaged_checkpoint_is_skipped(runner: FlowRunner, flows: Path) -> None:
    result = runner.with_environment(ROOT=runner.local_root).run(flows / "damage_flow.py")
    assert result.facts("loaded") == [[None, []], [1, ["state 0", "state 1"]], [None, []]]
    warnings = [line.split("Warning: ")[1] for line in result.lines_of("start") if "Warning: " in line]
    passed, failed = "skipping a damaged checkpoint", "cannot load"
    # The newest has a chunk that has changed, the next no manifest, the third lacks a chunk.
    kinds = [failed if text.startswith(failed) else text.split(":")[0] for text in warnings]
    assert kinds == [failed, passed, failed, *[passed] * 5]
    assert "a chunk of the artifact has changed" in warnings[0]
    assert ".0.mfchckpt.3:" in warnings[1]
    assert "a chunk of the artifact is missing" in warnings[2]


def test_the_attributes_and_errors_of_the_object(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "object_flow.py")
    saved = result.fact("saved")
    assert (saved["name"], saved["version_id"], saved["metadata"], saved["size"]) == ("best", 0, {"loss": 0.5}, 1)
    assert (saved["type"], saved["attempt"], saved["label"]) == ("checkpoint", 0, "ObjectFlow_start")
    assert result.fact("saved not latest")["version_id"] == 1
    assert result.fact("as before")["name"] == result.fact("keywords")["name"] == "named"
    assert (result.fact("as before")["metadata"], result.fact("keywords")["metadata"]) == ({"n": 1}, {})

    # The one that may be latest is loaded, whatever was saved after it.
    assert result.fact("info") == [saved, saved["key"], saved["key"], 0.5, 0]
    assert result.fact("copied") is True
    assert result.fact("directory") == [True]
    assert result.fact("identifier") is True
    assert result.fact("same process") is True
    assert result.fact("numbered on") == [0, 1]
    assert result.fact("same place") == [True, ["single file"]]
    assert result.fact("refreshed") == [False, False, []]
    assert result.fact("made again") == []
    assert result.fact("after errors") == ["state"]
    assert result.fact("from the next step") == ["named", "named", "mfchckpt", "mfchckpt", "best"]
    assert result.fact("kept") == [True, 0.5, True]
    assert result.fact("task of an undecorated step") == []

    errors = {name: (kind, is_value_error, message) for name, kind, is_value_error, message in result.facts("error")}
    assert {name: kind for name, (kind, _, _) in errors.items()} == {
        "no path": "SourceNotFound",
        "name": "InvalidInput",
        "metadata": "UsageError",
        "twice": "UsageError",
        "attempt": "InvalidInput",
        "negative": "InvalidInput",
        "pathspec": "InvalidInput",
        "no such task": "ArtifactNotFound",
        "task": "InvalidInput",
        "reference": "InvalidReference",
        "absent": "ArtifactNotFound",
        "undecorated": "NoTask",
    }
    assert all("\n" not in message for _, _, message in errors.values())
    assert errors["undecorated"][1] is True
    assert not any((runner.work / "scratch").iterdir())
    assert runner.leftovers() == []


OUTSIDE = """
from metaflow import Checkpoint
from metaflow_artifacts.errors import ArtifactError
from metaflow_artifacts.testing.flows import emit
cp = Checkpoint()
for name, call in {
    "save": lambda: cp.save("x"), "list": lambda: cp.list(), "everything": lambda: cp.list(full_namespace=True),
    "load": lambda: cp.load("mf.checkpoints/checkpoints/artifacts/F/s/%s/%s/01234567.0.x.0" % ("a" * 12, "b" * 12)),
    "key": lambda: cp.load("nonsense", "x"),
}.items():
    try:
        call()
    except ArtifactError as error:
        emit("error", [name, type(error).__name__, isinstance(error, ValueError), str(error)])
with Checkpoint(temp_dir_root="scratch", init_dir=True) as inside:
    emit("directory", inside.directory.rpartition("/")[0].endswith("/scratch"))
emit("closed", [inside.directory, Checkpoint(init_dir=True).directory is None])
"""


def test_outside_of_a_task_a_save_is_a_clear_error(runner: FlowRunner) -> None:
    result = runner.python(OUTSIDE)
    errors = {name: (kind, is_value_error, message) for name, kind, is_value_error, message in result.facts("error")}
    assert {name: error[:2] for name, error in errors.items()} == {
        "save": ("NoTask", True),
        "list": ("NoTask", True),
        "everything": ("NoTask", True),
        "load": ("NoDirectory", True),
        "key": ("InvalidReference", True),
    }
    assert "METAFLOW_CHECKPOINT_UID" in errors["save"][2]
    assert result.fact("directory") is True
    assert result.fact("closed") == [None, False]
    assert runner.leftovers() == []


@pytest.mark.parametrize("policy", ["newest", pytest.param(1, marks=pytest.mark.long)])
def test_a_policy_that_does_not_exist_is_refused_before_anything_runs(
    runner: FlowRunner, flows: Path, tmp_path: Path, policy: object
) -> None:
    flow = tmp_path / "flow.py"
    source = (flows / "endless_flow.py").read_text()
    flow.write_text(source.replace("@checkpoint\n", f"@checkpoint(load_policy={policy!r})\n"))
    result = runner.run(flow, fails=True)
    assert f"step start: @checkpoint(load_policy={policy!r}) does not exist" in result.output
    assert "Workflow starting" not in result.output
    assert "Traceback" not in result.output
