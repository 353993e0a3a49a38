"""The least time in which the content of a save can reach an S3 server on this machine, and the time that a save takes.

    TMPDIR=/dev/shm .venv/bin/python benchmarks/least.py

The least is a loop over plain sockets, in the same run: it reads the files, hashes them as the format demands (a part
of a large file once for its name and once on its way; each small file and its pack), and sends them with their digests,
16 at once, without asking what is stored and without boto3. Options: --rounds 5. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.client
import os
import statistics
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from metaflow_artifacts import Store
from metaflow_artifacts._format.plan import Group, plan_groups
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs

CHUNK, BLOCK, SEND, CONNECTIONS = 16 << 20, 512 << 10, 256 << 10, 16
SHARDS, SHARD, FILES, FILE = 8, 32 << 20, 2000, 16 << 10


class _Unsigned(S3SigV4Auth):
    def payload(self, request: AWSRequest) -> str:
        return "UNSIGNED-PAYLOAD"


class Raw:
    """Sends objects over one connection for each thread."""

    def __init__(self, server: SeaweedServer) -> None:
        self._server = server
        self._signer = _Unsigned(Credentials(server.access_key, server.secret_key), "s3", "us-east-1")
        self._local = threading.local()

    def put(self, name: str, size: int, digest: bytes, blocks: Iterable[memoryview]) -> None:
        path = f"/{self._server.bucket}/{name}"
        headers = {
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-checksum-sha256": b64encode(digest).decode(),
        }
        request = AWSRequest("PUT", self._server.endpoint + path, headers=headers)
        self._signer.add_auth(request)
        if not hasattr(self._local, "connection"):
            url = urlsplit(self._server.endpoint)
            self._local.connection = http.client.HTTPConnection(url.hostname or "", url.port)
            self._local.connection.connect()
        connection = self._local.connection
        connection.putrequest("PUT", path, skip_accept_encoding=True)
        for header, value in {**dict(request.headers.items()), "content-length": str(size)}.items():
            connection.putheader(header, value)
        connection.endheaders()
        for block in blocks:
            for begin in range(0, len(block), SEND):
                connection.sock.sendall(block[begin : begin + SEND])
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    def shards(self, source: Path, prefix: str) -> None:
        turn = threading.Semaphore(max(1, (os.cpu_count() or 1) - 1))

        def send(path: Path, start: int) -> None:
            buffer = memoryview(bytearray(BLOCK))

            def blocks(digest: hashlib._Hash) -> Iterable[memoryview]:
                for at in range(start, start + CHUNK, BLOCK):
                    os.preadv(fd, [buffer], at)
                    digest.update(buffer)
                    yield buffer

            fd = os.open(path, os.O_RDONLY)
            digest = hashlib.sha256()
            with turn:
                for _ in blocks(digest):
                    pass
            self.put(f"{prefix}/{path.name}.{start}", CHUNK, digest.digest(), blocks(hashlib.sha256()))
            os.close(fd)

        pieces = [(path, start) for path in sorted(source.iterdir()) for start in range(0, SHARD, CHUNK)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(send, *zip(*pieces, strict=True)))

    def small(self, source: Path, prefix: str) -> None:
        turn = threading.Semaphore(2)
        files = sorted((path.name, path.stat().st_size) for path in source.iterdir())

        def send(group: Group) -> None:
            content = memoryview(bytearray(sum(group.sizes)))
            with turn:
                for at, number in enumerate(group.files):
                    fd = os.open(source / files[number][0], os.O_RDONLY)
                    os.preadv(fd, [content[at * FILE : (at + 1) * FILE]], 0)
                    os.fstat(fd)
                    os.close(fd)
            for begin in range(0, len(content), FILE):
                hashlib.sha256(content[begin : begin + FILE]).hexdigest()
            digest = hashlib.sha256(content).digest()
            self.put(f"{prefix}/{group.files.start}", len(content), digest, [content])

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(send, plan_groups(files, CHUNK)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work, seaweedfs(Path(work) / "server") as server:
        shards, small = (Path(work) / name for name in ("shards", "small"))
        for directory, count, size in ((shards, SHARDS, SHARD), (small, FILES, FILE)):
            directory.mkdir()
            for number in range(count):
                (directory / f"{number:05}").write_bytes(os.urandom(size))
        client = server.client()
        raw = Raw(server)
        cases: dict[str, tuple[Path, Callable[[Path, str], None]]] = {
            f"{SHARDS} files of {SHARD >> 20} MiB": (shards, raw.shards),
            f"{FILES} files of {FILE >> 10} KiB": (small, raw.small),
        }
        print("| | least | save | |\n| --- | --- | --- | --- |")
        for what, (source, least) in cases.items():
            taken: dict[str, list[float]] = {"least": [], "save": []}
            for turn in range(rounds + 1):
                store = Store(S3Storage(f"{server.root}/{source.name}{turn}", lambda: client))
                calls: dict[str, Callable[[], object]] = {
                    "least": functools.partial(least, source, f"least-{source.name}{turn}"),
                    "save": functools.partial(store.save_model, source),
                }
                for name in list(calls)[:: -1 if turn % 2 else 1]:
                    begin = time.perf_counter()
                    calls[name]()
                    # The first turn opens the connections, and finds memory.
                    taken[name] += [time.perf_counter() - begin] if turn else []
            best, ours = (statistics.median(taken[name]) for name in ("least", "save"))
            print(f"| {what} | {best:.2f} s | {ours:.2f} s | {ours / best:.2f} |")


if __name__ == "__main__":
    main()
