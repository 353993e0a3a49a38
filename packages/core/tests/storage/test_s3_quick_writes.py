"""Writes to S3 without boto3, and by boto3 wherever anything is out of the ordinary."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from faultlib.requests_seen import by_boto3

from metaflow_artifacts._storage import job, open_storage, s3_quick, s3_wire
from metaflow_artifacts._storage.job import Cancelled, Job
from metaflow_artifacts._storage.outgoing import ContentChanged
from metaflow_artifacts._storage.s3 import S3Storage, client_config
from metaflow_artifacts._storage.s3_wire import _head_of
from metaflow_artifacts.errors import StorageError
from metaflow_artifacts.testing.certificates import make_certificate
from metaflow_artifacts.testing.faults import Answer, Damage, Fault, FaultProxy, Lose, Refuse, Request, once
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

SIZES = [0, 1, 4096, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 3 << 20]
LARGE = os.urandom(3 << 20)


def warm(storage: S3Storage, proxy: FaultProxy) -> None:
    """Write as often as it takes until boto3 is no longer asked."""
    for _ in range(3):
        storage.put("warm", b"")
    assert not by_boto3(proxy.requests[-1])
    proxy.requests.clear()


def put(storage: S3Storage, key: str, data: bytes) -> None:
    storage.put(key, data)


def put_new(storage: S3Storage, key: str, data: bytes) -> None:
    assert storage.put_if_absent(key, data)


def put_hashed(storage: S3Storage, key: str, data: bytes) -> None:
    storage.put_hashed(key, memoryview(data), hashlib.sha256(data).digest())


def send(storage: S3Storage, key: str, data: bytes) -> None:
    def blocks() -> Generator[memoryview, None, None]:
        for begin in range(0, len(data), 500_000):
            yield memoryview(data)[begin : begin + 500_000]

    storage.send(key, len(data), hashlib.sha256(data).digest(), blocks)


def answer_with(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """Have all answers begin like this, and have no body, whatever the server says."""
    monkeypatch.setattr(s3_wire, "_head_of", lambda stream: _head_of(_changed(stream, head)))


def _changed(stream: Any, head: str) -> BytesIO:
    while stream.readline() != b"\r\n":
        pass
    return BytesIO(f"{head}\r\n\r\n".encode())


WAYS = [put, put_new, put_hashed, send]
Way = Callable[[S3Storage, str, bytes], None]


@pytest.mark.parametrize("way", WAYS)
def test_content_of_any_size_is_written_without_boto3(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, way: Way
) -> None:
    warm(storage, proxy)
    connections = proxy.connections
    for size in SIZES:
        way(storage, f"dir/{size}/e%C3%A4~.0", LARGE[:size])
    assert not any(map(by_boto3, proxy.requests))
    assert len(proxy.requests) == len(SIZES)
    assert proxy.connections == connections
    for size in SIZES:
        assert direct.get(f"dir/{size}/e%C3%A4~.0") == LARGE[:size]


def test_boto3_makes_the_first_write(storage: S3Storage, proxy: FaultProxy) -> None:
    for _ in range(3):
        storage.put("a", b"content")
    assert [by_boto3(request) for request in proxy.requests] == [True, False, False]


def test_a_key_that_is_taken_is_refused_with_one_request(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy
) -> None:
    warm(storage, proxy)
    assert storage.put_if_absent("a", b"first")
    for content in (b"first", b"second"):
        assert not storage.put_if_absent("a", content)
    assert len(proxy.requests) == 3
    assert not any(map(by_boto3, proxy.requests))
    assert direct.get("a") == b"first"


BY_BOTO3 = [
    Answer(403, "AccessDenied"),
    Answer(429, "SlowDown"),
    Answer(200, ""),
    Answer(200, "", body="a gateway's page"),
]
"""After these, boto3 makes the same request at once."""
AGAIN = [
    Answer(503, "SlowDown"),
    Answer(503, "", body="a gateway's page"),
    Answer(500, "InternalError"),
    Answer(409, "ConditionalRequestConflict"),
    Lose(),
    Refuse(),
    Refuse(1000),
]
"""These are attempts that failed, and the next one follows."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [5000, 1 << 20])
@pytest.mark.parametrize("fault", [*BY_BOTO3, *AGAIN], ids=str)
def test_what_fails_is_written_in_the_next_attempt(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, fault: Fault, size: int, way: Way
) -> None:
    warm(storage, proxy)
    proxy.plan = once(fault, "PUT")
    way(storage, "a", LARGE[:size])
    assert direct.get("a") == LARGE[:size]
    # Where its answer was lost, the object that is there is asked for.
    writes = [by_boto3(request) for request in proxy.requests if request.method == "PUT"]
    assert writes == [False, fault in BY_BOTO3]
    way(storage, "b", LARGE[:size])
    assert direct.get("b") == LARGE[:size]
    assert not by_boto3(proxy.requests[-1])


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("fault", [Lose(), Answer(200, "", body="a gateway's page")], ids=str)
def test_who_wrote_a_new_key_is_known_after_a_lost_answer(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, fault: Fault, taken: bool
) -> None:
    warm(storage, proxy)
    if taken:
        direct.put("a", b"another's")
    proxy.plan = once(fault, "PUT")
    assert storage.put_if_absent("a", b"mine") is not taken
    assert direct.get("a") == (b"another's" if taken else b"mine")


def test_an_answer_that_hides_a_write_does_not_make_it_anothers(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy
) -> None:
    warm(storage, proxy)

    def plan(request: Request) -> Fault | None:
        if request.method == "PUT" and not by_boto3(request):
            # As if this request had reached the server, and a gateway had answered in its place.
            direct.put("a", b"mine")
            return Answer(504, "", body="a gateway's page")
        return None

    proxy.plan = plan
    assert storage.put_if_absent("a", b"mine")
    assert by_boto3([request for request in proxy.requests if request.method == "PUT"][-1])


def test_a_server_whose_answers_cannot_be_used_is_left_to_boto3(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy
) -> None:
    warm(storage, proxy)
    proxy.plan = lambda request: None if by_boto3(request) else Answer(200, "")
    for number in range(6):
        storage.put("a", str(number).encode())
        assert direct.get("a") == str(number).encode()
    proxy.requests.clear()
    storage.put("a", b"content")
    assert len(proxy.requests) == 1


def test_the_quick_way_is_taken_again_after_a_while(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(s3_quick, "time", SimpleNamespace(monotonic=lambda: now[0]))
    warm(storage, proxy)

    def asked() -> list[bool]:
        proxy.requests.clear()
        storage.put("a", b"content")
        return [by_boto3(request) for request in proxy.requests]

    proxy.plan = lambda request: None if by_boto3(request) else Answer(200, "")
    assert [asked() for _ in range(6)] == [[False, True]] * 5 + [[True]]
    now[0] += s3_quick._OFF_S + 1
    assert [asked() for _ in range(2)] == [[False, True], [True]]
    proxy.plan = lambda request: None
    now[0] += s3_quick._OFF_S + 1
    assert [asked() for _ in range(2)] == [[False]] * 2


def test_content_that_changes_says_nothing_about_the_server(storage: S3Storage, proxy: FaultProxy) -> None:
    def blocks() -> Generator[memoryview, None, None]:
        yield memoryview(b"other")

    warm(storage, proxy)
    for _ in range(6):
        with pytest.raises(ContentChanged):
            storage.send("a", 5, bytes(32), blocks)
    storage.put("a", b"content")
    assert not by_boto3(proxy.requests[-1])


def test_a_denied_write_is_nobodys(storage: S3Storage, direct: S3Storage, proxy: FaultProxy) -> None:
    warm(storage, proxy)
    direct.put("a", b"another's")
    proxy.plan = once(Answer(403, "AccessDenied"), "PUT")
    assert not storage.put_if_absent("a", b"another's")


def test_errors_are_those_of_boto3(storage: S3Storage, proxy: FaultProxy) -> None:
    warm(storage, proxy)
    proxy.plan = lambda request: Answer(403, "AccessDenied")
    with pytest.raises(StorageError, match=r"cannot write s3://.*/a: access denied"):
        storage.put("a", b"content")
    storage._requests.patience = 0.0
    proxy.plan = lambda request: Answer(500, "InternalError")
    with pytest.raises(StorageError, match=r"cannot write s3://.*/a: .*InternalError.*as the test ordered"):
        storage.put("a", b"content")


@pytest.mark.parametrize("size", [5000, 1 << 20])
def test_bytes_that_change_on_the_way_are_sent_again(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, size: int
) -> None:
    warm(storage, proxy)
    proxy.plan = once(Damage(100, sent=True), "PUT")
    put_hashed(storage, "a", LARGE[:size])
    assert direct.get("a") == LARGE[:size]


@pytest.mark.parametrize("size", [5000, 3 << 20])
def test_content_that_changed_since_it_was_hashed_is_not_written(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, size: int
) -> None:
    warm(storage, proxy)
    other = LARGE[: size - 1] + bytes([LARGE[size - 1] ^ 1])

    def blocks() -> Generator[memoryview, None, None]:
        yield memoryview(other)

    with pytest.raises(ContentChanged):
        storage.send("a", size, hashlib.sha256(LARGE[:size]).digest(), blocks)
    assert direct.stat("a") is None
    # The connection is in the middle of a request, and must not be used again.
    storage.put("b", b"content")
    assert direct.get("b") == b"content"


class _Unreadable(OSError):
    pass


def test_what_reading_raises_is_raised(storage: S3Storage, direct: S3Storage, proxy: FaultProxy) -> None:
    warm(storage, proxy)

    def blocks() -> Generator[memoryview, None, None]:
        yield memoryview(LARGE)[: 1 << 20]
        raise _Unreadable("the disk is gone")

    with pytest.raises(_Unreadable):
        storage.send("a", len(LARGE), hashlib.sha256(LARGE).digest(), blocks)
    assert direct.stat("a") is None


def test_a_job_that_is_closed_ends_a_write(storage: S3Storage, direct: S3Storage, proxy: FaultProxy) -> None:
    warm(storage, proxy)
    mine, is_sending = Job(), threading.Event()
    outcome: list[Any] = []

    def blocks() -> Generator[memoryview, None, None]:
        yield memoryview(LARGE)[: 1 << 20]
        is_sending.set()
        assert mine._stopped.wait(60)
        yield memoryview(LARGE)[1 << 20 :]

    def write() -> None:
        with mine.working():
            try:
                storage.send("a", len(LARGE), hashlib.sha256(LARGE).digest(), blocks)
            except BaseException as error:
                outcome.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert is_sending.wait(60)
    mine.close()
    thread.join(60)
    assert isinstance(outcome[0], Cancelled)
    assert direct.stat("a") is None
    assert len(proxy.requests) == 1


def test_encryption_is_asked_for_in_each_write(root: str, s3_server: SeaweedServer, proxy: FaultProxy) -> None:
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    storage = open_storage(root, client=client, sse="AES256")
    assert isinstance(storage, S3Storage)
    warm(storage, proxy)
    storage.put("a", b"content")
    assert not by_boto3(proxy.requests[-1])
    assert proxy.requests[-1].headers["x-amz-server-side-encryption"] == "AES256"
    head = s3_server.client().head_object(Bucket=s3_server.bucket, Key=storage._prefix + "a")
    assert head["ServerSideEncryption"] == "AES256"


def test_two_storages_of_one_client_have_their_own_encryption(
    root: str, s3_server: SeaweedServer, proxy: FaultProxy
) -> None:
    made = s3_server.client(endpoint_url=proxy.endpoint)
    encrypted, plain = (open_storage(root, client=lambda: made, sse=sse) for sse in ("AES256", None))
    assert isinstance(encrypted, S3Storage)
    # The write that shows how it is done is another's: of the same key, in the same thread.
    encrypted._quick(encrypted._requests.client("write", "a"))._ways["PutObject"].prepared(encrypted._prefix + "a")
    plain.put("a", b"content")
    for _ in range(5):
        encrypted.put("a", b"content")
        plain.put("b", b"content")
    found = [request.headers.get("x-amz-server-side-encryption") for request in proxy.requests]
    assert found == [None, *["AES256", None] * 5]


def _add_header(request: Any, **_: Any) -> None:
    request.headers["x-amz-tagging"] = "team=vision"


@pytest.mark.parametrize(
    ("config", "hook"), [({}, _add_header), ({"s3": {"payload_signing_enabled": True}}, None)], ids=["hook", "signed"]
)
def test_a_client_that_makes_other_requests_makes_its_own(
    root: str, s3_server: SeaweedServer, proxy: FaultProxy, config: dict[str, Any], hook: Any
) -> None:
    def client() -> Any:
        made = s3_server.client(endpoint_url=proxy.endpoint, config=client_config(**config))
        if hook is not None:
            made.meta.events.register("before-sign.s3.PutObject", hook)
        return made

    storage = open_storage(root, client=client)
    for _ in range(5):
        storage.put("a", b"content")
    assert len(proxy.requests) == 5
    assert all(map(by_boto3, proxy.requests))


def test_a_hook_that_may_answer_sees_each_write_once(root: str, s3_server: SeaweedServer, proxy: FaultProxy) -> None:
    seen: list[str] = []
    client = s3_server.client(endpoint_url=proxy.endpoint)
    # As moto does, which carries out what it sees.
    client.meta.events.register("before-send", lambda request, **_: seen.append(urlsplit(request.url).path))
    storage = S3Storage(root, lambda: client)
    for key in ("a", "b", "c"):
        storage.put(key, b"content")
    assert [path.rpartition("/")[2] for path in seen] == ["a", "b", "c"]
    assert all(map(by_boto3, proxy.requests))


def test_a_certificate_that_is_not_trusted_is_named_at_once(
    root: str, s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "pause", lambda seconds: pytest.fail("it tries again"))
    with FaultProxy(s3_server.endpoint, certificate=make_certificate(tmp_path)) as proxy:
        unsure = S3Storage(root, functools.partial(s3_server.client, endpoint_url=proxy.endpoint))
        for _ in range(3):
            with pytest.raises(StorageError, match="certificate"):
                unsure.put("a", b"content")


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0",
        "HTTP/1.1 412 Precondition Failed\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 412 Precondition Failed\r\nConnection: close",
    ],
)
def test_a_refusal_without_words_is_one(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    warm(storage, proxy)
    direct.put("a", b"content")
    answer_with(monkeypatch, head)
    # The same bytes as those that are there, which somebody else wrote.
    assert not storage.put_if_absent("a", b"content")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "head",
    [
        'HTTP/1.1 200 OK\r\nETag: "x"\r\nConnection: close',
        'HTTP/1.1 200 OK\r\nETag: "x"\r\nTransfer-Encoding: chunked',
        'HTTP/1.0 200 OK\r\nETag: "x"',
    ],
)
def test_an_answer_of_unknown_length_is_one(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    warm(storage, proxy)
    answer_with(monkeypatch, head)
    for _ in range(3):
        storage.put("a", b"content")
    assert [by_boto3(request) for request in proxy.requests] == [False] * 3
