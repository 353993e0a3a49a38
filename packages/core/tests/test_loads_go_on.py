"""A load that was killed goes on, and a second one moves the manifest alone: counted before a real S3 server."""

from __future__ import annotations

import functools
import os
import random
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
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.staging import STAGING_PREFIX
from metaflow_artifacts.testing.faults import Fault, FaultProxy, Request
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20

THREADS = 8
"""Of a load that is killed. Each may have a chunk that has not arrived, or is not written yet."""

LOAD = """
import sys
from metaflow_artifacts import open_store
from metaflow_artifacts._transfer import current_engine
from metaflow_artifacts._transfer.engine import Engine

root, key, path, threads = sys.argv[1:]
current_engine._local.engine = Engine(most_threads=int(threads))
open_store(root).load(key, path)
"""


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


def remote(s3_server: SeaweedServer, proxy: FaultProxy, chunk_size: int) -> Store:
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    return Store(open_storage(f"{s3_server.root}/{uuid4().hex}", client=client), chunk_size=chunk_size)


def chunks_asked_for(proxy: FaultProxy) -> list[str]:
    """Of each request for a chunk, the chunk. A request that breaks off is made again, for the rest of the chunk."""
    return [request.path for request in proxy.requests if "/chunks/" in request.path]


def kill_load(server: SeaweedServer, store: Store, key: str, target: Path, after: int) -> int:
    """Load in another process, and kill it when it asks for a chunk for the time number `after`.

    Returns how many chunks it has asked for.
    """
    lock, asked = threading.Lock(), 0

    def plan(request: Request) -> Fault | None:
        nonlocal asked
        if "/chunks/" in request.path:
            with lock:
                asked += 1
                if asked == after:
                    process.send_signal(signal.SIGKILL)
        return None

    command = [sys.executable, "-c", LOAD, store.root, key, str(target), str(THREADS)]
    # At its end, the proxy has noted all requests.
    with FaultProxy(server.endpoint) as proxy:
        environment = {**os.environ, **server.environment(), "METAFLOW_S3_ENDPOINT_URL": proxy.endpoint}
        proxy.plan = plan
        with lock:
            process = subprocess.Popen(command, env=environment)
        process.wait(300)
    assert process.returncode == -signal.SIGKILL
    return len(set(chunks_asked_for(proxy)))


@pytest.mark.parametrize(
    ("chunks", "chunk_size"),
    [
        pytest.param(128, MIB, id="128 MiB"),
        pytest.param(64, 16 * MIB, id="1 GiB", marks=pytest.mark.long),
        pytest.param(256, 4 * MIB, id="1 GiB in chunks of 4 MiB", marks=pytest.mark.long),
    ],
)
def test_a_load_that_was_killed_at_half_moves_the_missing_half(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path, chunks: int, chunk_size: int
) -> None:
    size = chunks * chunk_size
    store = remote(s3_server, proxy, chunk_size)
    with (tmp_path / "weights").open("wb") as file:
        for _ in range(chunks):
            file.write(random.randbytes(chunk_size))
    key = store.save_model(tmp_path / "weights")["key"]
    manifest = len(store.storage.get(key))
    target = tmp_path / "target"

    first = kill_load(s3_server, store, key, target, chunks // 2)
    assert first <= chunks // 2 + THREADS
    assert [name.startswith(STAGING_PREFIX) for name in os.listdir(target)] == [True]

    proxy.requests.clear()
    proxy.sent = 0
    progress = Progress()
    store.load(key, target, progress=progress)
    assert os.listdir(target) == ["weights"]
    assert (target / "weights").read_bytes() == (tmp_path / "weights").read_bytes()
    asked = chunks_asked_for(proxy)
    second = len(set(asked))
    assert second <= chunks - first + THREADS
    assert progress.found == size - second * chunk_size > 0
    if len(asked) == second:
        assert proxy.sent == manifest + second * chunk_size


def test_a_second_load_into_the_directory_moves_the_manifest_alone(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = remote(s3_server, proxy, 64 << 10)
    tree, target = tmp_path / "tree", tmp_path / "target"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "weights").write_bytes(os.urandom(10 * (64 << 10) + 5))
    for number in range(50):
        (tree / f"{number}.txt").write_bytes(os.urandom(1000))
    key = store.save_model(tree)["key"]
    store.load(key, target)
    proxy.requests.clear()
    proxy.sent = 0
    store.load(key, target)
    assert [(request.method, request.path.endswith(key)) for request in proxy.requests] == [("GET", True)]
    assert proxy.sent == len(store.storage.get(key))
    # A part, and what is missing of it.
    (target / "7.txt").unlink()
    proxy.requests.clear()
    store.load(key, target, only=["7.txt", "8.txt", "sub/*"])
    assert sum("/chunks/" in request.path for request in proxy.requests) == 1
    for path in tree.rglob("*.txt"):
        assert (target / path.name).read_bytes() == path.read_bytes()
