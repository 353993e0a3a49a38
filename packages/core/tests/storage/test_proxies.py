"""A proxy between this machine and the clouds, as companies have it, and the certificates that are trusted there."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from faultlib.requests_seen import by_boto3

from metaflow_artifacts._storage import remote_requests
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.errors import StorageError, TransientStorageError
from metaflow_artifacts.testing.azurite import account_key
from metaflow_artifacts.testing.certificates import make_certificate
from metaflow_artifacts.testing.fake_gcs import anonymous
from metaflow_artifacts.testing.faults import FaultProxy
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

PAGE = b"<html><body>{blocked}</body></html>"


class Tunnels:
    """A proxy that makes tunnels. `heads` has the requests; `answers` come first, in the place of tunnels."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.answers: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = client.recv(1)
            if not piece:
                return
            head += piece
        self.heads.append(head.decode())
        if self.answers:
            client.sendall(self.answers.pop(0))
            client.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        server = socket.create_connection((host, int(port)))
        self._open.append(server)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._start(_pass_on, server, client)
        _pass_on(client, server)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def tunnels() -> Iterator[Tunnels]:
    tunnels = Tunnels()
    yield tunnels
    tunnels.close()


@pytest.fixture(params=["s3", "azure", "gs"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def tls(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultProxy]:
    """The cloud's server, behind TLS."""
    server = request.getfixturevalue({"s3": "s3_server", "azure": "azurite", "gs": "fake_gcs"}[kind])
    with FaultProxy(server.endpoint, certificate=make_certificate(tmp_path)) as proxy:
        yield proxy


@pytest.fixture
def open_cloud(
    kind: str, tls: FaultProxy, s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Storage]:
    """Opens a storage at the same root, configured by the environment."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", tls.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    place = f"artifacts/{uuid4().hex}"
    if kind == "s3":
        return lambda: S3Storage(f"s3://{place}")
    if kind == "gs":
        return lambda: GcsStorage(f"gs://{place}", anonymous, endpoint=tls.endpoint)
    account = f"{tls.endpoint}/devstoreaccount1"
    return lambda: AzureStorage(f"{account}/{place}", account_key, endpoint=account)


def works(storage: Storage) -> None:
    for content in (b"one", b"two", b"three"):
        storage.put("a", content)
        assert storage.get("a") == content
        assert storage.stat("a")
    assert [found.key for found in storage.list("")] == ["a"]


def test_everything_goes_through_the_proxy_with_its_password(
    open_cloud: Callable[[], Storage], tunnels: Tunnels, tls: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://us%40er:pa%2Fss@{tunnels.address}")
    works(open_cloud())
    assert len(tunnels.heads) == tls.connections
    for head in tunnels.heads:
        assert head.startswith(f"CONNECT {urlsplit(tls.endpoint).netloc} ")
        # us@er:pa/ss
        assert "Proxy-Authorization: Basic dXNAZXI6cGEvc3M=" in head


def test_what_no_proxy_names_is_asked_directly(
    kind: str, open_cloud: Callable[[], Storage], tunnels: Tunnels, tls: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{tunnels.address}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    works(open_cloud())
    assert not tunnels.heads
    if kind == "s3":
        assert not by_boto3([request for request in tls.requests if request.method == "PUT"][-1])


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_refusal_of_the_proxy_is_named(
    open_cloud: Callable[[], Storage],
    tunnels: Tunnels,
    tls: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(remote_requests, "_ATTEMPTS", 3)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@{tunnels.address}")
    answer = f"HTTP/1.1 {status} Sorry\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n\r\n"
    tunnels.answers = [answer.encode() + PAGE] * 3
    with pytest.raises(
        StorageError, match=rf"the proxy refused to connect to https://.* {status} Sorry.*HTTPS_PROXY"
    ) as caught:
        open_cloud().put("a", b"content")
    assert "secret" not in str(caught.value)
    # Only a gateway that does not answer in time may do so later.
    assert isinstance(caught.value, TransientStorageError) is (status == 502)
    assert len(tunnels.heads) == (3 if status == 502 else 1)
    assert not tls.requests


def test_a_proxy_that_cuts_is_asked_again(
    open_cloud: Callable[[], Storage], tunnels: Tunnels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{tunnels.address}")
    tunnels.answers = [b"", b"HTTP/1.1 200 OK\r\n\r\n"]
    works(open_cloud())


@pytest.mark.parametrize("form", ["socks5h://user:secret@{}", "http://user:secret@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    open_cloud: Callable[[], Storage], tunnels: Tunnels, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(remote_requests, "_ATTEMPTS", 2)
    monkeypatch.setenv("HTTPS_PROXY", form.format(tunnels.address))
    with pytest.raises(StorageError, match=r"proxy .*; check HTTPS_PROXY") as caught:
        open_cloud().get("a")
    assert "secret" not in str(caught.value)
    assert not tunnels.heads


def test_a_file_of_certificates_that_is_missing_is_named(
    open_cloud: Callable[[], Storage], tls: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with pytest.raises(StorageError, match="_CA_BUNDLE") as caught:
        open_cloud().get("a")
    assert not isinstance(caught.value, TransientStorageError)
    (tmp_path / "missing.pem").write_bytes(b"no certificate")
    with pytest.raises(StorageError, match="is not trusted") as caught:
        open_cloud().get("a")
    assert not isinstance(caught.value, TransientStorageError)
    assert not tls.requests
