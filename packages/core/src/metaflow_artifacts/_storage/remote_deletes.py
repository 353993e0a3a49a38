"""Deleting objects from a cloud: many with one request, or one by one where the service refuses that."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from metaflow_artifacts._storage.names import check_key
from metaflow_artifacts._storage.remote_requests import Requests
from metaflow_artifacts._storage.threads import for_each
from metaflow_artifacts.errors import ArtifactNotFound, StorageError

__all__ = ["Deletes"]


class Deletes:
    """Deletes objects below `prefix`, with up to `threads` requests at once.

    `alone(client, name)` deletes one object. `together(client, names)` deletes up to `batch` objects, and gives the
    names and errors of those that it could not delete; a `batch` of 0 means that the service has no such request.
    `is_unsupported` tells whether an error means that the server refuses such requests. After the first refusal, each
    key is deleted with a request for it alone.
    """

    def __init__(
        self,
        requests: Requests,
        prefix: str,
        threads: int,
        alone: Callable[[Any, str], object],
        batch: int,
        together: Callable[[Any, list[str]], list[tuple[str, Exception]]],
        is_unsupported: Callable[[BaseException | None], bool],
    ) -> None:
        self._requests = requests
        self._prefix = prefix
        self._threads = threads
        self._alone = alone
        self._together = together
        self._is_unsupported = is_unsupported
        self._one_by_one = batch == 0
        self._batch = batch or 1000

    def delete(self, keys: Iterable[str], *, any_names: bool = False) -> None:
        """Remove objects; a key that does not exist is no error. Raises the first error of a request.

        With `any_names`, names that are no keys are taken too.
        """
        remaining = iter(keys)
        while batch := list(itertools.islice(remaining, self._batch)):
            for key in () if any_names else batch:
                check_key(key)
            if not self._one_by_one:
                try:
                    self._delete_together(batch)
                    continue
                except StorageError as error:
                    if not self._is_unsupported(error.__cause__):
                        raise
                    self._one_by_one = True
            for_each(self._delete_one, batch, min(self._threads, len(batch)))

    def _delete_together(self, keys: list[str]) -> None:
        names = [self._prefix + key for key in keys]

        def request(client: Any) -> None:
            failed = self._together(client, names)
            if failed:
                # A further attempt deletes these alone; the error names the first of them.
                names[:] = [name for name, _ in failed]
                context = self._requests.context("delete", names[0][len(self._prefix) :])
                raise self._requests.service.explain(failed[0][1], context) from failed[0][1]

        self._requests.make("delete", keys[0], request)

    def _delete_one(self, key: str) -> None:
        with contextlib.suppress(ArtifactNotFound):
            self._requests.make("delete", key, lambda client: self._alone(client, self._prefix + key))
