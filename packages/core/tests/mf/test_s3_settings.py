"""The command line reaches S3 as Metaflow is configured, and imports Metaflow only where that needs it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts._cli.s3_settings import _OF_CLIENTS, plain_client
from metaflow_artifacts._mf import datastore
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

URL = "http://127.0.0.1:9"
LISTED = """
import sys
from metaflow_artifacts._cli import main
code = main(sys.argv[1:])
print("metaflow" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("METAFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path / "home"))
    (tmp_path / "project" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "below")


def configure(path: Path, **settings: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({f"METAFLOW_{name}": value for name, value in settings.items()}))


def endpoint() -> str:
    client = plain_client()
    assert client is not None
    return str(client().meta.endpoint_url)


def test_the_endpoint_is_that_of_metaflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "amazonaws.com" in endpoint()
    home, project = tmp_path / "home", tmp_path / "project" / ".metaflow"
    configure(home / "config.json", S3_ENDPOINT_URL=f"{URL}1", DATASTORE_SYSROOT_S3="s3://bucket")
    assert endpoint() == f"{URL}1"
    configure(home / "config_other.json", S3_ENDPOINT_URL=f"{URL}2")
    monkeypatch.setenv("METAFLOW_PROFILE", "other")
    assert endpoint() == f"{URL}2"
    configure(project / "config.json", S3_ENDPOINT_URL=f"{URL}3")
    assert endpoint() == f"{URL}3"
    monkeypatch.setenv("METAFLOW_S3_ENDPOINT_URL", f"{URL}4")
    assert endpoint() == f"{URL}4"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_SERVER_SIDE_ENCRYPTION", "aws:kms"),
        ("S3_VERIFY_CERTIFICATE", "ca.pem"),
        ("DATATOOLS_CLIENT_PARAMS", "{}"),
        ("DEFAULT_AWS_CLIENT_PROVIDER", "ours"),
        ("ARTIFACTS_CACHE", "/cache"),
    ],
)
def test_other_settings_of_clients_are_left_to_metaflow(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (tmp_path / "home" / "config.json", tmp_path / "project" / ".metaflow" / "config.json"):
        configure(file, **{name: value})
        assert plain_client() is None
        file.unlink()
        assert plain_client() is not None
    monkeypatch.setenv(f"METAFLOW_{name}", value)
    assert plain_client() is None


def test_a_configuration_that_metaflow_refuses_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path / "home" / "config.json")
    monkeypatch.setenv("METAFLOW_PROFILE", "missing")
    assert plain_client() is None
    monkeypatch.delenv("METAFLOW_PROFILE")
    assert plain_client() is not None
    for text in ("no JSON", "[]"):
        (tmp_path / "home" / "config.json").write_text(text)
        assert plain_client() is None


def test_an_extension_may_change_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more" / "metaflow_extensions" / "other").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    monkeypatch.delitem(sys.modules, "metaflow_extensions", raising=False)
    assert plain_client() is None


def test_all_settings_that_make_a_client_are_known() -> None:
    from metaflow.plugins.aws import aws_client

    names = set(re.findall(r"metaflow_config\.([A-Z0-9_]+)", inspect.getsource(datastore.s3_client)))
    for node in ast.walk(ast.parse(inspect.getsource(aws_client))):
        if isinstance(node, ast.ImportFrom) and node.module == "metaflow.metaflow_config":
            names |= {alias.name for alias in node.names}
    assert {"S3_CLIENT_RETRY_CONFIG", "DATATOOLS_SESSION_VARS"} <= names
    assert [name for name in names if not f"METAFLOW_{name}".startswith(_OF_CLIENTS)] == []


@pytest.mark.parametrize("imported", [False, True])
def test_a_store_in_s3_is_listed(imported: bool, tmp_path: Path, s3_server: SeaweedServer) -> None:
    root = f"{s3_server.root}/{tmp_path.name}"
    (tmp_path / "content").write_text("content")
    key = open_store(root, client=s3_server.client).save_model(tmp_path / "content")["key"]
    environment = {**os.environ, **s3_server.environment()}
    # The endpoint is Metaflow's, not boto3's.
    configure(tmp_path / "home" / "config.json", S3_ENDPOINT_URL=environment.pop("AWS_ENDPOINT_URL_S3"))
    environment.pop("METAFLOW_S3_ENDPOINT_URL", None)
    if imported:
        environment["METAFLOW_S3_CLIENT_RETRY_CONFIG"] = '{"max_attempts": 2}'
    command = [sys.executable, "-c", LISTED, "ls", "--root", root]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{imported}\n")
    assert key in done.stdout


def test_a_configured_store_is_that_of_metaflow(tmp_path: Path) -> None:
    configure(tmp_path / "home" / "config.json", S3_ENDPOINT_URL=URL, S3_SERVER_SIDE_ENCRYPTION="aws:kms")
    code = """
from metaflow_artifacts import configured_store
from metaflow_artifacts._mf.datastore import store_at
store = configured_store("s3://bucket/prefix/")
print(store.root, store.storage.server, store is store_at("s3", "s3://bucket/prefix"))
print(configured_store("directory").root)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["s3://bucket/prefix", URL, "True", os.path.abspath("directory")]
