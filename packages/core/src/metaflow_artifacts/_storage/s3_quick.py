"""Reads and writes of objects, with a fraction of the processor's time that boto3 takes for each.

A listing of a store reads thousands of heads, a save asks for each chunk whether it is there, many threads that move
chunks share one interpreter, and a training loop waits for each small checkpoint. Only answers that are right are used.
After anything else, boto3 makes the same request again, so that errors, redirects and retries are its own.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from metaflow_artifacts._storage.job import check
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote_objects import Body
from metaflow_artifacts._storage.s3_wire import Reply, Wire, learn

__all__ = ["Head", "QuickRequests", "Written"]

_GIVE_UP_AFTER = 5
"""After how many answers in a row that could not be used, or broke off, only boto3 is used for a while."""
_OFF_S = 300.0
_REFUSALS = frozenset({404, 412, 416})
"""Right answers that boto3 puts into words."""
_ERRORS_OF_PUT = frozenset({409, 412, 500, 503})
"""Those after which nothing else is to be tried at once. With others, boto3 may find another region, or other keys."""
_MOST_ERROR_BYTES = 16 << 10
_GET = "GetObject"
_HEAD = "HeadObject"
_PUT = "PutObject"


@dataclass(frozen=True)
class Head:
    """What is known of an object."""

    exists: bool
    size: int = 0
    """In bytes."""
    modified: float = 0.0
    """In seconds since the epoch."""


class Written(Enum):
    """What a write has done. After all but YES, boto3 has to write the object."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"
    """The answer is not the one that S3 gives."""


class QuickRequests:
    """Makes requests for objects in one bucket, with the connections and the credentials of a boto3 client.

    Each method gives None where boto3 has to make the request at once, in the same thread. It raises botocore's errors
    if there is no connection, or no answer in time.
    """

    def __init__(self, client: Any, bucket: str, written: dict[str, str] | None = None) -> None:
        """`written` are headers that all writes have (lower case)."""
        self.client = client
        # Somebody may have changed requests of one kind only, or a server may answer them in its own way.
        kept = {_GET: {}, _HEAD: {}, _PUT: written or {}}
        self._ways = {operation: _Way(client, bucket, operation, headers) for operation, headers in kept.items()}

    def open(self, name: str, first: int, last: int | None, version: str | None = None) -> Reply | None:
        """The answer to a request for the bytes from `first` to `last`, both included, or to the object's end.

        With `version`, only if the object still has this ETag. All of the object is asked for without a range.
        """
        asked = {} if version is None else {"if-match": version}
        ranged = first > 0 or last is not None
        if ranged:
            asked["range"] = f"bytes={first}-" + ("" if last is None else str(last))
        return self._ask(
            _GET, name, asked, lambda reply: _has_range(reply, first, last) if ranged else reply.status == 200
        )

    def head(self, name: str) -> Head | None:
        """Whether an object exists, its size and its time."""
        reply = self._ask(_HEAD, name, {}, lambda reply: _told(reply) is not None)
        if reply is None:
            return None
        reply.close()
        return _told(reply)

    def put(self, name: str, body: Body | Outgoing, sha256: str, *, new: bool) -> Written:
        """Write an object, if `new` only where there is none. `sha256` is the digest of `body`, in Base64.

        Raises what reading the body raises, and botocore's ClientError where the server refuses or fails.
        """
        from botocore.exceptions import BotoCoreError

        name = quote(name, safe="/~")
        way = self._ways[_PUT]
        wire = way.wire or way.prepared(name)
        if wire is None:
            return Written.NO
        asked = {"x-amz-checksum-sha256": sha256, **({"if-none-match": "*"} if new else {})}
        try:
            reply = wire.send(name, asked, body)
        except BotoCoreError:
            # Not where this process has shut the connection, or has changed what it sends.
            check()
            way.count(False)
            raise
        if reply is None:
            way.count(False)
            return Written.NO
        with closing(reply):
            error = _error_of(reply, new)
            reply.drain()
        if error is not None:
            raise error
        # Without an ETag, it is not S3 that has answered.
        is_written = reply.status == 200 and b"etag" in reply.headers and not reply.is_last
        way.count(is_written)
        is_refused = 400 <= reply.status < 500
        return Written.YES if is_written else Written.NO if is_refused else Written.MAYBE

    def _ask(
        self, operation: str, name: str, asked: dict[str, str], is_usable: Callable[[Reply], bool]
    ) -> Reply | None:
        name = quote(name, safe="/~")
        way = self._ways[operation]
        wire = way.wire or way.prepared(name)
        if wire is None:
            return None
        reply = wire.ask("GET" if operation == _GET else "HEAD", name, asked)
        if reply is not None and reply.is_plain and is_usable(reply):
            reply.on_close = lambda reply: way.count(not reply.broke)
            return reply
        if reply is not None:
            with closing(reply):
                reply.drain()
        if reply is None or reply.status not in _REFUSALS:
            way.count(False)
        return None


class _Way:
    """How one kind of request is made."""

    def __init__(self, client: Any, bucket: str, operation: str, kept: dict[str, str]) -> None:
        self._client = client
        self._bucket = bucket
        self._operation = operation
        self._kept = kept
        self._lock = threading.Lock()
        self._failures = 0
        self._off_until = 0.0
        self._expected: tuple[int, str] | None = None
        self._example: tuple[Any, dict[str, Any], str] | None = None
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire | None:
        """What makes the requests, once it is known; None while boto3 makes them."""
        return None if self._off_until > time.monotonic() else self._wire

    def count(self, was_used: bool) -> None:
        """Note whether an answer could be used. Threads may lose a count."""
        self._failures = 0 if was_used else self._failures + 1
        if self._failures >= _GIVE_UP_AFTER:
            # Then one more is enough, or none: the network or the server may have been down for a while.
            self._failures = _GIVE_UP_AFTER - 1
            self._off_until = time.monotonic() + _OFF_S

    def prepared(self, name: str) -> Wire | None:
        """What makes the request for `name`, which is encoded; None where boto3 does."""
        with self._lock:
            if self._wire is not None or self._off_until > time.monotonic():
                return self.wire
            events, handler = self._client.meta.events, f"quick-requests-{id(self)}"
            event = f"before-sign.s3.{self._operation}"
            if self._example is None:
                # The request that boto3 makes this time shows the address, and how it is signed. An interrupt may have
                # ended the one before too early.
                is_first, self._expected = self._expected is None, (threading.get_ident(), name)
                if is_first:
                    events.register_last(event, self._look, unique_id=handler)
            else:
                events.unregister(event, unique_id=handler)
                # Without one, a version of botocore or urllib3 is made differently.
                with suppress(AttributeError, KeyError, TypeError):
                    self._wire = learn(self._client, self._operation, *self._example, self._kept)
                self._example = None
                if self._wire is None:
                    self._off_until = math.inf
            return self.wire

    def _look(self, request: Any, **signing: Any) -> None:
        # Others may use the client too, for another bucket; also in this thread, where an interrupt has ended the
        # request before it was signed.
        assert self._expected is not None
        thread, name = self._expected
        asked = request.context.get("s3_redirect", {}).get("params", {})
        is_mine = (
            thread == threading.get_ident()
            and urlsplit(request.url).path.endswith(f"/{name}")
            and asked.get("Bucket") == self._bucket
            and quote(asked.get("Key", ""), safe="/~") == name
        )
        if self._example is None and is_mine:
            # Without its content, which would be kept until the next request.
            example = copy.copy(request)
            example.data = b""
            self._example = example, signing, name


def _error_of(reply: Reply, new: bool) -> Exception | None:
    """The error that boto3 would raise for the answer to a write; None where boto3 has to look."""
    from botocore.exceptions import ClientError

    if reply.status not in _ERRORS_OF_PUT or (reply.status == 412 and not new):
        return None
    code, message = _words_of(reply)
    details: Any = {
        # S3 sends its words in chunks, which are not read. boto3 takes the number where there are none, too.
        "Error": {"Code": code or str(reply.status), "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": reply.status, "HTTPHeaders": {}, "RetryAttempts": 0},
    }
    return ClientError(details, _PUT)


def _words_of(reply: Reply) -> tuple[str, str]:
    """Code and message of an error; empty where they cannot be read."""
    if not reply.is_plain or reply.length > _MOST_ERROR_BYTES:
        return "", ""
    try:
        page = ElementTree.fromstring(reply.read())
    except (ElementTree.ParseError, LookupError, ValueError):
        return "", ""
    return page.findtext("{*}Code") or "", page.findtext("{*}Message") or ""


def _told(reply: Reply) -> Head | None:
    """What an answer says about an object; None where that is not clear."""
    if reply.status != 200:
        return Head(False) if reply.status == 404 else None
    try:
        modified = parsedate_to_datetime(reply.headers[b"last-modified"].decode("latin-1"))
        return Head(True, int(reply.headers[b"content-length"]), modified.timestamp()) if modified.tzinfo else None
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def _has_range(reply: Reply, first: int, last: int | None) -> bool:
    """Whether an answer has the range that was asked for, or its begin where the object ends."""
    found = reply.headers.get(b"content-range", b"").lower().startswith(f"bytes {first}-".encode())
    return reply.status == 206 and found and (last is None or reply.length <= last - first + 1)
