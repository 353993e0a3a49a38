"""Plans for FaultProxy by which a server breaks one promise that docs/format.md requires of a storage.

```python
with FaultProxy(server.endpoint, (server.access_key, server.secret_key)) as proxy:
    proxy.plan = ignores_conditions()
```
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from metaflow_artifacts.testing.faults import Answer, Fault, Lose, Request, Strip

__all__ = [
    "Plan",
    "copies_without_renewing",
    "forbids_deletes",
    "ignores_conditions",
    "lists_only_below",
    "loses_conditional_answers",
    "refuses_batches",
    "takes_wrong_digests",
    "together",
]

Plan = Callable[[Request], Fault | None]

_LONG_AGO = "2001-02-03T04:05:06.000Z"


def together(*plans: Plan) -> Plan:
    """A plan that gives the first fault that one of the plans gives."""

    def plan(request: Request) -> Fault | None:
        return next((fault for one in plans if (fault := one(request)) is not None), None)

    return plan


def ignores_conditions() -> Plan:
    """A server that ignores If-None-Match: rclone, s3rver, the JuiceFS gateway. Needs the proxy's keys."""
    fault = Strip(frozenset({"if-none-match"}))
    return lambda request: fault if "if-none-match" in request.headers else None


def loses_conditional_answers(times: int = 1, after: int = 0) -> Plan:
    """The connection breaks before the answers to `times` conditional writes, after `after` that are answered."""
    left = [None] * after + [Lose()] * times
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return left.pop(0) if left and "if-none-match" in request.headers else None

    return plan


def copies_without_renewing(answered: str | None = _LONG_AGO) -> Plan:
    """A server where copying an object onto itself does nothing: s3rver, the JuiceFS gateway.

    `answered` is the time in its answer; with None, the answer has no time.
    """
    said = f"<LastModified>{answered}</LastModified>" if answered else ""
    fault = Answer(200, "", body=f'<CopyObjectResult><ETag>"0"</ETag>{said}</CopyObjectResult>')
    return lambda request: fault if "x-amz-copy-source" in request.headers else None


def refuses_batches(status: int = 400, code: str = "MissingContentMD5") -> Plan:
    """A server that refuses DeleteObjects as boto3 sends it."""
    return lambda request: Answer(status, code) if _is_batch(request) else None


def takes_wrong_digests(damage: int = 0) -> Plan:
    """The byte at `damage` of each body changes, and the server does not compare digests: rclone, moto.

    Needs the proxy's keys.
    """
    fault = Strip(frozenset({"x-amz-checksum-sha256", "x-amz-sdk-checksum-algorithm", "content-md5"}), damage)
    return lambda request: fault if "x-amz-checksum-sha256" in request.headers else None


def lists_only_below(prefix: str) -> Plan:
    """Credentials that allow listing below one prefix of the bucket only."""

    def plan(request: Request) -> Fault | None:
        query = parse_qs(urlsplit(request.path).query)
        listing = request.method == "GET" and "list-type" in query
        wanted = query.get("prefix", [""])[0]
        return Answer(403, "AccessDenied") if listing and not wanted.startswith(prefix) else None

    return plan


def forbids_deletes() -> Plan:
    """Credentials without the permission to delete."""
    fault = Answer(403, "AccessDenied")
    return lambda request: fault if request.method == "DELETE" or _is_batch(request) else None


def _is_batch(request: Request) -> bool:
    return request.method == "POST" and "delete" in parse_qs(urlsplit(request.path).query, keep_blank_values=True)
