"""Messages and open files between two processes."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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

    def send() -> None:
        ends[0].send(message, files)
        ends[0].send("next")

    sending = threading.Thread(target=send)
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


def test_whatever_the_default_timeout_of_sockets_is() -> None:
    socket.setdefaulttimeout(0.01)
    try:
        ends = socket.socketpair()
    finally:
        socket.setdefaulttimeout(None)
    first, second = map(Channel, ends)
    looked = threading.Event()
    second.look = lambda seconds: looked.set()
    received: list[object] = []
    receiving = threading.Thread(target=lambda: received.append(second.receive()))
    receiving.start()
    # It has waited for longer than the timeout.
    assert looked.wait(60)
    first.send("x")
    receiving.join(60)
    assert received == [("x", [])]
    for channel in (first, second):
        channel.close()


SIGNALLED = """
import os, signal, socket, sys
from metaflow_artifacts._transfer.channel import Channel

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
end, other = socket.socketpair()
other.close()
for send in (lambda channel: channel.send("x"), lambda channel: channel._write_files([0])):
    try:
        send(Channel(end))
    except BrokenPipeError:
        print("told", flush=True)
"""


def test_no_signal_comes_from_a_process_that_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told\ntold\n")


class Gone(Exception):
    pass


def gone(seconds: float) -> None:
    raise Gone


def test_a_message_that_stops_halfway_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaflow_artifacts._transfer.channel._LOOK_S", 0.01)
    end, other = socket.socketpair()
    channel = Channel(end, gone)
    # Whoever else holds this end keeps it open.
    held = other.dup()
    message = pickle.dumps("the first")
    other.sendall(struct.pack("!QI", len(message), 0) + message[:5])
    other.close()
    with pytest.raises(Gone):
        channel.receive()
    # What follows belongs to that message, and is not taken for another one.
    held.sendall(message[5:] + struct.pack("!QI", len(message), 0) + message)
    with pytest.raises(ConnectionAbortedError, match="received in part"):
        channel.receive()
    channel.send("it can be sent")
    with pytest.raises(Gone):
        channel.send(os.urandom(8_000_000))
    with pytest.raises(ConnectionAbortedError, match="sent in part"):
        channel.send("x")
    channel.close()
    held.close()


def refused() -> None:
    raise ValueError("no object")


class Refused:
    def __reduce__(self) -> Any:
        return refused, ()


class NotSent:
    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


def test_an_object_that_cannot_be_pickled_shifts_nothing(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TypeError, match="no pickle"):
        ends[0].send(NotSent())
    file, other = os.pipe()

    def is_open() -> int:
        """How many descriptors there are of this pipe. Other threads may open and close some of their own."""
        one, found = os.fstat(file), 0
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                found += os.path.samestat(os.fstat(int(name)), one)
        return found

    before = is_open()
    ends[0].send(Refused(), [file])
    ends[0].send("next")
    with pytest.raises(ValueError, match="no object"):
        ends[1].receive()
    assert is_open() == before
    assert ends[1].receive() == ("next", [])
    os.close(file)
    os.close(other)
