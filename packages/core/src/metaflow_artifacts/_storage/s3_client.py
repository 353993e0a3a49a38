"""The settings of boto3 clients, and what this project changes in how they send and parse."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from metaflow_artifacts._storage.job import tracked
from metaflow_artifacts._storage.remote_errors import BadAnswer
from metaflow_artifacts._storage.remote_requests import named
from metaflow_artifacts.errors import StorageError

__all__ = ["THREADS", "client_at", "client_config", "default_client", "portable", "prepare", "takes"]

THREADS = 24
"""Concurrent requests to begin with: one connection to S3 carries some 50 to 100 MB/s."""

_CONNECT_SECONDS = 5
# With the attempts that S3Storage makes, a save or load from a server that stalls fails within a minute.
_READ_SECONDS = 18
_OLDEST_BOTOCORE = (1, 36)


def client_config(**options: Any) -> Any:
    """A botocore Config under which large objects are sent without being hashed twice; `options` win.

    S3 verifies the SHA-256 of a chunk, so the payload needs no signature and no other checksum. S3Storage retries
    requests, and botocore does not: S3Storage also retries what fails while a body is read.
    """
    from botocore.config import Config

    settings: dict[str, Any] = {
        "max_pool_connections": 4 * THREADS,
        "tcp_keepalive": True,
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False},
    }
    return Config(**{**settings, **options})


def default_client() -> Any:
    """A client as boto3 is configured; `METAFLOW_S3_ENDPOINT_URL` names the endpoint where it is set."""
    return client_at(os.environ.get("METAFLOW_S3_ENDPOINT_URL") or None)


def client_at(endpoint: str | None, region: str | None = None, style: str | None = None) -> Any:
    """A client for an endpoint, with the credentials that boto3 finds; `style` says how a request names the bucket."""
    # boto3 makes the same client, and its import also loads what this project does not use.
    from botocore.session import Session

    addressing = {} if style is None else {"addressing_style": style}
    config = client_config(s3={"payload_signing_enabled": False, **addressing})
    return Session().create_client("s3", endpoint_url=endpoint, region_name=region, config=config)


def portable(make_client: Callable[[], Any], client: Callable[[], Any]) -> Callable[[], Any]:
    """A function that makes a client in another process, and that can be pickled without carrying credentials.

    A function at the top of a module is pickled by its name. Any other can hold credentials: only endpoint and region
    of the client that it makes, which `client` returns, are kept.
    """
    found = named(make_client)
    if found is not None:
        return found
    made = client()
    style = (made.meta.config.s3 or {}).get("addressing_style")
    return functools.partial(client_at, made.meta.endpoint_url, made.meta.region_name, style)


def prepare(client: Any) -> Any:
    """Prepare any boto3 S3 client for S3Storage. Raises StorageError where boto3 is too old for conditional writes."""
    import botocore

    version = tuple(int(part) for part in botocore.__version__.split(".")[:2])
    if version < _OLDEST_BOTOCORE:
        needed = ".".join(map(str, _OLDEST_BOTOCORE))
        raise StorageError(f"boto3 {botocore.__version__} is too old for the s3 datastore: install boto3>={needed}")
    events = client.meta.events
    events.register("before-sign.s3.PutObject", _send_at_once, unique_id="metaflow-artifacts-put")
    events.register("before-call.s3.HeadBucket", _never_redirect, unique_id="metaflow-artifacts-head")
    events.register("before-parse.s3.ListObjectsV2", _parse_page, unique_id="metaflow-artifacts-list")
    # Not public. Without it, an interrupted transfer leaves its requests to themselves.
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(session, "_pool_classes_by_scheme", None)
    if isinstance(pools, dict):
        pools.update(tracked(pools))
    return client


def takes(client: Any, operation: str, *fields: str) -> bool:
    """Whether this version of botocore knows these fields of a request."""
    known = client.meta.service_model.operation_model(operation).input_shape.members
    return all(field in known for field in fields)


def _send_at_once(request: Any, **_: Any) -> None:
    # botocore sends `Expect: 100-continue` with a file-like body, which costs a round trip for each object.
    del request.headers["Expect"]


def _never_redirect(params: dict[str, Any], **_: Any) -> None:
    # After a redirect, botocore asks for the bucket's region by this request. If that is redirected too, as by a server
    # that wants https, it would ask for ever.
    params.get("context", {}).get("s3_redirect", {})["redirected"] = True


def _parse_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    # botocore needs 0.1 ms for each entry, four times as long as the request takes. So the entries are parsed here, and
    # removed from what botocore parses. `Objects` of the answer has them.
    if response_dict["status_code"] != 200:
        return
    try:
        page = ElementTree.fromstring(response_dict["body"])
    except (ElementTree.ParseError, LookupError, ValueError):
        # No XML, or in an encoding that nobody knows: botocore says so.
        return
    space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
    if not page.tag.endswith("ListBucketResult"):
        return
    encoded = page.findtext(f"{space}EncodingType") == "url"
    objects = []
    for entry in page.findall(f"{space}Contents"):
        key = entry.findtext(f"{space}Key") or ""
        modified = _timestamp(entry.findtext(f"{space}LastModified") or "")
        try:
            size = int(entry.findtext(f"{space}Size") or 0)
        except ValueError as error:
            raise BadAnswer(str(error)) from error
        objects.append((unquote_plus(key) if encoded else key, size, modified))
        page.remove(entry)
    customized_response_dict["Objects"] = objects
    response_dict["body"] = ElementTree.tostring(page)


def _timestamp(text: str) -> float:
    """A time of S3 in seconds since the epoch. Raises StorageError for text that is no time."""
    # Python 3.10 knows neither the letter nor fractions of any length.
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    if text.endswith("Z") and (fraction.isdecimal() or not fraction):
        with suppress(ValueError):
            moment = datetime.fromisoformat(seconds).replace(tzinfo=timezone.utc).timestamp()
            return moment + (float(f"0.{fraction}") if fraction else 0.0)
    try:
        # As botocore reads it elsewhere: some servers give RFC 1123, or another offset.
        from botocore.utils import parse_timestamp

        return float(parse_timestamp(text).timestamp())
    except ValueError as error:
        raise StorageError(f"the S3 server gives {text[:40]!r} for the time of an object: {error}") from None
