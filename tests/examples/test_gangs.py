"""Gangs that train with torch: killed at any node, and with nodes that start late, they end with the same weights."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaflow_artifacts.testing.flows import FlowRunner

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"
RESULT = """
import sys
from metaflow import Run
from metaflow_artifacts.testing.flows import emit
emit("result", Run(sys.argv[1]).data.result)
"""


def free_port() -> int:
    """A port that is free, as are the next ones, which retries take.

    It is below those that the system gives to connections: one of these would take it before a retry begins.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for number in range(port, port + 4):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port


def run(runner: FlowRunner, file: str, nodes: int, kill_at: str = "") -> tuple[Any, str]:
    """Run a flow; kill node 0 when a line of the log matches `kill_at`. Returns its result and its log."""
    options = ("--nodes", str(nodes), "--port", str(free_port()), "--pause", "0.2" if kill_at else "0")
    process = runner.start(EXAMPLES / file, "run", *options)
    lines = []
    with process:
        for line in process.stdout or ():
            lines.append(line)
            found = re.search(r"\(pid (\d+)\)\] " + kill_at, line) if kill_at else None
            if found:
                os.kill(int(found[1]), signal.SIGKILL)
                kill_at = ""
    output = "".join(lines)
    assert process.returncode == 0, output
    assert not kill_at, output
    run_id = re.search(r"run-id (\w+)", output)
    flow = re.search(r"executing (\w+)", output)
    assert run_id is not None
    assert flow is not None
    return runner.python(RESULT, f"{flow[1]}/{run_id[1]}").fact("result"), output


@pytest.mark.parametrize(
    ("file", "nodes", "ranks"), [("ddp_flow.py", 2, 2), ("ddp_flow.py", 3, 3), ("torchrun_flow.py", 2, 4)]
)
def test_all_nodes_resume_in_step(either: FlowRunner, file: str, nodes: int, ranks: int) -> None:
    undisturbed, _ = run(either, file, nodes)
    killed, output = run(either.with_late_workers(5), file, nodes, "epoch 6:")
    resumed = re.findall(r"(?:node|rank) (\d) resumes after epoch (\d+)", output)
    assert sorted(int(node) for node, _ in resumed) == list(range(ranks)), output
    assert len({epoch for _, epoch in resumed}) == 1, output
    assert int(resumed[0][1]) >= 6
    assert "was chosen for all nodes of the gang" in output
    assert np.allclose(killed, undisturbed, rtol=1e-5)
