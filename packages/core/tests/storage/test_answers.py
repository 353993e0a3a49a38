"""Answers with headers that the SDKs cannot read: an error that names the key, as for any wrong answer."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.config import Config

from metaflow_artifacts import StorageError
from metaflow_artifacts._storage import Storage, open_storage
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts.testing.azurite import account_key
from metaflow_artifacts.testing.fake_gcs import anonymous


class _Odd(BaseHTTPRequestHandler):
    status = b"200 OK"
    header = b""
    content = b"hello"

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 " + self.status + b"\r\n" + self.header + b"\r\n\r\n" + self.content)
        self.close_connection = True

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _storage(kind: str, endpoint: str) -> Storage:
    if kind == "s3":
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        config = Config(retries={"max_attempts": 0})
        client = functools.partial(boto3.client, "s3", endpoint_url=endpoint, config=config, **keys)
        return open_storage("s3://bucket/p", client=client, patience=0)
    if kind == "azure":
        endpoint = f"{endpoint}/account"
        return AzureStorage(f"{endpoint}/bucket/p", account_key, endpoint=endpoint, patience=0)
    return GcsStorage("gs://bucket/p", anonymous, endpoint=endpoint, patience=0)


@pytest.mark.parametrize(
    ("method", "kind", "header"),
    [
        *(("get", kind, f"Content-Length: {text}") for kind in ("s3", "azure", "gcs") for text in ("abc", "9" * 20)),
        *(("stat", kind, "Last-Modified: yesterday") for kind in ("s3", "azure")),
    ],
)
def test_a_header_that_cannot_be_read(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, header: str
) -> None:
    monkeypatch.setattr(_Odd, "header", header.encode())
    storage = _storage(kind, f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(StorageError, match=r"/bucket/p/key: .*is not the service, or a proxy has changed its answer"):
        getattr(storage, method)("key")


@pytest.mark.parametrize("kind", ["s3", "azure"])
@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0" encoding="latin9999"?><ListBucketResult/>',
        b"<ListBucketResult><Contents><Key>p/a</Key><Size>x</Size><LastModified>2024-01-01T00:00:00Z</LastModified>"
        b"</Contents></ListBucketResult>",
    ],
)
def test_a_listing_that_cannot_be_read(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, kind: str, content: bytes
) -> None:
    monkeypatch.setattr(_Odd, "header", b"Content-Type: application/xml\r\nContent-Length: %d" % len(content))
    monkeypatch.setattr(_Odd, "content", content)
    storage = _storage(kind, f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(StorageError, match=r"cannot list \S+/bucket/p/.*: .*"):
        list(storage.list(""))


@pytest.mark.parametrize("location", [b"", b"Location: https://example.test/\r\n"], ids=["nowhere", "https"])
@pytest.mark.parametrize("status", [b"301 Moved Permanently", b"302 Found", b"307 Temporary Redirect", b"308 Redirect"])
def test_s3_is_behind_a_server_that_redirects(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, status: bytes, location: bytes
) -> None:
    monkeypatch.setattr(_Odd, "status", status)
    monkeypatch.setattr(_Odd, "header", location + b"Connection: close\r\nContent-Length: 0")
    monkeypatch.setattr(_Odd, "content", b"")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    storage = _storage("s3", endpoint)
    to = "'https://example.test/'" if location else "another address"
    expected = f"what answers at {endpoint} redirects to {to}; configure the address of the service itself"
    actions: list[Callable[[], object]] = [
        lambda: storage.get("key"),
        lambda: storage.stat("key"),
        lambda: storage.put("key", b"content"),
        lambda: list(storage.list("")),
    ]
    for action in actions:
        with pytest.raises(StorageError, match=re.escape(expected)):
            action()
