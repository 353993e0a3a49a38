"""Content that is hashed again while it is sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator

import pytest

from metaflow_artifacts._storage.job import Cancelled, Job
from metaflow_artifacts._storage.outgoing import ContentChanged, Outgoing

DATA = os.urandom(1_500_000)


def content(data: bytes, digest: bytes | None = None) -> Outgoing:
    def blocks() -> Generator[memoryview, None, None]:
        for at in range(0, len(data), 400_000):
            yield memoryview(data)[at : at + 400_000]

    return Outgoing(len(DATA), digest or hashlib.sha256(DATA).digest(), blocks)


def read_all(body: Outgoing) -> bytes:
    taken = b""
    while block := body.read(8192):
        taken += block
    return taken


def test_it_is_read_in_pieces_and_as_a_whole() -> None:
    assert read_all(content(DATA)) == DATA == content(DATA).read()


@pytest.mark.parametrize("before", [0, 1, 100])
@pytest.mark.parametrize("closed", [False, True])
def test_each_attempt_reads_from_the_begin(before: int, closed: bool) -> None:
    """Also where the attempt before was not yet at the content: no connection, say."""
    body = content(DATA)
    for _ in range(before):
        body.read(8192)
    if closed:
        body.close()
    assert body.seek(0) == body.tell() == 0
    assert read_all(body) == DATA


def test_a_client_may_look_for_the_end() -> None:
    body = content(DATA)
    assert body.seek(0, 2) == body.tell() == len(body) == len(DATA)
    body.seek(0)
    assert read_all(body) == DATA


@pytest.mark.parametrize("changed", [b"x" + DATA[1:], DATA[:-1] + b"x", DATA[:-1], DATA + b"x", b""])
def test_changed_content_is_never_given_whole(changed: bytes) -> None:
    body = content(changed)
    with pytest.raises(ContentChanged):
        read_all(body)
    # Where all bytes came, the last block was withheld.
    assert body.tell() == (len(changed) if len(changed) < len(DATA) else 1_200_000)
    assert isinstance(body.failure, ContentChanged)


def test_a_job_that_was_stopped_sends_no_further_block() -> None:
    job, body = Job(), content(DATA)
    with job.working():
        body.read(8192)
        job.stop()
        with pytest.raises(Cancelled):
            read_all(body)
