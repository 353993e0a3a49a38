"""`--root` names a store that is there, or the command ends with an error that names the likely one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts._cli import main
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MISSING = "mf.models/models/artifacts/m_" + "0" * 32
COMMANDS = [
    ("ls",),
    ("du",),
    ("check",),
    ("gc", "--execute"),
    ("retain", "--last", "1", "--execute"),
    ("check", MISSING),
    ("show", MISSING),
    ("tree", MISSING),
    ("cat", MISSING, "file"),
    ("get", MISSING, "out"),
    ("lineage", MISSING),
    ("delete", MISSING),
    ("copy", MISSING, "--to", "out"),
]

HAS_METAFLOW = find_spec("metaflow") is not None
"""Whether the configured root can be told as the likely one."""


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_text("content")
    return tmp_path / "content"


def error_of(capfd: pytest.CaptureFixture[str], command: tuple[str, ...], root: str) -> str:
    """What a command that is refused with exit code 1 says."""
    assert main([command[0], "--root", root, *command[1:]]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("root", ["s3://", "s3:", "s3:/", "s3:///prefix", ""])
def test_a_root_without_a_bucket_is_refused(
    root: str,
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(capfd, command, root)
    assert "names no bucket" in error or "--root is empty" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_directory_that_holds_no_store_is_refused_and_the_one_in_it_named(
    command: tuple[str, ...], tmp_path: Path, content: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "project" / ".metaflow")
    store.save_model(content)
    error = error_of(capfd, command, str(tmp_path / "project"))
    assert f"nothing is stored at {tmp_path}/project" in error
    assert f"pass --root {store.root}" in error


def test_the_store_around_and_above_a_directory_is_named(
    tmp_path: Path, content: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "project" / ".metaflow")
    store.save_model(content)
    below = tmp_path / "project" / "src"
    below.mkdir()
    for root in (below, Path(store.root, "mf.models", "models")):
        assert f"pass --root {store.root}\n" in error_of(capfd, ("ls",), str(root))
    assert "pass the root of an existing store" in error_of(capfd, ("ls",), str(tmp_path))


@pytest.mark.parametrize("name", ["mf.models", "mf.checkpoints", "mf.huggingface_hub", "mf.artifacts"])
def test_any_part_of_a_store_makes_one(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).mkdir()
    assert main(["check", "--root", str(tmp_path)]) == 0
    assert "whole" in capfd.readouterr().out


def test_roots_on_s3(
    s3_server: SeaweedServer,
    tmp_path: Path,
    content: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = f"{s3_server.root}/{tmp_path.name}"
    key = open_store(root, client=s3_server.client).save_model(content)["key"]
    environment = {**os.environ, **s3_server.environment(), "METAFLOW_DATASTORE_SYSROOT_S3": root}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "metaflow_artifacts", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert key in run("show", "--root", f"{root}/", key).stdout
    done = run("check", "--root", f"{root}-mistyped")
    assert done.returncode == 1
    assert f"pass --root {root}\n" in done.stderr or not HAS_METAFLOW
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    for command in (*COMMANDS, ("delete", "*", "--execute")):
        assert f"nothing is stored at {root}-mistyped" in error_of(capfd, command, f"{root}-mistyped")
    done = run("ls", "--root", "s3://")
    assert done.returncode == 1
    assert "pass s3://bucket/prefix" in done.stderr
    assert f"such as {root}, which Metaflow is configured for" in done.stderr or not HAS_METAFLOW


@pytest.mark.skipif(sys.platform != "linux", reason="takes the rights of root away as Linux does")
def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(content: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    open_store(root).save_model(content, "m")
    command = [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", str(root)]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *command]
    root.chmod(0)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        root.chmod(0o700)
    assert done.stderr == f"metaflow-artifacts: cannot read {root}: permission denied; check owner and mode\n"
    assert done.returncode == 2
