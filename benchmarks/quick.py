"""What requests to S3 cost the client's processor, with and without boto3 making each: `.venv/bin/python
benchmarks/quick.py` (TMPDIR=/dev/shm keeps the server's data in memory). 24 threads share one client, as in a load.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._storage.s3_quick import QuickRequests, Written
from metaflow_artifacts.testing.seaweedfs import seaweedfs

ROUNDS, THREADS, MIB, BLOCK = 5, 24, 8, 512 << 10


class ByBoto3(QuickRequests):
    """Leaves each request to boto3."""

    def _ask(self, *arguments: object) -> None:
        return None

    def put(self, *arguments: object, new: bool) -> Written:
        return Written.NO


def read(storage: S3Storage, key: str) -> None:
    """A chunk as a load reads it."""
    buffer, digest = memoryview(bytearray(BLOCK)), hashlib.sha256()
    with storage.open(key) as reader:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work, seaweedfs(work) as server:
        storages = {name: S3Storage(f"{server.root}/requests", server.client) for name in ("quick", "boto3")}
        for name, storage in storages.items():
            kind = QuickRequests if name == "quick" else ByBoto3
            storage._quick_requests = kind(storage._requests.client("reach", ""), storage.bucket)
        for number in range(THREADS):
            storages["quick"].put(f"chunk{number}", os.urandom(MIB << 20))

        def heads(storage: S3Storage, number: int) -> None:
            for _ in range(40):
                storage.stat_before_write(f"chunk{number}")

        def starts(storage: S3Storage, number: int) -> None:
            for _ in range(40):
                storage.get(f"chunk{number}", 0, 4096)

        def chunks(storage: S3Storage, number: int) -> None:
            read(storage, f"chunk{number}")

        def states(storage: S3Storage, number: int) -> None:
            for turn in range(40):
                storage.put(f"state{number}.{turn}", bytes(4096))

        content = memoryview(bytes(2 << 20))
        digest = hashlib.sha256(content).digest()

        def packs(storage: S3Storage, number: int) -> None:
            for turn in range(4):
                storage.put_hashed(f"pack{number}.{turn}", content, digest)

        actions: dict[str, tuple[Callable[[S3Storage, int], None], float, str]] = {
            "HEAD": (heads, 1e3 / (40 * THREADS), "ms a request"),
            "GET of 4 KiB": (starts, 1e3 / (40 * THREADS), "ms a request"),
            "GET of 8 MiB and hash": (chunks, 1e9 / (THREADS * MIB << 20), "s a GB"),
            "PUT of 4 KiB": (states, 1e3 / (40 * THREADS), "ms a request"),
            "PUT of 2 MiB": (packs, 1e3 / (4 * THREADS), "ms a request"),
        }
        print("| of the processor | boto3 | without it | |\n| --- | --- | --- | --- |")
        with ThreadPoolExecutor(THREADS) as pool:
            for what, (action, factor, unit) in actions.items():
                taken: dict[str, list[float]] = {name: [] for name in storages}
                for turn in range(ROUNDS + 1):
                    for name in list(storages)[:: -1 if turn % 2 else 1]:
                        begin = time.process_time()
                        list(pool.map(action, [storages[name]] * THREADS, range(THREADS)))
                        # The first turn opens the connections.
                        taken[name] += [time.process_time() - begin] if turn else []
                boto3, quick = (statistics.median(taken[name]) * factor for name in ("boto3", "quick"))
                print(f"| {what} | {boto3:.2f} | {quick:.2f} | {unit} |")


if __name__ == "__main__":
    main()
