"""Ranges of many small objects, read with a fraction of the processor's time that boto3 takes for each.

A listing of a store reads thousands of heads, and boto3 takes more than a millisecond of the processor for each: for
the rules of endpoints, events and headers. What is here signs the same request, and sends it over a connection of the
client's own pool, so that certificates, time limits and interrupts are those of boto3.

Only answers that are right are used. After anything else, boto3 makes the same request again, so that errors, redirects
and retries are its own.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from metaflow_artifacts._storage import job

__all__ = ["QuickReads"]

_BEGIN_AFTER = 8
"""How many ranges boto3 reads first: most callers read few, and the preparation costs as much as two of them."""
_GIVE_UP_AFTER = 5
"""After how many answers in a row that could not be used only boto3 is used."""
_EVENT = "before-sign.s3.GetObject"
_SENDING = "before-send.s3.GetObject"
_MOST_HEADERS = 100
_DRAINED_BYTES = 64 << 10
_SLOW_DOWN = (429, 503)
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
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


class QuickReads:
    """Reads ranges of objects in one bucket, with the connections and the credentials of a boto3 client."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._seen = 0
        self._failures = 0
        self._off = False
        self._expected: str | None = None
        self._example: tuple[Any, dict[str, Any]] | None = None
        self._wire: _Wire | None = None

    def get(self, name: str, first: int, last: int) -> bytes | None:
        """The bytes from `first` to `last` of an object, or fewer where it ends; None where boto3 has to read them.

        Raises botocore's ReadTimeoutError if the server does not answer in time.
        """
        wire = self._wire
        if wire is None:
            wire = None if self._off else self._prepared(quote(name, safe="/~"))
            if wire is None:
                return None
        data = wire.get(quote(name, safe="/~"), f"bytes={first}-{last}")
        # Threads may lose a count, which need not be exact.
        self._failures = 0 if data is not None else self._failures + 1
        if self._failures >= _GIVE_UP_AFTER:
            self._off, self._wire = True, None
        return data

    def _prepared(self, name: str) -> _Wire | None:
        with self._lock:
            self._seen += 1
            if self._seen < _BEGIN_AFTER or self._off or self._wire is not None:
                return self._wire
            events, handler = self.client.meta.events, f"quick-reads-{id(self)}"
            if self._expected is None:
                # The request that boto3 makes this time shows the address, and how it is signed.
                self._expected = name
                events.register_last(_EVENT, self._look, unique_id=handler)
            elif self._example is not None:
                events.unregister(_EVENT, unique_id=handler)
                try:
                    self._wire = _learn(self.client, *self._example, self._expected)
                except (AttributeError, KeyError, TypeError):
                    # A version of botocore or urllib3 that is made differently.
                    self._wire = None
                self._example, self._off = None, self._wire is None
            return self._wire

    def _look(self, request: Any, **signing: Any) -> None:
        if urlsplit(request.url).path.endswith(f"/{self._expected}"):
            self._example = request, signing


def _learn(client: Any, request: Any, signing: dict[str, Any], name: str) -> _Wire | None:
    """Address, signature and connections of a request of boto3; None if they are of another kind than here."""
    url = urlsplit(request.url)
    headers = {header.lower(): value for header, value in request.headers.items()}
    session = client._endpoint.http_session
    pool = session._manager.connection_from_url(request.url)
    credentials = client._request_signer._credentials
    region = request.context.get("signing", {}).get("region") or signing["region_name"]
    if (
        signing["signature_version"] not in ("s3v4", "v4")
        or signing["signing_name"] != "s3"
        or credentials is None
        or url.query
        or not headers.keys() <= _KNOWN_HEADERS
        or session._proxy_config.proxy_url_for(request.url)
        # Something answers in place of the network.
        or any(answer is not None for _, answer in client.meta.events.emit(_SENDING, request=request.prepare()))
    ):
        return None
    agent = headers.get("user-agent", "")
    agent = agent.decode() if isinstance(agent, bytes) else agent
    return _Wire(pool, url, url.path.removesuffix(name), agent, _Signer(credentials, url.netloc, region))


class _Signer:
    """Signs requests for ranges, by AWS's Signature Version 4."""

    def __init__(self, credentials: Any, host: str, region: str) -> None:
        self._credentials = credentials
        self._host = host
        self._region = region
        self._key: tuple[tuple[str, str], bytes] = (("", ""), b"")

    def headers(self, path: str, asked: str) -> dict[str, str]:
        """The headers of a request for the range `asked` of what is at `path`, which is encoded."""
        credentials = self._credentials.get_frozen_credentials()
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        signed = {
            "host": self._host,
            "range": asked,
            "x-amz-content-sha256": _EMPTY_SHA256,
            "x-amz-date": now,
            **({"x-amz-security-token": credentials.token} if credentials.token else {}),
        }
        names = ";".join(signed)
        lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
        request = hashlib.sha256(f"GET\n{path}\n\n{lines}\n{names}\n{_EMPTY_SHA256}".encode()).hexdigest()
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


class _Unusable(Exception):
    """An answer that is not used; boto3 asks again."""


class _Wire:
    """Sends requests over the connections of a pool of urllib3, and reads the answers itself."""

    def __init__(self, pool: Any, url: SplitResult, path: str, agent: str, signer: _Signer) -> None:
        self._pool = pool
        self._url = f"{url.scheme}://{url.netloc}"
        self._path = path
        self._agent = agent
        self._signer = signer

    def get(self, name: str, asked: str) -> bytes | None:
        from botocore.exceptions import ReadTimeoutError
        from urllib3.exceptions import HTTPError

        path = self._path + name
        headers = self._signer.headers(path, asked)
        lines = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
        message = f"GET {path} HTTP/1.1\r\n{lines}user-agent: {self._agent}\r\naccept-encoding: identity\r\n\r\n"
        connection = self._pool._get_conn()
        keep = False
        try:
            self._open(connection)
            connection.sock.sendall(message.encode())
            with connection.sock.makefile("rb") as stream:
                data, keep = _answer(stream)
            return data
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
        except (OSError, ValueError, AttributeError, HTTPError, _Unusable):
            # A connection that cannot be made, that broke off, or that an interrupt has closed (then it has no socket);
            # an answer that is none. boto3 makes the request again, and finds out.
            return None
        finally:
            if not keep:
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


def _answer(stream: Any) -> tuple[bytes | None, bool]:
    """The body of a partial answer, or None for any other answer; and whether the connection can be used again.

    Raises _Unusable for what is no such answer.
    """
    version, status, *_ = stream.readline(1 << 16).split(None, 2)
    keep = version == b"HTTP/1.1"
    length: int | None = None
    for _ in range(_MOST_HEADERS):
        line = stream.readline(1 << 16)
        if line in (b"\r\n", b"\n"):
            break
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"content-length":
            length = int(value)
        elif name in (b"transfer-encoding", b"content-encoding"):
            raise _Unusable
        elif name == b"connection" and value.strip().lower() == b"close":
            keep = False
    else:
        raise _Unusable
    if length is None:
        raise _Unusable
    if status == b"206":
        data = stream.read(length)
        if len(data) != length:
            raise _Unusable
        return data, keep
    if int(status) in _SLOW_DOWN:
        job.slow_down()
    keep = keep and length <= _DRAINED_BYTES and len(stream.read(length)) == length
    return None, keep
