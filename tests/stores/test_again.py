"""What is in an artifact store is found by later runs, by a resumed run, and by `spin`."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

FLOW = Path(__file__).parent / "flows" / "again_flow.py"

LISTED = """
import sys
from metaflow import Checkpoint, Task, artifact_store_from, namespace
from metaflow_artifacts.testing.flows import emit
namespace(None)
with artifact_store_from(task=Task(sys.argv[1])):
    emit("listed", [one["url"] for one in Checkpoint().list(task=sys.argv[1])])
"""


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    return FlowRunner(tmp_path)


@pytest.mark.long
def test_a_later_run_and_a_resumed_one_find_the_store(runner: FlowRunner) -> None:
    failed = runner.with_environment(FAILS="1").run(FLOW, fails=True)
    assert failed.fact("url").startswith(f"{runner.work}/store/mf.checkpoints/")
    resumed = runner.command(FLOW, "resume")
    assert resumed.fact("loaded") == ["state"]
    # What resume has copied names no store: the task that it copies does.
    listed = runner.python(LISTED, f"AgainFlow/{resumed.run_id}/start/1")
    assert listed.fact("listed") == [failed.fact("url")]
    again = runner.run(FLOW)
    assert again.fact("resumed") == f"AgainFlow/{failed.run_id}/start/1"
    spun = runner.command(FLOW, "spin", "end")
    assert spun.fact("loaded") == ["state"]
