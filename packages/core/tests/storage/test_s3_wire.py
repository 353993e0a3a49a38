"""Reads in S3 without boto3, where the client, the bucket or the server is of an unusual kind."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from faultlib.requests_seen import by_boto3
from urllib3 import HTTPConnectionPool, Timeout

from metaflow_artifacts._storage.s3 import S3Storage, client_config
from metaflow_artifacts._storage.s3_wire import learn
from metaflow_artifacts.errors import StorageError, TransientStorageError
from metaflow_artifacts.testing.faults import Answer, FaultProxy, Request, once
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CONTENT = b"0123456789"
DATE = "Thu, 26 Nov 2026 12:00:00 GMT"


def warm(storage: S3Storage) -> None:
    """Read and ask as often as it takes until boto3 is no longer asked."""
    storage.put("a", CONTENT)
    for _ in range(4):
        assert storage.get("a") == CONTENT
        assert storage.stat("a")


@pytest.fixture
def client(s3_server: SeaweedServer, proxy: FaultProxy) -> Any:
    return s3_server.client(endpoint_url=proxy.endpoint)


@contextmanager
def other_bucket(client: Any) -> Iterator[str]:
    name = f"other-{threading.get_ident()}"
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        client.delete_object(Bucket=name, Key="a")
        client.delete_bucket(Bucket=name)


def test_storages_of_two_buckets_share_a_client(s3_server: SeaweedServer, proxy: FaultProxy, client: Any) -> None:
    with other_bucket(client) as name:
        ours, theirs = S3Storage(s3_server.root, lambda: client), S3Storage(f"s3://{name}", lambda: client)
        ours.put("a", CONTENT)
        theirs.put("a", b"theirs")
        for _ in range(8):
            assert ours.get("a") == CONTENT
            assert theirs.get("a") == b"theirs"
        assert not by_boto3(proxy.requests[-2])
        assert not by_boto3(proxy.requests[-1])
        ours.delete(["a"])


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_a_request_that_was_interrupted_shows_no_other_bucket(
    s3_server: SeaweedServer, client: Any, operation: str
) -> None:
    def interrupt(**_: Any) -> None:
        client.meta.events.unregister(f"before-call.s3.{operation}", interrupt)
        raise KeyboardInterrupt

    with other_bucket(client) as name:
        ours, theirs = S3Storage(s3_server.root, lambda: client), S3Storage(f"s3://{name}", lambda: client)
        if operation == "GetObject":
            ours.put("a", CONTENT)
            theirs.put("a", b"theirs")
        client.meta.events.register(f"before-call.s3.{operation}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ours.put("a", CONTENT) if operation == "PutObject" else ours.get("a")
        theirs.put("a", b"theirs")
        for _ in range(4):
            ours.put("a", CONTENT)
            assert theirs.get("a") == b"theirs"
            assert ours.get("a") == CONTENT
        ours.delete(["a"])


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_the_request_after_one_that_was_interrupted_shows_the_way(
    storage: S3Storage, client: Any, proxy: FaultProxy, operation: str
) -> None:
    def interrupt(**_: Any) -> None:
        client.meta.events.unregister(f"before-call.s3.{operation}", interrupt)
        raise KeyboardInterrupt

    storage = S3Storage(storage.root, lambda: client)
    client.put_object(Bucket=storage.bucket, Key=storage._prefix + "b", Body=CONTENT)
    client.meta.events.register(f"before-call.s3.{operation}", interrupt)
    call = functools.partial(storage.put, data=CONTENT) if operation == "PutObject" else storage.get
    with pytest.raises(KeyboardInterrupt):
        call("a")
    for _ in range(2):
        call("b")
    assert not by_boto3(proxy.requests[-1])


def test_another_thread_asks_for_an_object_whose_name_ends_alike(
    s3_server: SeaweedServer, proxy: FaultProxy, client: Any
) -> None:
    storage = S3Storage(s3_server.root, lambda: client)
    storage.put("a", CONTENT)
    storage.put("other/a", b"other")

    def ask(request: Request) -> None:
        # In the thread of the proxy, within the request of the storage.
        if request.method == "GET" and not request.path.endswith("/other/a"):
            client.get_object(Bucket=s3_server.bucket, Key="other/a")

    proxy.plan = ask
    for _ in range(6):
        assert storage.get("a") == CONTENT
    assert not by_boto3(proxy.requests[-2])
    storage.delete(["a", "other/a"])


CHUNKED = (("Transfer-Encoding", "chunked"), ("Content-Type", "application/xml"))


def test_a_missing_object_is_asked_for_once_where_the_answer_is_chunked(storage: S3Storage, proxy: FaultProxy) -> None:
    """As S3 of AWS answers."""
    warm(storage)
    body = "<Error><Code>NoSuchKey</Code></Error>"
    chunks = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    proxy.plan = lambda request: Answer(404, "NoSuchKey", body=chunks, headers=CHUNKED)
    proxy.requests.clear()
    connections = proxy.connections
    for _ in range(7):
        assert storage.stat_before_write("missing") is None
    assert [by_boto3(request) for request in proxy.requests] == [False] * 7
    assert proxy.connections == connections
    proxy.plan = lambda request: None
    for _ in range(7):
        assert storage.get("a") == CONTENT
    assert not any(map(by_boto3, proxy.requests))


def test_where_no_time_can_be_read_only_boto3_asks(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    proxy.plan = lambda request: Answer(200, "", headers=(("Last-Modified", "2026-11-26T12:00:00.000Z"),))
    for _ in range(6):
        assert storage.stat("a")
    proxy.requests.clear()
    assert storage.stat("a")
    assert len(proxy.requests) == 1


ODD_ANSWERS = [
    (Answer(304, "", body="", headers=(("Content-Length", "10"),)), "answered 304"),
    (Answer(204, "", body="", headers=(("Content-Length", "10"),)), "bytes expected"),
    (Answer(200, "", body="abc", headers=(("Content-Length", "9" * 30),)), "OverflowError"),
    (Answer(200, "", body="abc", headers=(("Content-Length", "3"), ("Content-Length", "2"))), "multiple unmatching"),
]


@pytest.mark.parametrize(("answer", "message"), ODD_ANSWERS, ids=str)
def test_odd_answers_are_errors_of_boto3(storage: S3Storage, proxy: FaultProxy, answer: Answer, message: str) -> None:
    warm(storage)
    storage._requests.patience = 0.0
    proxy.plan = lambda request: answer
    with pytest.raises(StorageError, match=message):
        storage.get("a")


def test_a_preliminary_answer_is_not_the_answer(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    proxy.plan = once(Answer(100, "", body=""), "HEAD")
    proxy.requests.clear()
    connections = proxy.connections
    assert storage.stat("a")
    assert [by_boto3(request) for request in proxy.requests] == [False, True]
    # What comes later over the connection would be taken for another answer.
    assert proxy.connections == connections + 1


def test_a_connection_that_cannot_be_made_is_tried_once(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage)
    assert storage._quick_requests is not None
    wire = storage._quick_requests._ways["GetObject"].wire
    assert wire is not None
    storage._requests.patience = 0.0
    with socket.socket() as taken, socket.socket() as first:
        taken.bind(("127.0.0.1", 0))
        # One connection fits, and nobody takes it. The system does not answer another one.
        taken.listen(0)
        first.connect(taken.getsockname())
        host, port = taken.getsockname()
        wire._pool = HTTPConnectionPool(host, port, timeout=Timeout(connect=0.2))
        proxy.requests.clear()
        with pytest.raises(TransientStorageError, match="cannot connect to"):
            storage.get("a")
    wire._pool = HTTPConnectionPool(host, port)
    with pytest.raises(TransientStorageError, match="cannot connect to"):
        storage.get("a")
    assert not proxy.requests


def test_a_closed_client_goes_on(storage: S3Storage, client: Any) -> None:
    storage = S3Storage(storage.root, lambda: client)
    warm(storage)
    # Older versions of urllib3 close its pools too.
    pool = client._endpoint.http_session._manager.connection_from_url(client.meta.endpoint_url)
    client.close()
    pool.close()
    for _ in range(8):
        assert storage.get("a") == CONTENT
        assert storage.stat("a")


def test_credentials_that_are_replaced_in_the_client_are_used(
    storage: S3Storage, client: Any, proxy: FaultProxy
) -> None:
    from botocore.credentials import Credentials

    storage = S3Storage(storage.root, lambda: client)
    warm(storage)
    client._request_signer._credentials = Credentials("another", "secret")
    storage._requests.patience = 0.0
    proxy.plan = lambda request: Answer(500, "")
    proxy.requests.clear()
    with suppress(TransientStorageError):
        storage.get("a")
    assert len(proxy.requests) == 2
    assert all("Credential=another/" in request.headers["authorization"] for request in proxy.requests)


def _add_when_sent(request: Any, **_: Any) -> None:
    request.headers["x-gateway"] = "1"


def _add_when_signed(request: Any, **_: Any) -> None:
    request.headers["x-amz-request-payer"] = "requester"


@pytest.mark.parametrize(
    ("event", "hook", "header"),
    [
        ("before-send.s3.GetObject", _add_when_sent, "x-gateway"),
        ("before-send.s3", _add_when_sent, "x-gateway"),
        ("before-sign.s3.GetObject", _add_when_signed, "x-amz-request-payer"),
    ],
)
def test_hooks_of_the_client_are_kept(
    storage: S3Storage, client: Any, proxy: FaultProxy, event: str, hook: Callable[..., None], header: str
) -> None:
    client.meta.events.register(event, hook)
    storage = S3Storage(storage.root, lambda: client)
    storage.put("a", CONTENT)
    proxy.requests.clear()
    for _ in range(5):
        storage.stat("a")
    for _ in range(5):
        storage.get("a")
    assert all(header in request.headers for request in proxy.requests if request.method == "GET")


class _Seen(Exception):
    pass


def example(client: Any, bucket: str) -> tuple[Any, dict[str, Any]]:
    """The request that boto3 makes for an object, which is not sent."""
    found: list[Any] = []

    def look(request: Any, **signing: Any) -> None:
        found.append((request, signing))

    def refuse(**_: Any) -> None:
        raise _Seen

    client.meta.events.register_last("before-sign.s3.GetObject", look)
    client.meta.events.register("before-send.s3.GetObject", refuse, unique_id="refuse")
    with suppress(_Seen):
        client.get_object(Bucket=bucket, Key="a")
    client.meta.events.unregister("before-send.s3.GetObject", unique_id="refuse")
    request, signing = found[0]
    return request, signing


def aws(**options: Any) -> Any:
    from botocore.session import Session

    keys: dict[str, Any] = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return Session().create_client("s3", "us-west-2", config=client_config(), **keys, **options)


@pytest.mark.parametrize(
    "bucket",
    [
        "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint:name",
        "arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-01234567890123456:accesspoint:name",
    ],
)
def test_requests_that_are_signed_for_another_service_are_made_by_boto3(bucket: str) -> None:
    client = aws()
    request, signing = example(client, bucket)
    assert learn(client, "GetObject", request, signing, "a") is None


def _with_others_keys(request: Any, **_: Any) -> None:
    from botocore.credentials import Credentials

    request.context["signing"]["request_credentials"] = Credentials("granted", "secret")


def test_requests_that_a_hook_gives_credentials_are_made_by_boto3() -> None:
    client = aws()
    client.meta.events.register("before-sign.s3.GetObject", _with_others_keys)
    request, signing = example(client, "bucket")
    assert learn(client, "GetObject", request, signing, "a") is None


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("http://LOCALHOST:80", "localhost"),
        ("https://localhost:443/base", "localhost"),
        ("http://name:word@localhost:8333", "localhost:8333"),
        ("http://[::1]:8333", "[::1]:8333"),
    ],
)
def test_the_host_is_the_one_that_botocore_signs(endpoint: str, host: str) -> None:
    client = aws(endpoint_url=endpoint)
    request, signing = example(client, "bucket")
    wire = learn(client, "GetObject", request, signing, "a")
    assert wire is not None
    assert wire._signer.headers("GET", "/a", {})["host"] == host
