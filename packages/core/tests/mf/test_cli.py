"""The command line finds the datastore that Metaflow is configured for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts._cli import main
from metaflow_artifacts.testing.seaweedfs import SeaweedServer


def ls(environment: dict[str, str], *options: str, where: Path) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METAFLOW_")}
    command = [sys.executable, "-m", "metaflow_artifacts", "ls", "--json", *options]
    done = subprocess.run(command, env={**clean, **environment}, cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [artifact["key"] for artifact in json.loads(done.stdout)]


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_bytes(b"content")
    return tmp_path / "content"


def test_the_configured_local_datastore_is_listed(tmp_path: Path, content: Path) -> None:
    root = tmp_path / "project" / ".metaflow"
    key = open_store(root).save_model(content)["key"]
    (tmp_path / "project" / "below").mkdir()
    home = {"METAFLOW_HOME": str(tmp_path / "home")}
    assert ls(home, where=tmp_path / "project" / "below") == [key]
    configured = {**home, "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path / "project")}
    assert ls(configured, where=tmp_path) == [key]
    other = str(tmp_path / "other")
    open_store(other).delete(open_store(other).save_model(content))
    assert ls(configured, "--root", other, where=tmp_path) == []


def test_without_a_datastore_the_error_names_the_option(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaflow_artifacts", "ls"]
    environment = {**os.environ, "METAFLOW_HOME": str(tmp_path), "METAFLOW_DEFAULT_DATASTORE": "local"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 2
    assert "or pass --root" in done.stderr


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    """Metaflow, when it is imported, asks where it is."""
    (tmp_path / "gone").mkdir()
    line = f"rmdir {tmp_path / 'gone'}; exec {sys.executable} -m metaflow_artifacts ls --json"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr == "metaflow-artifacts: the working directory is gone; change to another one\n"
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_a_configured_datastore_that_holds_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".metaflow").mkdir()
    command = [sys.executable, "-m", "metaflow_artifacts", "ls"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METAFLOW_")}
    environment = {"METAFLOW_HOME": str(tmp_path / "home"), "METAFLOW_DEFAULT_DATASTORE": "local"}
    done = subprocess.run(command, env={**clean, **environment}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"nothing is stored at {tmp_path / '.metaflow'}" in done.stderr


def test_the_configured_s3_datastore_is_listed(tmp_path: Path, content: Path, s3_server: SeaweedServer) -> None:
    environment = {
        **s3_server.environment(),
        "METAFLOW_HOME": str(tmp_path),
        "METAFLOW_DEFAULT_DATASTORE": "s3",
    }
    root = environment["METAFLOW_DATASTORE_SYSROOT_S3"]
    key = open_store(root, client=s3_server.client).save_model(content)["key"]
    assert key in ls(environment, where=tmp_path)
    # The endpoint is Metaflow's, not boto3's.
    del environment["AWS_ENDPOINT_URL_S3"]
    assert key in ls(environment, "--root", root, where=tmp_path)


def test_du_by_user_asks_once_for_each_run(
    tmp_path: Path, content: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from metaflow.client import core
    from metaflow.exception import MetaflowNotFound

    asked = []

    class Runs:
        def __init__(self, pathspec: str, **_: Any) -> None:
            asked.append(pathspec)
            if pathspec == "Gone/1":
                raise MetaflowNotFound("it was deleted")
            self.system_tags = {"date:2026-01-01", "user:alice"}

    monkeypatch.setattr(core, "Run", Runs)
    store = open_store(tmp_path / "store")
    for flow in ("F", "F", "Other", "Gone"):
        store.save_model(content, pathspec=f"{flow}/1/train/2")
    assert main(["du", "--by", "user", "--json", "--root", store.root]) == 0
    groups = json.loads(capfd.readouterr().out)["groups"]
    assert [(group["user"], group["artifacts"]) for group in groups] == [("alice", 3), ("", 1)]
    assert sorted(asked) == ["F/1", "Gone/1", "Other/1"]
