"""Saves and loads over a link that limits each connection, as real networks do.

    .venv/bin/python benchmarks/link.py                              starts SeaweedFS
    .venv/bin/python benchmarks/link.py --service azure              starts Azurite; or gcs: fake-gcs-server
    .venv/bin/python benchmarks/link.py --rate 20
    .venv/bin/python benchmarks/link.py --files 1 --mib 192
    .venv/bin/python benchmarks/link.py --jobs 6                     six saves at once in one process

Each connection passes --rate MB/s (2) each way, and each answer waits --latency seconds (0.02) for its first byte.
--files (24) of --mib (8) are saved and loaded in --rounds (3) processes; medians are printed, with the most connections
that were open at once. *bound* is what min(64, pieces) such connections would move, a piece being 16 MiB of a file or
less; loads of fewer than 25 pieces read each in ranges. `free` is the same without a limit.

For another server: --endpoint URL --root ROOT. The client finds the link in the environment variable --variable
(METAFLOW_S3_ENDPOINT_URL), or in ROOT, where `{endpoint}` stands for its URL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

from metaflow_artifacts import Store, open_store
from metaflow_artifacts._transfer.split_reads import most_ranges
from metaflow_artifacts.testing.azurite import account_key, azurite
from metaflow_artifacts.testing.fake_gcs import anonymous, fake_gcs
from metaflow_artifacts.testing.seaweedfs import seaweedfs
from metaflow_artifacts.testing.servers import Server

MOST, PIECE = 64, 16 << 20
RANGES, RANGE = 48, 4 << 20
SERVERS: dict[str, Callable[[str], AbstractContextManager[Server]]] = {
    "s3": seaweedfs,
    "azure": azurite,
    "gcs": fake_gcs,
}
ROOTS = {"azure": "{endpoint}/devstoreaccount1/artifacts"}


class Link:
    """A link to the server at `endpoint`, on a free port of 127.0.0.1. `peak` counts the most open connections.

    `rate` is in bytes a second: of each connection, or of all together where it is `shared`.
    """

    def __init__(self, endpoint: str, rate: float, latency: float, *, shared: bool = False) -> None:
        parts = urlsplit(endpoint)
        self.far = parts.hostname or "", parts.port or 80
        self.rate = rate
        self.latency = latency
        self.shared = shared
        self.free_at = {False: 0.0, True: 0.0}
        """When a shared link has passed on all that came from each end."""
        self.open = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Link:
        self._thread.start()
        listening = self._loop.create_server(lambda: _Side(self, None), "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.endpoint = "http://{}:{}".format(*server.sockets[0].getsockname())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class _Side(asyncio.Protocol):
    """One end of a connection; what arrives at it goes out at the other one, which `other` is."""

    transport: asyncio.Transport

    def __init__(self, link: Link, other: _Side | None) -> None:
        self.link = link
        self.other = other
        self.loop = asyncio.get_running_loop()
        self.is_near = other is None
        self.free_at = 0.0
        """When the link has passed on all that has arrived here."""
        self.answers = False
        """Whether the next data are the begin of an answer."""
        self.early: list[bytes] = []
        self.underway: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.is_near:
            self.link.open += 1
            self.link.peak = max(self.link.peak, self.link.open)
            self.loop.create_task(self._reach())
        elif self.other is not None:
            self.other.other = self
            for data in self.other.early:
                self.transport.write(data)

    async def _reach(self) -> None:
        try:
            await self.loop.create_connection(lambda: _Side(self.link, self), *self.link.far)
        except OSError:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        if self.is_near and self.other is not None:
            self.other.answers = True
        elif self.answers:
            self.answers = False
            self.free_at = max(self.free_at, now + self.link.latency)
        # A full link is a reader that does not read: what is sent then waits at its sender.
        begin = max(self.free_at, now)
        if self.link.shared:
            begin = max(begin, self.link.free_at[self.is_near])
        self.free_at = self.link.free_at[self.is_near] = begin + len(data) / self.link.rate
        # What waits for its time goes first, even where the loop is late.
        self.underway.append(data)
        if begin > now:
            self.loop.call_at(begin, self._pass_on)
        else:
            self._pass_on()
        if self.free_at > now + 0.001:
            self.transport.pause_reading()
            self.loop.call_at(self.free_at, self._resume)

    def _pass_on(self) -> None:
        data = self.underway.popleft()
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def _resume(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.link.open -= self.is_near
        if self.other is not None:
            # After the last data, whose time is the same.
            self.loop.call_at(max(self.free_at, self.loop.time()) + 0.001, self.other.transport.close)


def store_at(service: str, root: str) -> Store:
    if service == "azure":
        from metaflow_artifacts._storage.azure import AzureStorage

        return Store(AzureStorage(root, account_key, endpoint=root.rpartition("/artifacts/")[0]))
    if service == "gcs":
        from metaflow_artifacts._storage.gcs import GcsStorage

        return Store(GcsStorage(root, anonymous, endpoint=os.environ["STORAGE_EMULATOR_HOST"]))
    return open_store(root)


def step(service: str, root: str, sources: list[str]) -> None:
    """What is timed, in a process of its own."""
    store = store_at(service, root)
    keys = [""] * len(sources)

    def save(number: int) -> None:
        keys[number] = store.save_model(sources[number])["key"]

    def load(number: int) -> None:
        store.load(keys[number], sources[number] + ".loaded")

    for name, action in (("save", save), ("load", load)):
        threads = [threading.Thread(target=action, args=(number,)) for number in range(len(sources))]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
        # Not ru_maxrss, which takes over what the parent had in memory when it started this process.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(json.dumps({name: seconds, f"{name} peak": int(status["VmHWM"].split()[0]) / 1024}), flush=True)


def measure(options: argparse.Namespace, link: Link | None, endpoint: str, root: str, env: dict[str, str]) -> Any:
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        sources = []
        for job in range(options.jobs):
            source = Path(work, str(job))
            source.mkdir()
            for number in range(options.files):
                (source / f"{number:04}").write_bytes(os.urandom(options.mib << 20))
            sources.append(str(source))
        url = link.endpoint if link is not None else endpoint
        where = f"{root.replace('{endpoint}', url)}/{uuid4().hex}"
        command = [sys.executable, __file__, "--service", options.service, "--step", where, *sources]
        result: dict[str, float] = {}
        if link is not None:
            link.peak = link.open
        with subprocess.Popen(
            command, env={**os.environ, **env, options.variable: url}, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line, name in zip(process.stdout, ("save", "load"), strict=True):
                result |= json.loads(line)
                if link is not None:
                    result[f"{name} connections"] = link.peak
                    link.peak = link.open
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return result


def bound(options: argparse.Namespace, action: str) -> float:
    """In MB/s."""
    size = options.mib << 20
    pieces = options.files * -(-size // PIECE)
    if action == "load" and most_ranges(pieces, RANGES) > 1:
        pieces *= max(1, min(most_ranges(pieces, RANGES), min(size, PIECE) // RANGE))
    return float(options.rate * min(MOST, options.jobs * pieces))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=SERVERS, default="s3")
    parser.add_argument("--rate", type=float, default=2)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--mib", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--endpoint")
    parser.add_argument("--root")
    parser.add_argument("--variable", default="METAFLOW_S3_ENDPOINT_URL")
    parser.add_argument("--work", help="where the files lie")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.service, options.step[0], options.step[1:])
        return
    with contextlib.ExitStack() as stack:
        endpoint, root, env = options.endpoint, options.root, {}
        if endpoint is None:
            data = stack.enter_context(tempfile.TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True))
            server = stack.enter_context(SERVERS[options.service](data))
            parts = urlsplit(server.endpoint)
            endpoint, env = f"{parts.scheme}://{parts.netloc}", server.environment()
            root = ROOTS.get(options.service, server.root)
            if options.service == "gcs":
                options.variable = "STORAGE_EMULATOR_HOST"
        link = stack.enter_context(Link(endpoint, options.rate * 1e6, options.latency))
        results: dict[str, list[dict[str, float]]] = {"limited": [], "free": []}
        for number in range(options.rounds):
            for name in list(results)[:: -1 if number % 2 else 1]:
                results[name].append(measure(options, link if name == "limited" else None, endpoint, root, env))
    total = options.jobs * options.files * (options.mib << 20) / 1e6

    def median(name: str, metric: str) -> float:
        return statistics.median(result[metric] for result in results[name])

    print(f"{options.jobs} x {options.files} files of {options.mib} MiB, {options.rate} MB/s a connection")
    print("| | seconds | MB/s | bound, MB/s | connections | free, MB/s | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for action in ("save", "load"):
        seconds, free = median("limited", action), median("free", action)
        cells = [f"{seconds:.2f}", f"{total / seconds:.0f}", f"{bound(options, action):.0f}"]
        cells += [f"{median('limited', f'{action} connections'):.0f}", f"{total / free:.0f}"]
        print(f"| {action} | " + " | ".join(cells) + f" | {median('limited', f'{action} peak'):.0f} |")


if __name__ == "__main__":
    main()
