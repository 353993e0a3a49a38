"""GET, HEAD and PUT requests for objects in one bucket, over the connections of a boto3 client, but not made by boto3.

boto3 takes more than a millisecond of the processor for each request, for the rules of endpoints, events and headers,
and copies what it reads three times. What is here signs the same request, and sends it over a connection of the
client's own pool, so that certificates, time limits and interrupts are those of boto3.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from metaflow_artifacts._storage import job
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote_objects import Body

__all__ = ["Reply", "Signer", "Wire", "learn"]

_SENDING = "before-send.s3."
_MOST_HEADERS = 100
_MOST_DIGITS = 18
_DRAINED_BYTES = 64 << 10
_SLOW_DOWN = (429, 503)
_WITHOUT_BODY = (204, 304)
_ENCODED = frozenset({b"transfer-encoding", b"content-encoding"})
_SENT_AT_ONCE_BYTES = 64 << 10
"""Content up to this size is sent together with the headers."""
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_UNSIGNED = "UNSIGNED-PAYLOAD"
_KNOWN_HEADERS = frozenset(
    {
        "amz-sdk-invocation-id",
        "amz-sdk-request",
        "authorization",
        "expect",
        "range",
        "user-agent",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token",
        "x-amzn-trace-id",
    }
)
"""The headers that boto3 gives such a request. With others, somebody has changed it."""
_KNOWN_OF_PUT = frozenset({"content-length", "if-none-match", "x-amz-checksum-sha256"})


def learn(
    client: Any, operation: str, request: Any, signing: dict[str, Any], name: str, kept: dict[str, str] | None = None
) -> Wire | None:
    """Address, signature and connections of a request of boto3 for the object `name`, which is encoded.

    `kept` are headers that the storage gives all these requests (lower case). None if the request is of another kind
    than here. Raises AttributeError, KeyError or TypeError where botocore or urllib3 is made differently.
    """
    from botocore import auth

    kept = kept or {}
    url = urlsplit(request.url)
    session = client._endpoint.http_session
    pool = session._manager.connection_from_url(request.url)
    # As boto3 does before each request.
    session._setup_ssl_cert(pool, request.url, session._verify)
    context = request.context.get("signing", {})
    prepared = request.prepare()
    is_put = request.method == "PUT"
    if is_put and client.meta.events._emitter._handlers.prefix_search(_SENDING + operation):
        # What answers in place of the network would write the example a second time, and its content is used up.
        return None
    # Whoever watches or changes what is sent does so here.
    answers = client.meta.events.emit(_SENDING + operation, request=prepared)
    headers = {header.lower(): _text(value) for header, value in prepared.headers.items()}
    if (
        signing["signature_version"] not in ("s3v4", "v4")
        or context.get("signing_name", signing["signing_name"]) != "s3"
        or context.get("request_credentials")
        or client._request_signer._credentials is None
        or url.query
        or prepared.url != request.url
        or not headers.keys() - kept.keys() <= (_KNOWN_HEADERS | _KNOWN_OF_PUT if is_put else _KNOWN_HEADERS)
        or any(headers.get(header) != value for header, value in kept.items())
        or (is_put and headers.get("x-amz-content-sha256") != _UNSIGNED)
        or session._proxy_config.proxy_url_for(request.url)
        # Something answers in place of the network.
        or any(answer is not None for _, answer in answers)
    ):
        return None
    host = auth._host_from_url(request.url)  # type: ignore[attr-defined]  # Not public.
    signer = Signer(client._request_signer, host, context.get("region") or signing["region_name"])
    return Wire(
        pool, f"{url.scheme}://{host}", url.path.removesuffix(name), headers.get("user-agent", ""), kept, signer
    )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


class Signer:
    """Signs requests for objects, by AWS's Signature Version 4, with the credentials that `holder`, botocore's
    RequestSigner, has at that time."""

    def __init__(self, holder: Any, host: str, region: str) -> None:
        self._holder = holder
        self._host = host
        self._region = region
        self._key: tuple[tuple[str, str], bytes] = (("", ""), b"")

    def headers(self, method: str, path: str, asked: dict[str, str], payload: str = _EMPTY_SHA256) -> dict[str, str]:
        """The headers of a request for what is at `path`, which is encoded, with those in `asked` (lower case).

        `payload` is the digest of what is sent, or the word for content that is not signed.
        """
        credentials = self._holder._credentials.get_frozen_credentials()
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        signed = {
            "host": self._host,
            **asked,
            "x-amz-content-sha256": payload,
            "x-amz-date": now,
            **({"x-amz-security-token": credentials.token} if credentials.token else {}),
        }
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        request = hashlib.sha256(f"{method}\n{path}\n\n{lines}\n{names}\n{payload}".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}"
        signature = hmac.new(self._key_of(credentials.secret_key, now[:8]), text.encode(), hashlib.sha256).hexdigest()
        credential = f"{credentials.access_key}/{scope}"
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def _key_of(self, secret: str, day: str) -> bytes:
        held, key = self._key
        if held != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._key = (secret, day), key
        return key


class Wire:
    """Sends requests over the connections of a pool of urllib3, and reads the answers itself."""

    def __init__(self, pool: Any, url: str, path: str, agent: str, kept: dict[str, str], signer: Signer) -> None:
        self._pool = pool
        self._url = url
        self._path = path
        self._agent = agent
        self._kept = kept
        self._signer = signer

    def ask(self, method: str, name: str, asked: dict[str, str]) -> Reply | None:
        """The answer to a request, which must be closed; None where there is none that can be used.

        Raises botocore's EndpointConnectionError, ConnectTimeoutError or ReadTimeoutError if there is no connection,
        or no answer in time: boto3 would wait as long for the same.
        """
        headers = self._signer.headers(method, self._path + name, asked)
        reply = self._exchange(method, name, headers, None)
        if reply is not None and reply.status in _SLOW_DOWN:
            job.slow_down()
        return reply

    def send(self, name: str, asked: dict[str, str], body: Body | Outgoing) -> Reply | None:
        """The answer to a request that writes an object, which must be closed; None where nothing was sent.

        Raises as `ask`, ConnectionClosedError where the connection broke off, and what reading the body raises.
        """
        headers = self._signer.headers("PUT", self._path + name, {**asked, **self._kept}, _UNSIGNED)
        headers["content-length"] = str(len(body))
        return self._exchange("PUT", name, headers, body)

    def _exchange(self, method: str, name: str, headers: dict[str, str], body: Body | Outgoing | None) -> Reply | None:
        from botocore import exceptions as botocore
        from urllib3 import exceptions as urllib3

        path = self._path + name
        lines = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
        message = f"{method} {path} HTTP/1.1\r\n{lines}user-agent: {self._agent}\r\naccept-encoding: identity\r\n\r\n"
        connection = reply = None
        is_begun = False
        try:
            connection = self._pool._get_conn()
            self._open(connection)
            is_begun = body is not None
            is_whole = _deliver(connection, message.encode(), body)
            reply = Reply(self._pool, self._url, connection, has_body=method != "HEAD", is_last=not is_whole)
            return reply
        except TimeoutError as error:
            raise botocore.ReadTimeoutError(endpoint_url=self._url, error=error) from error
        except urllib3.NewConnectionError as error:
            raise botocore.EndpointConnectionError(endpoint_url=self._url + path, error=error) from error
        except urllib3.ConnectTimeoutError as error:
            raise botocore.ConnectTimeoutError(endpoint_url=self._url + path, error=error) from error
        except (OSError, ValueError, AttributeError, urllib3.HTTPError) as error:
            # A pool that was closed, a certificate that is not trusted, a connection that broke off, or that an
            # interrupt has closed (then it has no socket), an answer that is none. boto3 makes the request again, and
            # finds out. A write that was begun counts as one attempt, as it would by boto3.
            if is_begun:
                raise botocore.ConnectionClosedError(endpoint_url=self._url + path, error=error) from error
            return None
        finally:
            if reply is None and connection is not None:
                connection.close()
                self._pool._put_conn(connection)

    def _open(self, connection: Any) -> None:
        """Connect where it is not, and let an interrupt of this thread's job close it."""
        if connection.sock is None:
            connection.timeout = self._pool.timeout.connect_timeout
            connection.connect()
        connection.sock.settimeout(self._pool.timeout.read_timeout)
        connection.job = current = job.current()
        if current is not None:
            current.uses(connection)


class Reply:
    """An answer whose body is read from the connection straight into the caller's memory."""

    def __init__(self, pool: Any, url: str, connection: Any, has_body: bool, is_last: bool = False) -> None:
        """Reads status and headers. After the last one, the connection is closed.

        Raises ValueError for an answer that is none.
        """
        self.on_close: Callable[[Reply], None] = lambda reply: None
        self._pool = pool
        self._url = url
        self._connection = connection
        self._stream = connection.sock.makefile("rb")
        try:
            self.status, self.headers, self._keep = _head_of(self._stream)
            has_body = has_body and self.status not in _WITHOUT_BODY
            # S3 announces chunks even where an answer has no body.
            is_announced = b"content-length" in self.headers and not self.headers.keys() & _ENCODED
            self.is_plain = not has_body or is_announced
            """Whether the body comes as it is, and its length is known. Else it cannot be read."""
            self._keep = self._keep and self.is_plain and not is_last
            self.length = _number(self.headers.get(b"content-length", b"0")) if self.is_plain else 0
        except BaseException:
            self._stream.close()
            raise
        self._left = self.length if has_body else 0
        self.is_last = is_last
        self.broke = False
        """Whether the body ended early."""

    @property
    def version(self) -> str | None:
        """What names this version of the object in a further request: its ETag."""
        found = self.headers.get(b"etag")
        return None if found is None else found.decode("latin-1")

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes, as many as are there; none only where the body ends, or broke off.

        Raises botocore's ReadTimeoutError and ResponseStreamingError, as `read` does.
        """
        try:
            count: int = self._stream.readinto1(buffer[: self._left])
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        self._left -= count
        self.broke = not count and bool(self._left and buffer)
        return count

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes of the body, all that is left where `size` is negative; fewer only where it broke off."""
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            data: bytes = self._stream.read(wanted)
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        self._left -= len(data)
        self.broke = len(data) < wanted
        return data

    def _broken(self, error: Exception) -> Exception:
        from botocore.exceptions import ReadTimeoutError, ResponseStreamingError

        self.broke = True
        if isinstance(error, TimeoutError):
            return ReadTimeoutError(endpoint_url=self._url, error=error)
        return ResponseStreamingError(error=error)

    def close(self) -> None:
        """Give the connection back, for further requests if the body was read. `on_close` is called."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._stream.close()
        self.on_close(self)
        if self._left or not self._keep:
            connection.close()
        self._pool._put_conn(connection)

    def drain(self) -> None:
        """Read a short rest that nobody wants, so that the connection can be used again."""
        if self._left <= _DRAINED_BYTES:
            self.read()


def _deliver(connection: Any, head: bytes, body: Body | Outgoing | None) -> bool:
    """Send a request. False where the server took only a part of it: it may have answered before."""
    if body is not None and len(body) <= _SENT_AT_ONCE_BYTES:
        head, body = b"".join((head, body.read(-1))), None
    try:
        connection.sock.sendall(head)
        while body is not None and (piece := body.read(1)):
            connection.sock.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _head_of(stream: Any) -> tuple[int, dict[bytes, bytes], bool]:
    """Status and headers of an answer (lower case), and whether more may come over its connection.

    Raises ValueError for what is no answer, or a preliminary one.
    """
    version, status, *_ = stream.readline(1 << 16).split(None, 2)
    if not version.startswith(b"HTTP/1."):
        raise ValueError("no HTTP")
    headers: dict[bytes, bytes] = {}
    for _ in range(_MOST_HEADERS):
        line = stream.readline(1 << 16)
        if line in (b"\r\n", b"\n"):
            break
        name, _, value = line.partition(b":")
        if headers.setdefault(name.lower(), value.strip()) != value.strip() and name.lower() == b"content-length":
            raise ValueError("two lengths")
    else:
        raise ValueError("too many headers")
    if _number(status) < 200:
        raise ValueError("preliminary")
    keep = version == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
    return _number(status), headers, keep


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise ValueError(text)
    return int(text)
