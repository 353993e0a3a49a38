"""Messages between a process and one that it started: Python objects and open files, through a pair of sockets."""

from __future__ import annotations

import array
import os
import pickle
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Channel"]

_HEAD = struct.Struct("!QI")
_FILES_AT_ONCE = 200
"""Linux passes at most 253 with one call."""
_LOOK_S = 0.5
"""How often it is looked whether the other process lives, while it neither reads nor writes."""
# Where a program has the usual action for SIGPIPE, a send to a process that has ended would end this one.
_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)


def _nothing(seconds: float) -> None:
    pass


class Channel:
    """One end. Any thread may send; one receives.

    Only processes of this program are at the ends: what is received is unpickled. Where a message was sent or received
    in part, nothing more is: what follows would be taken for the rest of it.
    """

    def __init__(self, end: socket.socket, look: Callable[[float], None] = _nothing) -> None:
        """`look` is called every half second while the rest of a message is waited for, with the seconds in which
        nothing came or went. It raises OSError to end that.

        The end of the sockets does not tell that the other process has ended where a child of it still holds its end.
        """
        # Whatever `socket.setdefaulttimeout` says in one of the processes.
        end.setblocking(False)
        if hasattr(socket, "SO_NOSIGPIPE"):
            # As macOS has it.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1)
        self._end = end
        self.look = look
        self._sending = threading.Lock()
        self._cut: set[str] = set()

    def send(self, message: object, files: Sequence[int] = ()) -> None:
        """Send an object, and descriptors of open files.

        Raises OSError where the other end is closed, and what `pickle.dumps` raises; then nothing was sent.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending, self._whole("sent"):
            self._write(_HEAD.pack(len(data), len(files)))
            for first in range(0, len(files), _FILES_AT_ONCE):
                self._write_files(files[first : first + _FILES_AT_ONCE])
            self._write(data)

    def has_arrived(self, seconds: float) -> bool:
        """Wait so long at most; whether a message, or the end of the other process, has arrived."""
        return self._is_ready(select.POLLIN, seconds)

    def receive(self) -> tuple[Any, list[int]]:
        """Wait for the next message: the object, and the descriptors, which the caller closes.

        Raises EOFError where the other end is closed, OSError where a descriptor did not arrive, and what
        `pickle.loads` raises. The descriptors are closed then.
        """
        files: list[int] = []
        try:
            with self._whole("received"):
                size, count = _HEAD.unpack(self._read(_HEAD.size))
                for first in range(0, count, _FILES_AT_ONCE):
                    self._read_files(min(_FILES_AT_ONCE, count - first), files)
                data = self._read(size)
            if len(files) != count:
                raise OSError(f"{count} open files were sent, and {len(files)} arrived")
            return pickle.loads(data), files
        except BaseException:
            for fd in files:
                os.close(fd)
            raise

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        if what in self._cut:
            raise ConnectionAbortedError(f"the message before was {what} in part only")
        self._cut.add(what)
        yield
        self._cut.remove(what)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._end.send(view, _FLAGS) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def _write_files(self, files: Sequence[int]) -> None:
        # On some systems, a call that finds no room for the one byte sends nothing, and no descriptor either.
        # `socket.send_fds` ignores flags.
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        done = 0
        while not done:
            try:
                done = self._end.sendmsg([b"f"], passed, _FLAGS)
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            try:
                count = self._end.recv_into(view[done:])
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            if not count:
                raise EOFError("the other process has ended")
            done += count
        return data

    def _read_files(self, count: int, files: list[int]) -> None:
        while True:
            try:
                byte, some, _, _ = socket.recv_fds(self._end, 1, count)
                break
            except BlockingIOError:
                self._wait(select.POLLIN)
        files += some
        for fd in some:
            os.set_inheritable(fd, False)
        if not byte:
            raise EOFError("the other process has ended")

    def _wait(self, event: int) -> None:
        begin = time.monotonic()
        while not self._is_ready(event, _LOOK_S):
            self.look(time.monotonic() - begin)

    def _is_ready(self, event: int, seconds: float) -> bool:
        arrivals = select.poll()
        arrivals.register(self._end, event)
        return bool(arrivals.poll(seconds * 1000))

    def close(self) -> None:
        """Close this end; the other process sees that."""
        with suppress(OSError):
            self._end.close()
