"""Commands on a store in S3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10


def test_a_store_in_s3(s3_server: SeaweedServer, tmp_path: Path) -> None:
    root = f"{s3_server.root}/cli"
    (tmp_path / "file").write_bytes(bytes(3 * CHUNK))
    key = Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK).save_model(tmp_path / "file")["key"]
    environment = {**os.environ, **s3_server.environment()}
    for arguments in (["check", "--read"], ["get", key, str(tmp_path / "out")], ["delete", key], ["gc", "--execute"]):
        command = [sys.executable, "-m", "metaflow_artifacts", arguments[0], "--root", root, *arguments[1:]]
        subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "out" / "file").read_bytes() == bytes(3 * CHUNK)
    done = subprocess.run(
        [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", "s3://no-such-bucket/x"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "no-such-bucket" in done.stderr
    assert done.stderr.count("\n") == 1
