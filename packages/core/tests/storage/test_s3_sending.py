"""Content that is sent to S3 from its source: each attempt reads it again, and what has changed is never written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from typing import Any

import pytest

from metaflow_artifacts._storage.job import Job
from metaflow_artifacts._storage.outgoing import ContentChanged, Outgoing
from metaflow_artifacts._storage.remote_objects import Body
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.errors import TransientStorageError
from metaflow_artifacts.testing.faults import Answer, Fault, FaultProxy, Lose, Refuse, once

MIB = 1 << 20
DATA = bytes(range(256)) * (2 * MIB // 256) + b"end"
BUSY = Answer(503, "SlowDown")


def blocks_of(data: bytes) -> Generator[memoryview, None, None]:
    for at in range(0, len(data), 512 << 10):
        yield memoryview(data)[at : at + (512 << 10)]


@pytest.mark.parametrize("fault", [BUSY, Refuse(MIB), Lose()], ids=str)
def test_content_that_is_sent_from_its_source_is_read_again_for_each_attempt(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, fault: Fault
) -> None:
    reads: list[int] = []

    def blocks() -> Generator[memoryview, None, None]:
        reads.append(1)
        return blocks_of(DATA)

    proxy.plan = once(fault, "PUT", 2)
    storage.send("a", len(DATA), hashlib.sha256(DATA).digest(), blocks)
    assert direct.get("a") == DATA
    assert len(reads) >= 3


def test_content_that_changes_between_two_attempts_is_not_written(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage
) -> None:
    contents = [DATA, b"y" + DATA[1:]]
    proxy.plan = once(BUSY, "PUT")
    with pytest.raises(ContentChanged):
        storage.send("a", len(DATA), hashlib.sha256(DATA).digest(), lambda: blocks_of(contents[bool(proxy.requests)]))
    assert direct.stat("a") is None


def test_the_end_of_content_that_changed_never_leaves(storage: S3Storage, proxy: FaultProxy) -> None:
    """So no server, however much it believes, stores what is not the content of its name."""
    with pytest.raises(ContentChanged):
        storage.send("a", len(DATA), hashlib.sha256(b"other").digest(), lambda: blocks_of(DATA))
    assert all(request.size == len(DATA) for request in proxy.requests)
    assert proxy.received < len(DATA)
    # The connection is in the middle of a request, and must not be used again.
    storage.put("b", b"content")
    assert storage.get("b") == b"content"


@pytest.mark.parametrize(("failures", "asked"), [(1, []), (2, [1]), (3, [1, 1])])
def test_requests_that_break_again_and_again_are_a_sign_of_too_many(
    storage: S3Storage, proxy: FaultProxy, failures: int, asked: list[int]
) -> None:
    heard: list[int] = []
    proxy.plan = once(Lose(), "PUT", failures)
    with Job(lambda: heard.append(1)).working():
        storage.put("a", b"content")
    assert heard == asked


@pytest.mark.parametrize("source", ["a file", "memory"])
def test_less_is_sent_at_once_after_requests_broke(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Over a slow link that many connections share, a large block takes longer than one call of send() may."""
    kind = Outgoing if source == "a file" else Body
    sent: list[int] = []
    read = kind.read

    def note(body: Any, size: int = -1) -> Any:
        block = read(body, size)
        sent.append(len(block))
        return block

    monkeypatch.setattr(kind, "read", note)
    proxy.plan = once(Refuse(0), "PUT", 2)
    digest = hashlib.sha256(DATA).digest()
    with Job().working():
        if source == "a file":
            storage.send("a", len(DATA), digest, lambda: blocks_of(DATA))
        else:
            with storage.stage(len(DATA)) as staged:
                staged.write(memoryview(DATA))
                staged.commit("a", digest)
    assert direct.get("a") == DATA
    assert max(sent) == 256 << 10
    assert sent.count(8 << 10) >= len(DATA) // (8 << 10)


@pytest.mark.parametrize(("answer", "attempts"), [("none", 7), ("it is missing", 14), ("it is there", 14)])
def test_a_server_that_has_answered_before_is_waited_for_longer(
    storage: S3Storage, direct: S3Storage, proxy: FaultProxy, answer: str, attempts: int
) -> None:
    """Where connections are refused while a server is started anew, seven attempts take a few seconds only."""
    # So that attempts are counted, and not seconds.
    storage._requests.patience = 1000.0
    if answer == "it is there":
        direct.put("a", b"content")
    if answer != "none":
        assert (storage.stat_before_write("a") is None) == (answer == "it is missing")
        proxy.requests.clear()
    proxy.plan = lambda request: Refuse()
    with pytest.raises(TransientStorageError):
        storage.put("b", b"content")
    assert len(proxy.requests) == attempts


def test_a_server_that_answers_others_is_asked_again(storage: S3Storage) -> None:
    long_ago = time.monotonic() - 1000
    assert storage._requests.pause(1, long_ago) is None
    storage.put("b", b"content")
    assert storage._requests.pause(1, long_ago) is not None


def test_a_server_that_asks_to_slow_down_is_heard(storage: S3Storage, proxy: FaultProxy) -> None:
    asked: list[int] = []
    proxy.plan = once(BUSY, "PUT", 2)
    with Job(lambda: asked.append(1)).working():
        storage.put("a", b"content")
    assert asked == [1, 1]
