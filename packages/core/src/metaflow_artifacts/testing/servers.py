"""Starting, reaching and stopping storage servers for tests, on loopback."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from metaflow_artifacts._storage.s3 import client_config

__all__ = ["S3Server", "Server", "find_program", "hold_ports", "launch", "port_of", "running", "s3_client"]

_S = TypeVar("_S", bound="Server")

_START_ATTEMPTS = 3
_READY_SECONDS = 60.0

# Kills the server when its standard input closes, so that it cannot outlive a test process that is killed. SIGKILL,
# since a graceful end takes 15 s; the kernel has what the server has written.
_GUARD = 'exec 3<&0; "$@" 3<&- & child=$!; { read -r _ <&3; kill -9 "$child"; } & wait "$child"'


@dataclass(frozen=True)
class Server(ABC):
    """A running server: where it listens, and the bucket that was made in it."""

    endpoint: str
    bucket: str
    directory: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    @abstractmethod
    def root(self) -> str:
        """The bucket as a datastore root."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The environment variables by which Metaflow's datastore uses this server and bucket."""

    @abstractmethod
    def prepare(self) -> Exception | None:
        """Make the bucket and write to it. What went wrong, or None where the server is ready."""

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop the server, and remove what it leaves outside of its directory."""
        self.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()


@dataclass(frozen=True)
class S3Server(Server):
    """A running S3 server, with its keys."""

    access_key: str
    secret_key: str

    @property
    def root(self) -> str:
        """The bucket as a datastore root, `s3://bucket`."""
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """The environment variables by which boto3 and Metaflow's S3 datastore use this server and bucket."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "METAFLOW_S3_ENDPOINT_URL": self.endpoint,
            "METAFLOW_DATASTORE_SYSROOT_S3": f"{self.root}/metaflow",
        }

    def client(self, **options: Any) -> Any:
        """A boto3 client of this server, as `open_storage` makes it, without the machine's AWS configuration.

        To make one in another process, use `functools.partial(s3_client, ...)`, which can be pickled.
        """
        return s3_client(self.endpoint, self.access_key, self.secret_key, **options)

    def prepare(self) -> Exception | None:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
        client = self.client(config=config)
        try:
            # The bucket may exist from an earlier run over the same directory.
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key="ready")
        except (BotoCoreError, ClientError) as error:
            return error
        finally:
            client.close()
        return None


def s3_client(endpoint: str, access_key: str, secret_key: str, **options: Any) -> Any:
    """A boto3 client with these settings and no others; `options` are passed to boto3 and take precedence."""
    import boto3
    from botocore.session import Session

    options = {
        "endpoint_url": endpoint,
        "aws_access_key_id": access_key,
        "aws_secret_access_key": secret_key,
        "region_name": "us-east-1",
        "config": client_config(),
        **options,
    }
    session = Session()
    session.register_component("data_loader", _data_loader())
    return boto3.session.Session(botocore_session=session).client("s3", **options)


@functools.cache
def _data_loader() -> Any:
    """What reads boto3's descriptions of services: once a process, where tests make a thousand clients."""
    from botocore.session import Session

    return Session().get_component("data_loader")


@contextlib.contextmanager
def running(start: Callable[[], _S]) -> Iterator[_S]:
    """Start a server, wait until its bucket accepts objects, and stop it at the end.

    Raises RuntimeError, with the end of the server's log, where it does not start.
    """
    for attempt in range(_START_ATTEMPTS):
        server = start()
        try:
            _wait_until_ready(server)
            break
        except RuntimeError:
            server.stop()
            if attempt == _START_ATTEMPTS - 1:
                raise
        except BaseException:
            server.stop()
            raise
    try:
        yield server
    finally:
        server.stop()


def launch(
    command: Sequence[str], log: Path, held: Sequence[socket.socket], **variables: str
) -> subprocess.Popen[bytes]:
    """Start a server's program in the directory of its log. It is killed when this process ends.

    The ports that are `held` stay so until then.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab"))
        for one in held:
            stack.enter_context(one)
        return subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **variables},
            pass_fds=[one.fileno() for one in held],
            start_new_session=True,
        )


def find_program(name: str, package: str) -> str:
    """The path of a program that is part of a PyPI package. Raises FileNotFoundError where it is not installed."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the program {name!r} is not installed: pip install {package}")
    return found


def hold_ports(count: int) -> list[socket.socket]:
    """Sockets at free ports of 127.0.0.1, where nobody listens.

    While they are open, the system gives these ports to no other process that asks for any port, and to no connection;
    a program that names such a port can listen there, as servers set SO_REUSEADDR.
    """
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
    return sockets


def port_of(held: socket.socket) -> int:
    """The port of one of `hold_ports`."""
    port: int = held.getsockname()[1]
    return port


def _wait_until_ready(server: Server) -> None:
    last: Exception | None = None
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        last = server.prepare()
        if last is None:
            return
        time.sleep(0.1)
    tail = server.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"the server in {server.directory} is not ready ({last}); its log ends:\n{tail}")
