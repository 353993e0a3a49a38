"""Which texts name a root, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.errors import InvalidInput, StorageError

ENDPOINT = "METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT"
NO_ROOTS = [
    "s3:",
    "s3:/",
    "s3:/bucket/x",
    "S3:/bucket/x",
    "s3://",
    "s3:///",
    "s3:///x",
    "s3://b/../a",
    "s3://b/a/./c",
    "s3://b/a\nc",
    "gs:/b/a",
    "gs://",
    "gs:///a",
    "gs://b/../a",
    "https:/b",
    "https://",
    "https://a.blob.core.windows.net",
    "https://a.blob.core.windows.net/",
    "https://a.blob.core.windows.net/c/../d",
    "https://a.blob.core.windows.net/c?sig=x",
    "https://me@a.blob.core.windows.net/c",
    "https://evil.example\\.blob.core.windows.net/c",
    "https://evil.example%2f.blob.core.windows.net/c",
    "https://evil.example\u2100.blob.core.windows.net/c",
    "https://[::1].blob.core.windows.net/c",
    "https://a.blob.core.windows.net/../c",
    "https://a.blob.core.windows.net:0x50/c",
    "hdfs://b/a",
    "",
    "a\0b",
]


@pytest.mark.parametrize("root", NO_ROOTS, ids=ascii)
def test_roots_that_are_refused(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="datastore root") as caught:
        open_storage(root)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "root",
    [
        "https://a.blob.core.windows.net/c/p?sv=1&sig=SECRET",
        "https://a.blob.core.windows.net/c#sig=SECRET",
        "https://me:SECRET@a.blob.core.windows.net/c",
        "HTTPS://a/c?sig=SECRET",
        "wasbs://c@a.blob.core.windows.net/p?sig=SECRET",
        "https://me:SECRET@SECRET@a.blob.core.windows.net/c",
        "https://me:SECRET/SECRET@a.blob.core.windows.net/c",
        "https://me:SECRET#SECRET@a.blob.core.windows.net/c",
        "s3://SECRET:SECRET@bucket/p",
        "s3://bucket/p?X-Amz-Algorithm=a&X-Amz-Signature=SECRET",
        "s3://bucket/p?AWSAccessKeyId=a&Signature=SECRET",
        "gs://me:SECRET@bucket/p",
        "s3:/me:SECRET@bucket/p",
        "gs://bucket/p?X-Goog-Signature=SECRET",
    ],
)
def test_a_secret_in_a_root_is_not_shown(root: str) -> None:
    with pytest.raises(InvalidInput, match=r"datastore root '.*…") as caught:
        open_storage(root)
    assert "SECRET" not in str(caught.value)


def test_a_url_that_pathlib_has_changed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="it has the form s3://bucket/prefix"):
        open_storage(Path("s3://bucket/x"))


@pytest.mark.parametrize(
    ("root", "taken"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a b/c/", "s3://bucket/a b/c"),
        ("s3://bucket/a//c", "s3://bucket/a//c"),
        ("s3://bucket/a//c//", "s3://bucket/a//c"),
        ("s3://bucket//a", "s3://bucket/a"),
        ("s3://bucket/a?b=c&d", "s3://bucket/a?b=c&d"),
        ("s3://bucket/me@here", "s3://bucket/me@here"),
        ("s3://bucket/a//me@here", "s3://bucket/a//me@here"),
        ("s3://bucket/a&sig=c", "s3://bucket/a&sig=c"),
    ],
)
def test_s3_roots_have_the_prefix_that_metaflow_uses(root: str, taken: str) -> None:
    """metaflow.S3 drops slashes at both ends of a prefix, and keeps those within."""
    storage = open_storage(root)
    assert storage.root == taken
    assert storage.url("k") == f"{taken}/k"


@pytest.mark.parametrize("root", ["relative/x", "~/x", "/a/../b/", ".", "./s3:/x", "a:b"])
def test_local_roots_are_absolute(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = open_storage(root)
    assert os.path.isabs(storage.root)
    assert storage.root == os.path.abspath(os.path.expanduser(root))
    # The working directory may change later; the location of the store may not.
    assert open_storage(Path(storage.root)).root == storage.root


@pytest.mark.parametrize(
    ("root", "taken"),
    [
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/a b//c/", "gs://bucket/a b//c"),
        ("https://a.blob.core.windows.net/c", "https://a.blob.core.windows.net/c"),
        ("https://a.blob.core.windows.net/c/p/q/", "https://a.blob.core.windows.net/c/p/q"),
        ("https://a.blob.core.windows.net:443/c/p", "https://a.blob.core.windows.net/c/p"),
        ("https://a.z12.blob.storage.azure.net/c/p", "https://a.z12.blob.storage.azure.net/c/p"),
        ("https://127.0.0.1:10000/account/c/p", "https://127.0.0.1:10000/account/c/p"),
    ],
)
def test_roots_in_other_clouds(root: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "127.0.0.1" in root:
        monkeypatch.setenv(ENDPOINT, "https://127.0.0.1:10000/account/")
    storage = open_storage(root)
    assert storage.root == taken
    assert storage.url("k") == f"{taken}/k"


@pytest.mark.parametrize(
    ("endpoint", "root"),
    [
        ("", "https://evil.example/c/p"),
        ("", "http://a.blob.core.windows.net/c/p"),
        ("", "https://a.blob.core.windows.net:8443/c/p"),
        ("", "https://a.blob.core.windows.net.evil.example/c/p"),
        ("https://a.blob.core.windows.net", "https://evil.example/c/p"),
        ("https://a.blob.core.windows.net", "https://b.blob.core.chinacloudapi.cn/c/p"),
        ("https://a.blob.core.windows.net", "https://a.blob.core.windows.net.evil.example/c/p"),
        ("https://127.0.0.1:10000/account", "https://127.0.0.1:10001/account/c/p"),
        ("https://127.0.0.1:10000/account", "https://127.0.0.1:10000/account2/c/p"),
        ("https://127.0.0.1:10000/account", "https://a.blob.core.windows.net/c/p"),
    ],
)
def test_an_address_that_no_credentials_are_meant_for_is_refused(
    endpoint: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, endpoint)
    with pytest.raises(StorageError, match=f"no credentials are sent to another; set {ENDPOINT}") as caught:
        open_storage(root)
    assert root in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_account_in_the_configured_cloud_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "https://a.blob.core.windows.net/")
    assert open_storage("https://b.blob.core.windows.net/c/p").root == "https://b.blob.core.windows.net/c/p"


def test_a_relative_root_in_a_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidInput, match=r"datastore root 'store': .*working directory, which is gone"):
        open_storage("store")
    assert open_storage(tmp_path).root == str(tmp_path)
