"""Commands on a store in S3."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10


def test_a_store_in_s3(
    s3_server: SeaweedServer,
    tmp_path: Path,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = f"{s3_server.root}/cli"
    (tmp_path / "file").write_bytes(bytes(3 * CHUNK))
    key = Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK).save_model(tmp_path / "file")["key"]
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    for arguments in (["check", "--read"], ["get", key, str(tmp_path / "out")], ["delete", key], ["gc", "--execute"]):
        assert run(*arguments, root=root).code == 0
    assert (tmp_path / "out" / "file").read_bytes() == bytes(3 * CHUNK)
    done = subprocess.run(
        [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", "s3://no-such-bucket/x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "no-such-bucket" in done.stderr
    assert done.stderr.count("\n") == 1
