"""Messages and open files between two processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaflow_artifacts._transfer.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    first, second = (Channel(end) for end in socket.socketpair())
    yield first, second
    first.close()
    second.close()


@pytest.mark.parametrize("count", [0, 1, 200, 450])
def test_messages_arrive_whole_with_their_files(ends: tuple[Channel, Channel], tmp_path: Path, count: int) -> None:
    (tmp_path / "file").write_bytes(b"content")
    files = [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(count)]
    message = {"large": os.urandom(3_000_000)}
    # More than a socket holds at a time.
    sending = threading.Thread(target=lambda: [ends[0].send(message, files), ends[0].send("next")])
    sending.start()
    received, given = ends[1].receive()
    assert received == message
    assert ends[1].receive() == ("next", [])
    sending.join()
    assert len(set(given)) == count
    for fd in files:
        os.close(fd)
    for fd in given:
        assert os.pread(fd, 10, 0) == b"content"
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize("part", [b"", b"x", b"\0" * 7 + b"\1" + b"\0" * 4, b"\0" * 11 + b"\1"])
def test_an_end_that_is_closed_is_told(part: bytes) -> None:
    end, other = socket.socketpair()
    channel = Channel(end)
    other.sendall(part)
    other.close()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(OSError):  # noqa: PT011
        channel.send("x")
    channel.close()
