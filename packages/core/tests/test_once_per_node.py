"""Eight tasks of one machine load a model: the server sends it once. Counted before a real S3 server."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts.testing.faults import Cut, Fault, FaultProxy, Request
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20
TASKS = 8

LOAD = """
import json, sys
from metaflow_artifacts import Progress, open_store
from metaflow_artifacts._transfer import cache

# On a machine with much else to do, a chunk may not come for so long that a task that waits for it fetches it too.
cache._PATIENCE_S = 600.0
root, key, path = sys.argv[1:]
store = open_store(root)
print("ready", flush=True)
sys.stdin.readline()
progress = Progress()
store.load(key, path, progress=progress)
print(json.dumps([progress.total, progress.cached]))
"""


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


def save(server: SeaweedServer, proxy: FaultProxy, path: Path, chunks: int, chunk_size: int) -> tuple[Store, str]:
    client = functools.partial(server.client, endpoint_url=proxy.endpoint)
    store = Store(open_storage(f"{server.root}/{uuid4().hex}", client=client), chunk_size=chunk_size)
    with path.open("wb") as file:
        for _ in range(chunks):
            file.write(random.randbytes(chunk_size))
    key = store.save_model(path)["key"]
    proxy.requests.clear()
    proxy.sent = 0
    return store, key


class Tasks:
    """Processes that wait until all are ready, and load then."""

    def __init__(self, server: SeaweedServer, proxy: FaultProxy, store: Store, key: str, cache: Path) -> None:
        self._environment = {
            **os.environ,
            **server.environment(),
            "METAFLOW_S3_ENDPOINT_URL": proxy.endpoint,
            "METAFLOW_ARTIFACTS_CACHE": str(cache),
        }
        self._arguments = [sys.executable, "-c", LOAD, store.root, key]

    def start(self, targets: list[Path]) -> list[subprocess.Popen[str]]:
        processes = [
            subprocess.Popen(
                [*self._arguments, str(target)],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for target in targets
        ]
        for process in processes:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        return processes

    def load(self, targets: list[Path], expected: Path) -> list[tuple[int, int]]:
        """What each says: the bytes that it loaded, and how many of them were cached."""
        results = []
        for process, target in zip(self.start(targets), targets, strict=True):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0
            results.append(tuple(json.loads(output)))
            assert subprocess.run(["cmp", expected, target / expected.name]).returncode == 0
            shutil.rmtree(target)
        return results


def asked(proxy: FaultProxy) -> Counter[str]:
    return Counter(request.path for request in proxy.requests if "/chunks/" in request.path)


@pytest.mark.parametrize(
    ("chunks", "chunk_size"),
    [pytest.param(64, MIB, id="64 MiB"), pytest.param(64, 16 * MIB, id="1 GiB", marks=pytest.mark.long)],
)
def test_eight_tasks_fetch_a_model_once(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path, chunks: int, chunk_size: int
) -> None:
    size = chunks * chunk_size
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    store, key = save(s3_server, proxy, weights, chunks, chunk_size)
    manifest = len(store.storage.get(key))
    proxy.sent = 0
    tasks = Tasks(s3_server, proxy, store, key, cache)
    targets = [tmp_path / f"target{number}" for number in range(TASKS)]

    results = tasks.load(targets, weights)
    assert len(asked(proxy)) == chunks
    if asked(proxy).total() == chunks:  # else a request broke off, and was made again for the rest
        assert proxy.sent == TASKS * manifest + size
    assert sum(total - cached for total, cached in results) == size

    proxy.requests.clear()
    proxy.sent = 0
    assert tasks.load(targets[:1], weights) == [(size, size)]
    assert proxy.sent == manifest
    assert [request.path.endswith(key) for request in proxy.requests] == [True]

    # Of every three, one is flipped, one is cut, one is missing.
    files = sorted((cache / "metaflow_artifacts").iterdir())
    assert len(files) == chunks
    for number, path in enumerate(files):
        if number % 3 == 0:
            with path.open("r+b") as file:
                file.seek(chunk_size // 2)
                byte = file.read(1)
                file.seek(chunk_size // 2)
                file.write(bytes([byte[0] ^ 1]))
        elif number % 3 == 1:
            os.truncate(path, number * 100)
        else:
            path.unlink()
    proxy.requests.clear()
    results = tasks.load(targets[:2], weights)
    assert len(asked(proxy)) == chunks
    assert sum(total - cached for total, cached in results) == size
    assert sorted((cache / "metaflow_artifacts").iterdir()) == files


def test_what_a_killed_task_was_writing_counts_for_nothing(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    store, key = save(s3_server, proxy, weights, 8, 4 * MIB)
    tasks = Tasks(s3_server, proxy, store, key, cache)

    def plan(request: Request) -> Fault | None:
        # Each chunk comes by half, and then nothing more.
        return Cut(2 * MIB, reset=False, stall=True) if "/chunks/" in request.path else None

    with FaultProxy(s3_server.endpoint) as stalled:
        stalled.plan = plan
        (process,) = Tasks(s3_server, stalled, store, key, cache).start([tmp_path / "killed"])
        # What is seen of the files says when it has written; it never ends by itself.
        while sum(path.stat().st_size >= MIB for path in (cache / "metaflow_artifacts").glob("*.part")) < 8:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = {path.suffix for path in cache.rglob("*") if path.is_file()}
    assert left == {".part", ".lock"}
    assert tasks.load([tmp_path / "target"], weights) == [(8 * 4 * MIB, 0)]
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} == {""}
    assert len(Cache(str(cache)).chunks()) == 8


def test_a_save_in_the_background_puts_what_it_sends_into_the_cache(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    store, _ = save(s3_server, proxy, tmp_path / "weights", 1, MIB)
    store.cache = Cache(str(tmp_path / "cache"), 1 << 30)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "weights").write_bytes(os.urandom(3 * MIB))
    for number in range(100):
        (tree / f"{number}.txt").write_bytes(os.urandom(2000))
    saved = store.save_model_async(tree).result(60)
    proxy.requests.clear()
    store.load(saved, tmp_path / "target")
    assert [request.path.endswith(saved["key"]) for request in proxy.requests] == [True]
    for path in tree.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()
