"""Messages between a process and one that it started: Python objects and open files, through a pair of sockets."""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["Channel"]

_HEAD = struct.Struct("!QI")
_FILES_AT_ONCE = 200
"""Linux passes at most 253 with one call."""


class Channel:
    """One end. Any thread may send; one receives.

    Only processes of this program are at the ends: what is received is unpickled.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._sending = threading.Lock()

    def send(self, message: object, files: Sequence[int] = ()) -> None:
        """Send an object, and descriptors of open files. Raises OSError where the other end is closed."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._end.sendall(_HEAD.pack(len(data), len(files)))
            for first in range(0, len(files), _FILES_AT_ONCE):
                # On some systems, a call that finds no room for the one byte sends nothing, and no descriptor either.
                while not socket.send_fds(self._end, [b"f"], files[first : first + _FILES_AT_ONCE]):
                    pass
            self._end.sendall(data)

    def has_arrived(self, seconds: float) -> bool:
        """Wait so long at most; whether a message, or the end of the other process, has arrived."""
        arrivals = select.poll()
        arrivals.register(self._end, select.POLLIN)
        return bool(arrivals.poll(seconds * 1000))

    def receive(self) -> tuple[Any, list[int]]:
        """Wait for the next message: the object, and the descriptors, which the caller closes.

        Raises EOFError where the other end is closed, OSError where a descriptor did not arrive.
        """
        size, count = _HEAD.unpack(self._read(_HEAD.size))
        files: list[int] = []
        for first in range(0, count, _FILES_AT_ONCE):
            byte, some, _, _ = socket.recv_fds(self._end, 1, min(_FILES_AT_ONCE, count - first))
            if not byte:
                raise EOFError("the other process has ended")
            for fd in some:
                os.set_inheritable(fd, False)
            files += some
        data = self._read(size)
        if len(files) != count:
            raise OSError(f"{count} open files were sent, and {len(files)} arrived")
        return pickle.loads(data), files

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            count = self._end.recv_into(view[done:])
            if not count:
                raise EOFError("the other process has ended")
            done += count
        return data

    def close(self) -> None:
        """Close this end; the other process sees that."""
        with suppress(OSError):
            self._end.close()
