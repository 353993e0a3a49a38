"""Storages of objects: on disk, in S3, Azure and GCS. `open_storage` opens the one that a root names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from metaflow_artifacts._storage.base import PATIENCE_S, CopyOutcome, ObjectInfo, Reader, Staged, Storage
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts._text import public_url
from metaflow_artifacts.errors import InvalidInput

__all__ = ["CopyOutcome", "LocalStorage", "ObjectInfo", "Reader", "Staged", "Storage", "is_url", "open_storage"]

_FORMS = {
    "s3": "an s3:// URL; it has the form s3://bucket/prefix",
    "gs": "a gs:// URL; it has the form gs://bucket/prefix",
    "https": "the URL of an Azure container; it has the form https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX",
}
_URL = re.compile(r"([a-z][a-z0-9+.-]*):(?:/|$)", re.IGNORECASE)


def open_storage(
    root: str | os.PathLike[str],
    *,
    client: Callable[[], Any] | None = None,
    sse: str | None = None,
    sse_kms_key_id: str | None = None,
    patience: float = PATIENCE_S,
    sync: bool = False,
) -> Storage:
    """The storage below `root`: a URL (see `is_url`), or the path of a directory, which need not exist yet.

    For clouds only: `patience` is the number of seconds without a successful request after which no new attempt of a
    failed one begins. For S3 only: `client` is a function of no arguments that returns a boto3 S3 client; without it,
    one is made as boto3 is configured. `sse` and `sse_kms_key_id`: see S3Storage. For a directory only: with `sync`,
    each object is on the disk before its write returns (see LocalStorage). Nothing is contacted or written before the
    first use. Raises InvalidInput for a root of another kind, and StorageError for one at an address that credentials
    are not sent to.
    """
    text = os.fspath(root)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInput(f"datastore root {root!r} is neither a path nor a URL; give one of them")
    if text.startswith("s3://"):
        from metaflow_artifacts._storage.s3 import S3Storage

        return S3Storage(text, client, sse=sse, sse_kms_key_id=sse_kms_key_id, patience=patience)
    if text.startswith("gs://"):
        from metaflow_artifacts._storage.gcs import GcsStorage

        return GcsStorage(text, patience=patience)
    if text.startswith(("https://", "http://")):
        from metaflow_artifacts._storage.azure import AzureStorage

        return AzureStorage(text, patience=patience)
    # A URL that lost a slash (pathlib takes one from `//`) must not become a directory called `s3:`.
    url = _URL.match(text)
    form = _FORMS.get(url[1].lower()) if url else None
    if url and form:
        raise InvalidInput(f"datastore root {public_url(text)!r} is not {form}")
    if url:
        raise InvalidInput(
            f"datastore root {public_url(text)!r}: {url[1]}:// is not supported, use s3://, gs://, the https:// "
            "address of an Azure container, or a path"
        )
    return LocalStorage(text, sync=sync)


def is_url(root: str) -> bool:
    """Whether a root is in a cloud: `s3://bucket/prefix`, `gs://bucket/prefix`, or `<endpoint>/<container>/<prefix>`
    for Azure, with an endpoint that begins with `https://`. Any other root is a path."""
    return root.startswith(("s3://", "gs://", "https://", "http://"))
