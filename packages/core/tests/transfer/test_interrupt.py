"""Ctrl-C ends a transfer at once, also where the server says nothing."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import Storage, open_storage
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts.testing.azurite import AzuriteServer, account_key
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.faults import Cut, Fault, FaultProxy, Request, Stall
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_artifacts.testing.servers import s3_client

CHUNK = 1 << 20

TRANSFER = """
import pickle, signal, sys
from metaflow_artifacts import Store
from metaflow_artifacts._transfer import engine as engines
from metaflow_artifacts._transfer.current_engine import engine

# On a busy machine, the threads may notice late that their sockets were shut.
engines._GRACE_S = 10.0
# A shell that starts the tests in the background has them ignore it, and a process inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
storage, action, path, key = sys.argv[1:]
store = Store(pickle.loads(bytes.fromhex(storage)), chunk_size=1 << 20)
actions = {
    "save": lambda: store.save_model(path),
    "load": lambda: store.load(key, path),
    "delete": lambda: store.storage.delete(["a", "b", "c", "d"]),
    "list": lambda: list(store.list()),
}
try:
    actions[action]()
except KeyboardInterrupt:
    # No thread uses memory of the transfer any more.
    print("interrupted", engine()._held, flush=True)
"""


@dataclass(frozen=True)
class Service:
    """A root, and how it is opened through an endpoint."""

    endpoint: str
    storage_at: Callable[[str], Storage]
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture(params=["s3", "azure", "gcs"])
def service(request: pytest.FixtureRequest) -> Service:
    place = uuid4().hex
    if request.param == "azure":
        azurite: AzuriteServer = request.getfixturevalue("azurite")
        account, _, container = azurite.root.rpartition("/")
        path = urlsplit(account).path

        def azure_at(endpoint: str) -> Storage:
            return AzureStorage(f"{endpoint}{path}/{container}/{place}", account_key, endpoint=f"{endpoint}{path}")

        return Service(account.removesuffix(path), azure_at)
    if request.param == "gcs":
        gcs: FakeGcsServer = request.getfixturevalue("fake_gcs")
        return Service(gcs.endpoint, lambda at: GcsStorage(f"{gcs.root}/{place}", anonymous, endpoint=at))
    s3: SeaweedServer = request.getfixturevalue("s3_server")

    def s3_at(endpoint: str) -> Storage:
        return open_storage(
            f"{s3.root}/{place}", client=functools.partial(s3_client, endpoint, s3.access_key, s3.secret_key)
        )

    # A storage is pickled without credentials.
    return Service(s3.endpoint, s3_at, s3.environment())


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultProxy]:
    with FaultProxy(service.endpoint) as proxy:
        yield proxy


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(30 * CHUNK))
    return path


ACTIONS = ["save", "load, in the middle", "delete", "list", pytest.param("load", marks=pytest.mark.long)]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_interrupt_ends_requests_that_stall(
    service: Service, proxy: FaultProxy, source: Path, tmp_path: Path, action: str
) -> None:
    """A stalled request alone takes 18 s until it is given up, and then it is tried again."""
    stored = Store(service.storage_at(service.endpoint), chunk_size=CHUNK).save_model(source)["key"]
    if action == "save":
        source.write_bytes(os.urandom(30 * CHUNK))
    stalled, lock, enough = [0], threading.Lock(), threading.Event()

    def stalls(request: Request) -> bool:
        if action == "save":
            return request.size >= CHUNK
        if action == "delete":
            return request.method in ("DELETE", "POST")
        return request.method == "GET" and (action == "list" or "chunks" in request.path)

    def plan(request: Request) -> Fault | None:
        if not stalls(request):
            return None
        with lock:
            stalled[0] += 1
            # Google's storage has no request that deletes several objects.
            if stalled[0] == {"list": 1, "delete": 4 if request.method == "DELETE" else 1}.get(action, 8):
                enough.set()
        return Cut(1000, stall=True) if action == "load, in the middle" else Stall()

    proxy.plan = plan
    target = tmp_path / "out"
    path = source if action == "save" else target
    # Google's SDK warns of a Python that its vendor no longer supports.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::FutureWarning", **service.environment}
    storage = pickle.dumps(service.storage_at(proxy.endpoint)).hex()
    command = [sys.executable, "-c", TRANSFER, storage, action.split(",")[0], str(path), stored]
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
