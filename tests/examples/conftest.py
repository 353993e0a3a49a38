"""Runs the training examples twice: undisturbed, and killed half-way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"
RESULT = """
import json, sys
from metaflow import Run
from metaflow_artifacts.testing.flows import emit
emit("result", Run(sys.argv[1]).data.result)
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> FlowRunner:
    """Runs flows on a datastore of the test's own: on disk, then in S3."""
    # The tests share two cores.
    threads = {"OMP_NUM_THREADS": "1"}
    if request.param == "local":
        return FlowRunner(tmp_path, threads)
    server: SeaweedServer = request.getfixturevalue("s3_server")
    root = f"{server.root}/{tmp_path.name}"
    variables = {"METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": root}
    return FlowRunner(tmp_path, {**threads, **server.environment(), **variables})


@pytest.fixture
def survives(either: FlowRunner) -> Callable[..., tuple[Any, Any]]:
    """`survives(file, flow, line)` runs the flow undisturbed, and once more until a line of its log matches `line`,
    at which moment its task is killed (SIGKILL); the results of both. With `background`, the flow does not wait until
    what it has done is stored."""

    def result_of(flow: str, run_id: str) -> Any:
        return either.python(RESULT, f"{flow}/{run_id}").fact("result")

    def run_both(file: str, flow: str, line: str, *, background: bool = False) -> tuple[Any, Any]:
        undisturbed = either.run(EXAMPLES / file, "--pause", "0")
        assert "Task is starting (retry)" not in undisturbed.output
        process = either.start(EXAMPLES / file, "run")
        killed, output = _kill_at(process, line)
        assert killed, output
        assert process.returncode == 0, output
        assert "Task is starting (retry)" in output
        assert "[@checkpoint] Loading the following checkpoint:" in output
        # It had done so much, and went on from there.
        before = max(int(number) for number in re.findall(r"(?:epoch|round|step) (\d+):", output.split("(retry)")[0]))
        after = re.search(r"resumes after \w+ (\d+)", output)
        assert after is not None
        assert int(after[1]) >= (1 if background else before), output
        run_id = re.search(r"run-id (\w+)", output)
        assert run_id is not None
        return result_of(flow, undisturbed.run_id), result_of(flow, run_id[1])

    return run_both


def _kill_at(process: subprocess.Popen[str], line: str) -> tuple[bool, str]:
    killed = False
    lines = []
    with process:
        for text in process.stdout or ():
            lines.append(text)
            found = re.search(r"\(pid (\d+)\)\] " + line, text)
            if found and not killed:
                os.kill(int(found[1]), signal.SIGKILL)
                killed = True
    return killed, "".join(lines)
