"""Faults between a program and its datastore that a test chooses: a proxy before an S3 server, a disk that is full.

```python
with FaultProxy(server.endpoint) as proxy:
    storage = S3Storage(server.root, functools.partial(server.client, endpoint_url=proxy.endpoint))
    proxy.plan = lambda request: Cut(1000) if request.method == "GET" else None
```
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import urlsplit

__all__ = [
    "Answer",
    "Cut",
    "Damage",
    "Fault",
    "FaultProxy",
    "Lose",
    "Refuse",
    "Request",
    "Stall",
    "Strip",
    "once",
    "small_disk",
]


_HANDSHAKE_S = 20


@dataclass(frozen=True)
class Request:
    """One request as it arrived: its number from 0, method, path with query, headers (lower case), body size."""

    number: int
    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    size: int


@dataclass(frozen=True)
class Answer:
    """The proxy sends this answer; the request does not reach the server."""

    status: int
    code: str
    message: str = "as the test ordered"
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cut:
    """The server's answer ends after `after` bytes of its body; its Content-Length says the full size.

    With `reset`, the connection is reset there. With `stall`, it stays open and silent until the proxy stops. Else it
    is closed.
    """

    after: int
    reset: bool = True
    stall: bool = False


@dataclass(frozen=True)
class Lose:
    """The server carries out the request, and the connection is reset before its answer."""


@dataclass(frozen=True)
class Refuse:
    """The connection is reset after `after` bytes of the request's body; the request does not reach the server."""

    after: int = 0


@dataclass(frozen=True)
class Stall:
    """Nothing is answered until the proxy stops."""


@dataclass(frozen=True)
class Damage:
    """One byte of the answer's body is changed; with `sent`, one of the request's body."""

    at: int = 0
    sent: bool = False


@dataclass(frozen=True)
class Strip:
    """The server gets the request without these headers (lower case), signed again with the keys of the proxy.

    With `damage`, the byte of the body at that position is changed too.
    """

    headers: frozenset[str]
    damage: int | None = None


Fault = Answer | Cut | Lose | Refuse | Stall | Damage | Strip


class FaultProxy:
    """An HTTP proxy on a free port of 127.0.0.1 that passes requests to `upstream` unchanged, except for faults.

    `plan` is called for each request, in the thread of its connection, and returns a fault or None. `requests` has the
    requests that arrived, and `connections` counts their connections. `received` and `sent` count the bytes of bodies
    from and to the client. `keys`, access key and secret key of the server, are needed for Strip. With `certificate`,
    files with a certificate and its key, clients have to use TLS.
    """

    def __init__(
        self, upstream: str, keys: tuple[str, str] | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        parts = urlsplit(upstream)
        self._keys = keys
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.plan: Callable[[Request], Fault | None] = lambda request: None
        self.requests: list[Request] = []
        self.connections = 0
        self.received = 0
        self.sent = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        """The URL to give to a client in place of the server's."""
        host, port = self._listener.getsockname()
        return f"{'http' if self._tls is None else 'https'}://{host}:{port}"

    def __enter__(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._sockets:
                _shut(one)
        for thread in self._threads:
            thread.join()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            client.settimeout(_HANDSHAKE_S)
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                # The client does not trust it; `wrap_socket` has closed the socket.
                return
            client.settimeout(None)
        with self._lock:
            self._sockets.add(client)
            if self._stopped.is_set():
                _shut(client)
        server = http.client.HTTPConnection(*self._upstream)
        try:
            with client, client.makefile("rb") as source:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    while self._exchange(client, source, server):
                        pass
                with self._lock:
                    self._sockets.discard(client)
        finally:
            server.close()

    def _exchange(self, client: socket.socket, source: BinaryIO, server: http.client.HTTPConnection) -> bool:
        """One request and its answer; False where the connection ends."""
        line = source.readline()
        if not line:
            return False
        method, path, _ = line.decode("latin-1").split(" ", 2)
        lines = []
        while (header := source.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            lines.append((name, value.strip()))
        headers = {name.lower(): value for name, value in lines}
        size = int(headers.get("content-length", 0))
        with self._lock:
            request = Request(len(self.requests), method, path, headers, size)
            self.requests.append(request)
        fault = self.plan(request)
        if headers.get("expect") == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(fault, Refuse):
            source.read(min(size, fault.after))
            return _reset(client)
        body = source.read(size)
        with self._lock:
            self.received += len(body)
        if len(body) < size:
            # The client has closed the connection within its request.
            return False
        if isinstance(fault, Stall):
            self._stopped.wait()
            return False
        if isinstance(fault, Answer):
            error = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
            text = (error if fault.body is None else fault.body).encode()
            kind = ("Content-Type", "application/xml")
            return self._answer(client, request, fault.status, [kind, *fault.headers], text)
        at = fault.at if isinstance(fault, Damage) and fault.sent else getattr(fault, "damage", None)
        body = body if at is None else _damaged(body, at)
        if isinstance(fault, Strip):
            lines = self._signed_anew(request, lines, body, fault.headers)
        answer = _ask(server, method, path, lines, body)
        content = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
        if isinstance(fault, Lose):
            return _reset(client)
        if isinstance(fault, Damage) and not fault.sent:
            content = _damaged(content, fault.at)
        cut = fault if isinstance(fault, Cut) and fault.after < len(content) else None
        return self._answer(client, request, answer.status, kept, content, cut)

    def _signed_anew(
        self, request: Request, lines: list[tuple[str, str]], body: bytes, stripped: frozenset[str]
    ) -> list[tuple[str, str]]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        if self._keys is None:
            raise ValueError("Strip needs the server's keys: FaultProxy(endpoint, keys)")
        signed = {"authorization", "x-amz-date", "x-amz-content-sha256"}
        kept = {name: value for name, value in lines if name.lower() not in stripped | signed}
        url = f"http://{request.headers['host']}{request.path}"
        made = AWSRequest(request.method, url, kept, body)
        S3SigV4Auth(Credentials(*self._keys), "s3", "us-east-1").add_auth(made)
        return list(made.headers.items())

    def _answer(
        self,
        client: socket.socket,
        request: Request,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        cut: Cut | None = None,
    ) -> bool:
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers = [*headers, ("Content-Length", str(len(body)))]
        head = f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        sent = b"" if request.method == "HEAD" else body[: cut.after] if cut else body
        with self._lock:
            # Counted before: the client may ask for the count as soon as it has the answer.
            self.sent += len(sent)
        client.sendall(head.encode("latin-1") + sent)
        if cut and cut.stall:
            self._stopped.wait()
            return False
        if cut and cut.reset:
            # A reset discards what the client has not read: give it time to read what was sent before.
            self._stopped.wait(0.05)
            return _reset(client)
        return cut is None


def _ask(
    server: http.client.HTTPConnection, method: str, path: str, lines: list[tuple[str, str]], body: bytes
) -> http.client.HTTPResponse:
    was_open = server.sock is not None
    try:
        server.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in lines:
            if name.lower() != "expect":
                server.putheader(name, value)
        server.endheaders(body)
        return server.getresponse()
    except ConnectionError:
        # A server closes a connection that was idle for a while: some do after five seconds.
        server.close()
        if not was_open:
            raise
        return _ask(server, method, path, lines, body)


def _shut(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _reset(client: socket.socket) -> bool:
    # A zero linger time makes close() send RST instead of FIN.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def _damaged(data: bytes, at: int) -> bytes:
    if not data:
        return data
    at = min(at, len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@contextlib.contextmanager
def small_disk(directory: str | os.PathLike[str], size: int) -> Iterator[Path]:
    """Mount an empty file system of `size` bytes at `directory`, in memory. Needs root; raises OSError without."""
    disk = Path(directory)
    disk.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"cannot mount a small disk at {disk}: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def once(fault: Fault, method: str, times: int = 1) -> Callable[[Request], Fault | None]:
    """A plan for a proxy: the first `times` requests of this method meet the fault."""
    left = [fault] * times
    return lambda request: left.pop() if left and request.method == method else None
