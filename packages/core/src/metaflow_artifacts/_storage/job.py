"""The job that a thread works for, as its requests see it: is it still wanted, and does the server ask to slow down?

A thread that works for no job waits and sends as it likes. `stop` ends a job between two requests, `close` ends the
requests too: it shuts the sockets of those that are under way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

__all__ = [
    "SEND_BYTES",
    "Cancelled",
    "Job",
    "check",
    "current",
    "pause",
    "send_bytes",
    "slow_down",
    "tracked",
    "work_again_for",
]


SEND_BYTES = 256 << 10
"""One call to send() must end within the connect timeout, however much it sends. With this size, 50 kB/s are enough for
a connection."""
_SMALL_SEND_BYTES = 8 << 10
"""The same where requests have failed: 24 connections may share a slow link."""


class Cancelled(Exception):
    """The job of this thread was stopped: what it does is no longer wanted."""


class Job:
    """Work of several threads that is stopped as a whole. `on_slow_down` is called when a server asks for that."""

    def __init__(self, on_slow_down: Callable[[], None] = lambda: None, send_bytes: int = SEND_BYTES) -> None:
        self.on_slow_down = on_slow_down
        self.send_bytes = send_bytes
        """How much one call of send() is given."""
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[int, Any] = {}
        self._closed = False

    @property
    def stopped(self) -> bool:
        """Whether the work is no longer wanted."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Begin no further request, and end every pause between two attempts. Requests under way go on."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and shut the sockets of the requests that are under way, which then fail at once."""
        self.stop()
        with self._lock:
            self._closed = True
            for connection in self._connections.values():
                # A thread of another job may have it by now.
                if connection.job is self:
                    _shut(connection.sock)

    def uses(self, connection: Any) -> None:
        """Note the connection of this thread's request. Raises Cancelled where the job was closed."""
        with self._lock:
            if not self._closed:
                connection.job = self
                self._connections[threading.get_ident()] = connection
                return
        connection.close()
        raise Cancelled

    def working(self) -> AbstractContextManager[None]:
        """The thread works for this job in the block."""
        return _Working(self)


class _Working:
    """No generator: where an interrupt comes before its last part, that part is run when the traceback is dropped, and
    the thread would work for the job of an outer block again."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> None:
        self._before = current()
        _local.job = self._job

    def __exit__(self, *raised: object) -> None:
        _local.job = self._before
        with self._job._lock:
            self._job._connections.pop(threading.get_ident(), None)


def _shut(sock: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        if isinstance(sock, socket.socket):
            # Not the method of a TLS socket, which takes away what the thread that waits is using.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)


_local = threading.local()


def current() -> Job | None:
    """The job that this thread works for."""
    return getattr(_local, "job", None)


def work_again_for(job: Job | None) -> None:
    """Have this thread work for this job, or for none. An interrupt may have come at the end of `Job.working`."""
    _local.job = job


def _forget() -> None:
    _local.job = None


# The threads of a job stay with the parent.
os.register_at_fork(after_in_child=_forget)


def check() -> None:
    """Raise Cancelled where the job of this thread was stopped."""
    job = current()
    if job is not None and job.stopped:
        raise Cancelled


def pause(seconds: float) -> None:
    """Wait before the next attempt of a request. Raises Cancelled as soon as the job of this thread is stopped."""
    job = current()
    if job is None:
        time.sleep(seconds)
    elif job._stopped.wait(seconds):
        raise Cancelled


def slow_down() -> None:
    """Note that the server asks for fewer requests, or that requests fail again and again."""
    job = current()
    if job is not None:
        job.send_bytes = min(job.send_bytes, _SMALL_SEND_BYTES)
        job.on_slow_down()


def send_bytes() -> int:
    """How much this thread gives to one call of send()."""
    job = current()
    return SEND_BYTES if job is None else job.send_bytes


def tracked(pools: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """Classes of urllib3's connection pools by scheme, derived from `pools`, whose connections a job can close."""
    return {scheme: _tracked(pool) for scheme, pool in pools.items()}


def _tracked(pool: type[Any]) -> type[Any]:
    plain: type[Any] = pool.ConnectionCls
    if hasattr(plain, "job"):
        return pool

    class Connection(plain):  # type: ignore[misc]
        job: Job | None = None

        def connect(self) -> Any:
            result = super().connect()
            job = current()
            if job is not None:
                job.uses(self)
            return result

        def request(self, *args: Any, **kwargs: Any) -> Any:
            self.job = job = current()
            if job is not None:
                job.uses(self)
            return super().request(*args, **kwargs)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})
