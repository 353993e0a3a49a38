"""Places that keep objects: `open_storage` gives the one that a root names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from metaflow_artifacts.errors import InvalidReference
from metaflow_artifacts.storage.base import ObjectInfo, Reader, Staged, Storage
from metaflow_artifacts.storage.local import LocalStorage

__all__ = ["LocalStorage", "ObjectInfo", "Reader", "Staged", "Storage", "open_storage"]


def open_storage(
    root: str | os.PathLike[str],
    *,
    client: Callable[[], Any] | None = None,
    sse: str | None = None,
    sse_kms_key_id: str | None = None,
) -> Storage:
    """The storage below `root`: `s3://bucket/prefix`, or the path of a directory, which need not exist yet.

    `client`, for S3 only, is a function of no arguments that returns a boto3 S3 client; without it, one is made as
    boto3 is configured. `sse` and `sse_kms_key_id`: see S3Storage. Nothing is contacted or written before the first
    use. Raises InvalidReference for a root of another kind.
    """
    text = os.fspath(root)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidReference(f"datastore root {root!r} is neither a path nor an s3:// URL")
    if text.startswith("s3://"):
        from metaflow_artifacts.storage.s3 import S3Storage

        return S3Storage(text, client, sse=sse, sse_kms_key_id=sse_kms_key_id)
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum():
        raise InvalidReference(f"datastore root {text!r}: {scheme}:// is not supported, use s3:// or a path")
    return LocalStorage(text)
