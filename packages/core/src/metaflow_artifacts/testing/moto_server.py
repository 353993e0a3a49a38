"""moto as an S3 server for tests: the PyPI package `moto`, in a separate process, on loopback.

It keeps all objects in memory. It accepts the keys that S3 accepts (SeaweedFS drops empty parts), has versioned
buckets, and verifies no digests.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from metaflow_artifacts.testing.servers import S3Server, hold_ports, launch, port_of, running

__all__ = ["moto_server"]


@contextlib.contextmanager
def moto_server(directory: str | os.PathLike[str], *, bucket: str = "artifacts") -> Iterator[S3Server]:
    """Run a server with its log in `directory`, on a free port of 127.0.0.1, and stop it at the end.

    When the block begins, `bucket` exists and accepts objects. Raises RuntimeError, with the end of the server's log,
    where it does not start.
    """
    home = Path(directory)
    home.mkdir(parents=True, exist_ok=True)

    def start() -> S3Server:
        held = hold_ports(1)
        port = port_of(held[0])
        log = home / "moto.log"
        process = launch([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log, held)
        return S3Server(f"http://127.0.0.1:{port}", bucket, home, log, process, "any-access-key", "any-secret-key")

    with running(start) as server:
        yield server
