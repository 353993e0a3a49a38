"""Ctrl-C ends a transfer at once, also where the server says nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.faults import Cut, Fault, FaultProxy, Request, Stall
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 1 << 20

# `ended` is printed once no thread uses the connections, files and memory of the transfer any more.
TRANSFER = """
import sys, time
from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer.engine import engine

root, action, path, key = sys.argv[1:]
store = Store(open_storage(root), chunk_size=1 << 20)
try:
    store.save_model(path) if action == "save" else store.load(key, path)
except KeyboardInterrupt:
    print("interrupted", engine()._held, flush=True)
"""


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(30 * CHUNK))
    return path


def is_of_chunk(request: Request) -> bool:
    return "/chunks/" in request.path


@pytest.mark.parametrize("action", ["save", "load", "load, in the middle"])
def test_an_interrupt_ends_requests_that_stall(
    s3_server: SeaweedServer, proxy: FaultProxy, source: Path, tmp_path: Path, action: str
) -> None:
    """A stalled request alone takes 18 s until it is given up, and then it is tried again."""
    root = f"{s3_server.root}/{uuid4().hex}"
    stored = Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK).save_model(source)["key"]
    if action == "save":
        source.write_bytes(os.urandom(30 * CHUNK))
    stalled, lock, enough = [0], threading.Lock(), threading.Event()

    def plan(request: Request) -> Fault | None:
        if not is_of_chunk(request) or (action == "save") != (request.method == "PUT"):
            return None
        with lock:
            stalled[0] += 1
            if stalled[0] == 8:
                enough.set()
        return Cut(1000, stall=True) if action == "load, in the middle" else Stall()

    proxy.plan = plan
    environment = {**os.environ, **s3_server.environment(), "METAFLOW_S3_ENDPOINT_URL": proxy.endpoint}
    target = tmp_path / "out"
    path = source if action == "save" else target
    command = [sys.executable, "-c", TRANSFER, root, action.split(",")[0], str(path), stored]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert enough.wait(60)
        process.send_signal(signal.SIGINT)
        # Generous for a busy machine, and much less than one request takes.
        out, errors = process.communicate(timeout=12)
    finally:
        process.kill()
        process.wait()
    assert (out, errors) == ("interrupted 0\n", "")
    assert not target.exists()
