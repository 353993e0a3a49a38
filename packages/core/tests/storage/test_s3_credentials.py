"""Credentials of boto3's settings that cannot be used are one error, and those that expire are renewed at once."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from faultlib.requests_seen import by_boto3

from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.errors import StorageError, TransientStorageError
from metaflow_artifacts.testing.faults import FaultProxy
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

ROLE = "role_arn=arn:aws:iam::123456789012:role/name"


@pytest.fixture
def config(tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """boto3's configuration file, and nothing else that configures it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": str(tmp_path / "config"), "SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    settings |= {"DEFAULT_REGION": "us-east-1", "ENDPOINT_URL_S3": proxy.endpoint, "EC2_METADATA_DISABLED": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return tmp_path / "config"


def process(config: Path, server: SeaweedServer, lifetime: float) -> None:
    """Configures a program that gives the server's credentials, and writes an x for each time it runs."""
    expires = datetime.now(timezone.utc) + timedelta(seconds=lifetime)
    keys = {"AccessKeyId": server.access_key, "SecretAccessKey": server.secret_key, "Expiration": expires.isoformat()}
    program = config.with_name("program.py")
    answer = json.dumps({"Version": 1, **keys})
    program.write_text(f"open({str(config.with_name('runs'))!r}, 'a').write('x')\nprint({answer!r})")
    config.write_text(f"[default]\ncredential_process={sys.executable} {program}\n")


def test_credentials_that_expire_soon_are_renewed_for_each_request(
    config: Path, root: str, s3_server: SeaweedServer, proxy: FaultProxy
) -> None:
    process(config, s3_server, 300)
    storage = S3Storage(root)
    for _ in range(3):
        storage.put("a", b"content")
        assert storage.get("a") == b"content"
    assert [by_boto3(request) for request in proxy.requests] == [True, True, False, False, False, False]
    assert len(config.with_name("runs").read_text()) == 1 + len(proxy.requests)


def test_credentials_that_have_expired_when_they_come_are_an_error(
    config: Path, root: str, s3_server: SeaweedServer, proxy: FaultProxy
) -> None:
    process(config, s3_server, -5)
    with pytest.raises(StorageError, match=r"cannot be used .*still expired.*; check them"):
        S3Storage(root).put("a", b"content")
    assert not proxy.requests


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("credential_process=/no/such/program", "/no/such/program"),
        ("credential_process=echo 1", "'int' object"),
        (f"{ROLE}\nweb_identity_token_file=/no/such/token", "/no/such/token"),
    ],
    ids=["program", "answer", "token"],
)
def test_what_gives_no_credentials_is_an_error(
    config: Path, root: str, proxy: FaultProxy, lines: str, named: str
) -> None:
    config.write_text(f"[default]\n{lines}\n")
    with pytest.raises(StorageError, match=rf"^cannot write {root}/a: .*cannot be used \(.*{named}.*; check them"):
        S3Storage(root).put("a", b"content")
    assert not proxy.requests


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_newline_behind_a_key_is_named_and_the_key_is_not(
    config: Path, root: str, s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config.write_text("")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv(name, "secret\n")
    with pytest.raises(StorageError, match="such as a newline; check AWS_ACCESS_KEY_ID") as caught:
        S3Storage(root).put("a", b"content")
    assert not isinstance(caught.value, TransientStorageError)
    assert "secret" not in str(caught.value)
