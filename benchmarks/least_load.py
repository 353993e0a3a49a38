"""The least time in which content can come over a link that limits each connection, and the time that a load takes.

    TMPDIR=/dev/shm .venv/bin/python benchmarks/least_load.py

24 files of 8 MiB come from SeaweedFS through the link of link.py, whose connections pass --rate MB/s (20) each. *read*
are plain sockets that ask for the same ranges as a load, two of each file at once, and throw away what comes. *least*
are the same ones; they also write all bytes and hash those of each file in order, as every load must. Each has a
process of its own. Options: --rounds 5. Medians of the rounds; the first one, which finds memory, does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from link import Link

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.seaweedfs import seaweedfs

FILES, SIZE, RANGES, BLOCK = 24, 8 << 20, 2, 512 << 10
WAYS = ("read", "least", "load")


class PlainLoad:
    """Reads objects whose addresses are signed already into files of a directory, where it `keeps` them."""

    def __init__(self, addresses: list[str], directory: Path, keeps: bool) -> None:
        self._addresses = addresses
        self._files = [os.open(directory / str(number), os.O_RDWR | os.O_CREAT) for number in range(len(addresses))]
        self._written = [[threading.Event() for _ in range(RANGES)] for _ in addresses]
        self._keeps = keeps

    def run(self) -> None:
        each = [(number, part) for part in range(RANGES) for number in range(len(self._addresses))]
        threads = [threading.Thread(target=self._range, args=one) for one in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _range(self, number: int, part: int) -> None:
        url, size = urlsplit(self._addresses[number]), SIZE // RANGES
        begin = at = part * size
        buffer, digest = memoryview(bytearray(BLOCK)), hashlib.sha256()
        with (
            socket.create_connection((url.hostname or "", url.port or 80)) as connection,
            connection.makefile("rb") as answer,
        ):
            asked = f"GET {url.path}?{url.query} HTTP/1.1\r\nhost: {url.netloc}\r\n"
            connection.sendall(f"{asked}range: bytes={begin}-{begin + size - 1}\r\n\r\n".encode())
            assert b" 206 " in answer.readline()
            while answer.readline().strip():
                pass
            while at < begin + size:
                block = buffer[: answer.readinto1(buffer[: begin + size - at])]
                if self._keeps:
                    os.pwrite(self._files[number], block, at)
                    if not part:
                        digest.update(block)
                at += len(block)
        self._written[number][part].set()
        if self._keeps and not part:
            for later in range(1, RANGES):
                self._written[number][later].wait()
            for at in range(size, SIZE, BLOCK):
                os.preadv(self._files[number], [buffer], at)
                digest.update(buffer)


def step(way: str, root: str, key: str, target: Path, addresses: list[str]) -> None:
    """What is timed, in a process of its own."""
    store = open_store(root)
    target.mkdir()
    store.storage.connect()
    plain = PlainLoad(addresses, target, keeps=way == "least")
    begin = time.perf_counter()
    if way == "load":
        store.load(key, target / "loaded")
    else:
        plain.run()
    print(json.dumps(time.perf_counter() - begin))


def measure(way: str, root: str, key: str, addresses: list[str]) -> float:
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, __file__, "--step", way, root, key, target + "/out"]
        made = subprocess.run(command, input=json.dumps(addresses), stdout=subprocess.PIPE, text=True, check=True)
        return float(made.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        way, root, key, target = options.step
        step(way, root, key, Path(target), json.load(sys.stdin))
        return
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work, seaweedfs(Path(work) / "server") as server:
        source = Path(work) / "source"
        source.mkdir()
        for number in range(FILES):
            (source / f"{number:02}").write_bytes(os.urandom(SIZE))
        os.environ.update(server.environment())
        store = open_store(server.root)
        key = store.save_model(source)["key"]
        names = [info.key for info in store.storage.list("") if info.size == SIZE]
        with Link(server.endpoint, options.rate * 1e6, 0.02) as link:
            os.environ["METAFLOW_S3_ENDPOINT_URL"] = link.endpoint
            client = server.client(endpoint_url=link.endpoint)
            objects = [{"Bucket": server.bucket, "Key": name} for name in names]
            addresses = [client.generate_presigned_url("get_object", Params=one) for one in objects]
            for turn in range(options.rounds + 1):
                for way in WAYS[:: -1 if turn % 2 else 1]:
                    seconds = measure(way, server.root, key, addresses)
                    taken[way] += [seconds] if turn else []
    print("| " + " | ".join(WAYS) + " |\n| --- | --- | --- |")
    print("| " + " | ".join(f"{statistics.median(taken[way]):.2f} s" for way in WAYS) + " |")


if __name__ == "__main__":
    main()
