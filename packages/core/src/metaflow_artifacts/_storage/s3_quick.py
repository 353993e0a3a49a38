"""Reads of objects and of what is known of them, with a fraction of the processor's time that boto3 takes for each.

A listing of a store reads thousands of heads, a save asks for each chunk whether it is there, and many threads that
load chunks share one interpreter. Only answers that are right are used. After anything else, boto3 makes the same
request again, so that errors, redirects and retries are its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from metaflow_artifacts._storage.s3_wire import Reply, Wire, learn

__all__ = ["Head", "QuickRequests"]

_GIVE_UP_AFTER = 5
"""After how many answers in a row that could not be used, or broke off, only boto3 is used."""
_REFUSALS = frozenset({404, 412, 416})
"""Right answers that boto3 puts into words."""
_GET = "GetObject"
_HEAD = "HeadObject"


@dataclass(frozen=True)
class Head:
    """What is known of an object."""

    exists: bool
    size: int = 0
    """In bytes."""
    modified: float = 0.0
    """In seconds since the epoch."""


class QuickRequests:
    """Makes requests for objects in one bucket, with the connections and the credentials of a boto3 client.

    Each method gives None where boto3 has to make the request at once, in the same thread. It raises botocore's errors
    if there is no connection, or no answer in time.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        # Somebody may have changed requests of one kind only, or a server may answer them in its own way.
        self._ways = {operation: _Way(client, operation) for operation in (_GET, _HEAD)}

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

    def __init__(self, client: Any, operation: str) -> None:
        self._client = client
        self._operation = operation
        self._lock = threading.Lock()
        self._failures = 0
        self._off = False
        self._expected: tuple[int, str] | None = None
        self._example: tuple[Any, dict[str, Any]] | None = None
        self.wire: Wire | None = None

    def count(self, was_used: bool) -> None:
        """Note whether an answer could be used. Threads may lose a count."""
        self._failures = 0 if was_used else self._failures + 1
        if self._failures >= _GIVE_UP_AFTER:
            self._off, self.wire = True, None

    def prepared(self, name: str) -> Wire | None:
        """What makes the request for `name`, which is encoded; None where boto3 does."""
        with self._lock:
            if self._off or self.wire is not None:
                return self.wire
            events, handler = self._client.meta.events, f"quick-requests-{id(self)}"
            event = f"before-sign.s3.{self._operation}"
            if self._expected is None:
                # The request that boto3 makes this time shows the address, and how it is signed.
                self._expected = threading.get_ident(), name
                events.register_last(event, self._look, unique_id=handler)
            elif self._example is not None:
                events.unregister(event, unique_id=handler)
                try:
                    self.wire = learn(self._client, self._operation, *self._example, self._expected[1])
                except (AttributeError, KeyError, TypeError):
                    # A version of botocore or urllib3 that is made differently.
                    self.wire = None
                self._example, self._off = None, self.wire is None
            return self.wire

    def _look(self, request: Any, **signing: Any) -> None:
        # Others may use the client too, for another bucket.
        assert self._expected is not None
        thread, name = self._expected
        is_mine = thread == threading.get_ident() and urlsplit(request.url).path.endswith(f"/{name}")
        if self._example is None and is_mine:
            self._example = request, signing


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
