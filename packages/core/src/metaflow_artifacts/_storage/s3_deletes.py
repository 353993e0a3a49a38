"""Deleting objects from a bucket: a thousand with one request, or one by one where the server refuses that."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from typing import Any

from metaflow_artifacts._storage.names import check_key
from metaflow_artifacts._storage.s3_errors import explain, is_unsupported
from metaflow_artifacts._storage.s3_requests import Requests
from metaflow_artifacts._storage.threads import for_each
from metaflow_artifacts.errors import ArtifactNotFound, StorageError

__all__ = ["Deletes"]

_BATCH_KEYS = 1000


class Deletes:
    """Deletes objects below `prefix`, with up to `threads` requests at once.

    Not every server has DeleteObjects, and some require a Content-MD5, which boto3 no longer sends. After the first
    refusal of a server, each key is deleted with a request for it alone.
    """

    def __init__(self, requests: Requests, prefix: str, threads: int) -> None:
        self._requests = requests
        self._prefix = prefix
        self._threads = threads
        self._one_by_one = False

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a key that does not exist is no error. Raises the first error of a request."""
        remaining = iter(keys)
        while batch := list(itertools.islice(remaining, _BATCH_KEYS)):
            for key in batch:
                check_key(key)
            if not self._one_by_one:
                try:
                    self._delete_together(batch)
                    continue
                except StorageError as error:
                    if not is_unsupported(error.__cause__):
                        raise
                    self._one_by_one = True
            for_each(self._delete_one, batch, min(self._threads, len(batch)))

    def _delete_together(self, keys: Iterable[str]) -> None:
        objects = [{"Key": self._prefix + key} for key in keys]

        def request(client: Any) -> None:
            from botocore.exceptions import ClientError

            answer = client.delete_objects(Bucket=self._requests.bucket, Delete={"Objects": objects, "Quiet": True})
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if failed:
                # A further attempt deletes these alone; the error names the first of them.
                objects[:] = [{"Key": error["Key"]} for error in failed]
                context = self._requests.context("delete", failed[0]["Key"][len(self._prefix) :])
                raise explain(ClientError({"Error": failed[0]}, "DeleteObjects"), context)

        self._requests.make("delete", objects[0]["Key"][len(self._prefix) :], request)

    def _delete_one(self, key: str) -> None:
        target = {"Bucket": self._requests.bucket, "Key": self._prefix + key}
        with contextlib.suppress(ArtifactNotFound):
            self._requests.make("delete", key, lambda client: client.delete_object(**target))
