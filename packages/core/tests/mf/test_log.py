"""Lines of several processes, such as the ranks of one training, that share a standard error or output."""

import os
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

LOG = """
from metaflow_artifacts._mf.log import Log
log = Log("checkpoint")
log("one")
log.warning("two")
"""
WARNING = """
import warnings
from metaflow_artifacts.errors import ArtifactWarning, warn
warnings.simplefilter("error", ArtifactWarning)
warn("one")
warn("two")
"""
FACTS = """
import sys
from metaflow_artifacts.testing.flows import emit
sys.stdout = sys.stderr
emit("one", [1])
emit("two", [2])
"""


@pytest.mark.parametrize("code", [LOG, WARNING, FACTS], ids=["log", "warning", "facts"])
def test_a_line_is_one_write(code: str) -> None:
    # A socket of datagrams keeps each write apart. A pipe between processes may put another one's line between them.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=theirs.fileno(), check=True, timeout=60)
        ours.setblocking(False)
        written = []
        with suppress(BlockingIOError):
            while True:
                written.append(ours.recv(4096).decode())
    lines = [text for text in written if text]
    assert [line.count("\n") for line in lines] == [1, 1]
    assert "one" in lines[0]
    assert "two" in lines[1]
