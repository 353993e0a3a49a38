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

_BEGIN_AFTER = 3
"""How many requests boto3 makes first: some callers make few, and the preparation costs as much as two of them."""
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

    Each method gives None where boto3 has to make the request, and raises botocore's ReadTimeoutError if the server
    does not answer in time.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._seen = 0
        self._failures = 0
        self._off = False
        self._expected: tuple[str, str] | None = None
        self._example: tuple[Any, dict[str, Any]] | None = None
        self._wire: Wire | None = None

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
        reply = self._ask(_HEAD, name, {}, lambda reply: reply.status in (200, 404))
        if reply is None:
            return None
        reply.close()
        if reply.status == 404:
            return Head(False)
        try:
            modified = parsedate_to_datetime(reply.headers[b"last-modified"].decode("latin-1"))
            return Head(True, int(reply.headers[b"content-length"]), modified.timestamp()) if modified.tzinfo else None
        except (LookupError, TypeError, ValueError, OverflowError):
            return None

    def _ask(
        self, operation: str, name: str, asked: dict[str, str], is_usable: Callable[[Reply], bool]
    ) -> Reply | None:
        name = quote(name, safe="/~")
        wire = self._wire
        if wire is None:
            wire = None if self._off else self._prepared(operation, name)
            if wire is None:
                return None
        reply = wire.ask("GET" if operation == _GET else "HEAD", name, asked)
        if reply is not None and is_usable(reply):
            reply.on_close = lambda reply: self._count(not reply.broke)
            return reply
        if reply is not None:
            with closing(reply):
                reply.drain()
        if reply is None or reply.status not in _REFUSALS:
            self._count(False)
        return None

    def _count(self, was_used: bool) -> None:
        # Threads may lose a count, which need not be exact.
        self._failures = 0 if was_used else self._failures + 1
        if self._failures >= _GIVE_UP_AFTER:
            self._off, self._wire = True, None

    def _prepared(self, operation: str, name: str) -> Wire | None:
        with self._lock:
            self._seen += 1
            if self._seen < _BEGIN_AFTER or self._off or self._wire is not None:
                return self._wire
            events, handler = self.client.meta.events, f"quick-requests-{id(self)}"
            if self._expected is None:
                # The request that boto3 makes this time shows the address, and how it is signed.
                self._expected = operation, name
                events.register_last(f"before-sign.s3.{operation}", self._look, unique_id=handler)
            elif self._example is not None:
                operation, name = self._expected
                events.unregister(f"before-sign.s3.{operation}", unique_id=handler)
                try:
                    self._wire = learn(self.client, operation, *self._example, name)
                except (AttributeError, KeyError, TypeError):
                    # A version of botocore or urllib3 that is made differently.
                    self._wire = None
                self._example, self._off = None, self._wire is None
            return self._wire

    def _look(self, request: Any, **signing: Any) -> None:
        assert self._expected is not None
        if urlsplit(request.url).path.endswith(f"/{self._expected[1]}"):
            self._example = request, signing


def _has_range(reply: Reply, first: int, last: int | None) -> bool:
    """Whether an answer has the range that was asked for, or its begin where the object ends."""
    found = reply.headers.get(b"content-range", b"").lower().startswith(f"bytes {first}-".encode())
    return reply.status == 206 and found and (last is None or reply.length <= last - first + 1)
