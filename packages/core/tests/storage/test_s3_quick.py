"""Reads in S3 without boto3, and by boto3 wherever anything is out of the ordinary."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faultlib.requests_seen import by_boto3
from urllib3 import Timeout

from metaflow_artifacts._storage import open_storage, remote_requests
from metaflow_artifacts._storage.s3 import S3Storage, client_config
from metaflow_artifacts._storage.s3_wire import Signer
from metaflow_artifacts.errors import ArtifactNotFound, StorageError, TransientStorageError
from metaflow_artifacts.testing.certificates import make_certificate
from metaflow_artifacts.testing.faults import Answer, Cut, Fault, FaultProxy, Lose, Refuse, Stall, once
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CONTENT = bytes(range(256)) * 20
NAMES = ["a", "dir/b", "c%20d", "e%C3%A4~", "f.0.name-1_2.3"]


def warm(storage: S3Storage) -> None:
    """Read and ask as often as it takes until boto3 is no longer asked."""
    storage.put("a", CONTENT)
    for _ in range(10):
        assert storage.get("a", 0, 10) == CONTENT[:10]
        assert storage.stat("a")


def test_many_ranges_are_read_without_boto3(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    for name in NAMES:
        storage.put(name, CONTENT + name.encode())
    proxy.requests.clear()
    connections = proxy.connections
    for name in NAMES:
        whole = CONTENT + name.encode()
        for start, length in ((0, 4096), (5, 1), (len(whole) - 3, 100), (0, 1 << 28)):
            assert storage.get(name, start, length) == whole[start : start + length]
    assert len(proxy.requests) == 4 * len(NAMES)
    assert not any(map(by_boto3, proxy.requests))
    assert proxy.connections == connections


def test_whether_objects_exist_is_asked_without_boto3(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    for name in NAMES:
        storage.put(name, CONTENT + name.encode())
    found = {name: S3Storage.stat_before_write(S3Storage(storage.root, storage._connect), name) for name in NAMES}
    proxy.requests.clear()
    connections = proxy.connections
    for name in NAMES:
        assert storage.stat_before_write(name) == found[name]
        assert storage.stat_before_write(f"{name}/missing") is None
    assert len(proxy.requests) == 2 * len(NAMES)
    assert not any(map(by_boto3, proxy.requests))
    assert proxy.connections == connections


@pytest.mark.parametrize("method", ["get", "stat_before_write"])
def test_boto3_makes_the_first_request(storage: S3Storage, direct: S3Storage, proxy: FaultProxy, method: str) -> None:
    direct.put("a", CONTENT)
    for _ in range(3):
        assert getattr(storage, method)("a")
    assert [by_boto3(request) for request in proxy.requests] == [True, False, False]


def test_large_content_comes_as_it_is(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    content = os.urandom(5 << 20)
    storage.put("large", content)
    proxy.requests.clear()
    buffer = memoryview(bytearray(700_001))
    with storage.open("large") as reader:
        for begin in range(0, len(content), len(buffer)):
            count = reader.readinto(buffer)
            assert buffer[:count] == content[begin : begin + len(buffer)]
        assert reader.readinto(buffer) == 0
    assert storage.get("large") == content
    # One that is not read to its end, whose connection is not used again.
    with storage.open("large") as reader:
        reader.readinto(buffer[:10])
    assert storage.get("large", 1 << 20) == content[1 << 20 :]
    assert not any(map(by_boto3, proxy.requests))


FAULTS = [
    Answer(503, "SlowDown"),
    Answer(500, "InternalError"),
    Answer(404, "NoSuchKey"),
    Answer(403, "AccessDenied"),
    Answer(301, "PermanentRedirect"),
    Answer(200, "", body="all of the object"),
    Answer(206, "", body="the wrong range", headers=(("Content-Range", "bytes 4-18/100"),)),
    Answer(206, "", body="x" * 101, headers=(("Content-Range", "bytes 3-103/200"),)),
    Answer(206, "", body="no range"),
    Answer(206, "", body="encoded", headers=(("Content-Range", "bytes 3-9/100"), ("Content-Encoding", "gzip"))),
    Lose(),
    Refuse(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_boto3_asks_again_after_any_other_answer(storage: S3Storage, proxy: FaultProxy, fault: Fault) -> None:
    warm(storage)
    proxy.requests.clear()
    proxy.plan = once(fault, "GET")
    assert storage.get("a", 3, 100) == CONTENT[3:103]
    assert [by_boto3(request) for request in proxy.requests] == [False, True]
    assert storage.get("a", 3, 100) == CONTENT[3:103]
    assert not by_boto3(proxy.requests[-1])


ODD_HEADS = [
    Answer(503, "SlowDown"),
    Answer(403, "AccessDenied"),
    Answer(200, "", headers=(("Last-Modified", "yesterday"),)),
    Answer(200, "", headers=(("Last-Modified", "Thu, 26 Nov 2026 12:00:00 -0000"),)),
    Answer(200, ""),
    Lose(),
]


@pytest.mark.parametrize("fault", ODD_HEADS, ids=str)
def test_boto3_asks_again_whether_an_object_exists(storage: S3Storage, proxy: FaultProxy, fault: Fault) -> None:
    warm(storage)
    proxy.requests.clear()
    proxy.plan = once(fault, "HEAD")
    info = storage.stat("a")
    assert info is not None
    assert info.size == len(CONTENT)
    assert [by_boto3(request) for request in proxy.requests] == [False, True]


def test_errors_are_those_of_boto3(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    with pytest.raises(ArtifactNotFound):
        storage.get("missing", 0, 10)
    assert storage.get("a", len(CONTENT) + 5, 10) == b""
    proxy.plan = lambda request: Answer(403, "AccessDenied")
    with pytest.raises(StorageError, match="access denied"):
        storage.get("a", 0, 10)


def test_a_server_that_stalls_is_an_error(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(storage)
    proxy.requests.clear()
    proxy.plan = lambda request: Stall()
    # Only now: a busy server may be slower. And as if each attempt had taken as long as it may by default.
    assert storage._requests._client is not None
    pool = storage._requests._client[1]._endpoint.http_session._manager.connection_from_url(proxy.endpoint)
    monkeypatch.setattr(pool, "timeout", Timeout(connect=5, read=0.3))
    now = time.monotonic()
    monkeypatch.setattr(remote_requests, "time", SimpleNamespace(monotonic=lambda: now + 18.0 * len(proxy.requests)))
    with pytest.raises(TransientStorageError, match=r"no answer from http://.* in time"):
        storage.get("a", 0, 10)
    assert len(proxy.requests) == 3
    assert not any(map(by_boto3, proxy.requests))


@pytest.mark.parametrize("fault", [Cut(0), Cut(7), Cut(7, reset=False)], ids=str)
def test_what_breaks_off_is_read_again(storage: S3Storage, proxy: FaultProxy, fault: Fault) -> None:
    warm(storage)
    proxy.plan = once(fault, "GET")
    assert storage.get("a", 3, 100) == CONTENT[3:103]
    proxy.requests.clear()
    proxy.plan = once(fault, "GET")
    buffer = memoryview(bytearray(100))
    with storage.open("a", 3, 100) as reader:
        assert reader.readinto(buffer) == 100
    assert buffer == CONTENT[3:103]
    assert not any(map(by_boto3, proxy.requests))
    rest = fault.after if isinstance(fault, Cut) else 0
    assert [request.headers["range"] for request in proxy.requests] == ["bytes=3-102", f"bytes={3 + rest}-102"]
    assert "if-match" in proxy.requests[1].headers


@pytest.mark.parametrize("fault", [Answer(500, "InternalError"), Refuse(), Cut(0), Cut(7)], ids=str)
def test_where_no_answer_can_be_used_only_boto3_asks(storage: S3Storage, proxy: FaultProxy, fault: Fault) -> None:
    warm(storage)
    proxy.plan = lambda request: None if by_boto3(request) else fault
    for _ in range(8):
        assert storage.get("a", 0, 10) == CONTENT[:10]
    proxy.requests.clear()
    assert storage.get("a", 0, 10) == CONTENT[:10]
    assert len(proxy.requests) == 1


def _add_header(request: Any, **_: Any) -> None:
    request.headers["x-mine"] = "1"


def with_header(client: Any) -> None:
    client.meta.events.register("before-sign.s3.GetObject", _add_header)


def with_stub(client: Any) -> None:
    """Answers in place of the network, as moto does."""
    from botocore.awsrequest import AWSResponse

    def answer(request: Any, **_: Any) -> Any:
        headers: Any = {"Content-Length": "10", "Content-Range": "bytes 0-9/10"}
        return AWSResponse(request.url, 206, headers, BytesIO(CONTENT[:10]))

    client.meta.events.register("before-send.s3.GetObject", answer)


@pytest.mark.parametrize("change", [with_header, with_stub])
def test_a_client_that_somebody_changed_makes_its_own_requests(
    root: str, s3_server: SeaweedServer, proxy: FaultProxy, change: Callable[[Any], None]
) -> None:
    calls: list[Any] = []

    def client() -> Any:
        made = s3_server.client(endpoint_url=proxy.endpoint)
        change(made)
        made.meta.events.register("before-call.s3.GetObject", lambda **_: calls.append(1))
        return made

    storage = open_storage(root, client=client)
    storage.put("a", CONTENT)
    for _ in range(15):
        storage.get("a", 0, 10)
    assert len(calls) == 15


def test_a_client_without_credentials_makes_its_own_requests(
    root: str, s3_server: SeaweedServer, proxy: FaultProxy
) -> None:
    from botocore import UNSIGNED

    config = client_config(signature_version=UNSIGNED)
    storage = open_storage(root, client=lambda: s3_server.client(endpoint_url=proxy.endpoint, config=config))
    for _ in range(12):
        with pytest.raises(StorageError, match="access denied"):
            storage.get("a", 0, 10)
    assert len(proxy.requests) == 12


def test_certificates_are_verified_as_boto3_is_told(root: str, s3_server: SeaweedServer, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with FaultProxy(s3_server.endpoint, certificate=(certificate, key)) as proxy:
        storage = S3Storage(
            root, functools.partial(s3_server.client, endpoint_url=proxy.endpoint, verify=str(certificate))
        )
        warm(storage)
        assert not by_boto3(proxy.requests[-1])
        # Without the certificate, it is not trusted.
        proxy.requests.clear()
        unsure = S3Storage(root, functools.partial(s3_server.client, endpoint_url=proxy.endpoint), patience=0.1)
        for _ in range(10):
            with pytest.raises(StorageError, match="certificate"):
                unsure.get("a", 0, 10)
        assert unsure._quick_requests is not None
        assert unsure._quick_requests._ways["GetObject"]._expected is not None
        assert not proxy.requests


@pytest.mark.parametrize("token", [None, "a/token=="])
def test_requests_are_signed_as_botocore_signs_them(token: str | None) -> None:
    from botocore import auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    credentials = Credentials("access", "secret", token)
    path = "/bucket/a%20dir/c%C3%A4~.0"
    signer = Signer(SimpleNamespace(_credentials=credentials), "host:8333", "eu-west-1")
    for _ in range(5):
        made = signer.headers("GET", path, {"range": "bytes=0-4095"})
        request = AWSRequest("GET", f"http://host:8333{path}", headers={"range": "bytes=0-4095"})
        request.context["payload_signing_enabled"] = True
        auth.S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(request)
        if made["x-amz-date"] == request.headers["X-Amz-Date"]:
            break
    # Both were signed in one second.
    assert made["x-amz-date"] == request.headers["X-Amz-Date"]
    assert made["authorization"] == request.headers["Authorization"]
