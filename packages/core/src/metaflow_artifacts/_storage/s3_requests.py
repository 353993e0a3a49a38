"""Requests to one bucket: the client that makes them, and when they are made again."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from metaflow_artifacts._storage.s3_client import default_client, prepare
from metaflow_artifacts._storage.s3_errors import Place, code_of, explain, faults
from metaflow_artifacts.errors import StorageError, TransientStorageError

__all__ = ["Requests"]

_T = TypeVar("_T")

_ATTEMPTS = 7
_ATTEMPTS_TO_SEND = 3
_PAUSE = 0.2
_LONGEST_PAUSE = 5.0

# One lock for the making of clients; a child of fork gets a new one, for its parent's may be held for ever.
_making = threading.Lock()


def _renew_lock() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Requests:
    """Makes requests to the bucket of `root`, with one client in each process.

    `client` is a function of no arguments that returns a boto3 S3 client. `patience` is the number of seconds after
    which no new attempt of a failed request begins.
    """

    def __init__(self, root: str, bucket: str, client: Callable[[], Any] | None, patience: float) -> None:
        self.root = root
        self.bucket = bucket
        self.answered = False
        """Whether a request has succeeded, so that the bucket is known to exist."""
        self._patience = patience
        self._make_client = client or default_client
        self._client: tuple[int, Any] | None = None

    def connect(self) -> None:
        """Make the client now; where it cannot be made, the first request tries again and says why."""
        # Whatever the function that makes clients raises.
        with contextlib.suppress(Exception):
            self.client("reach", "")

    def make(self, action: str, key: str, request: Callable[[Any], _T], began: float | None = None) -> _T:
        """Make a request, again where its failure may pass. Raises an ArtifactError.

        `began` is the monotonic time from which patience counts, where something was tried before.
        """
        began = time.monotonic() if began is None else began
        for attempt in itertools.count(1):
            try:
                result = request(self.client(action, key))
            except faults() as error:
                failure = explain(error, self.place(action, key))
                seconds = self.pause(attempt, began)
                # Wrong bytes are hardly ever the network's fault: the buffer changed, or the digest is of another.
                futile = attempt >= _ATTEMPTS_TO_SEND and code_of(error) == "BadDigest"
                if futile or seconds is None or not isinstance(failure, TransientStorageError):
                    try:
                        raise failure from error
                    finally:
                        # Break the cycle exception, traceback, frame, which would keep buffers alive.
                        del failure
            except TransientStorageError:
                seconds = self.pause(attempt, began)
                if seconds is None:
                    raise
            else:
                self.answered = True
                return result
            time.sleep(seconds)
        raise AssertionError("unreachable")

    def pause(self, attempt: int, began: float) -> float | None:
        """Seconds to wait after so many attempts before the next one, or None where there is to be none."""
        # At random, so that tasks that failed together do not come back together.
        seconds = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _PAUSE * 2 ** (attempt - 1))
        late = time.monotonic() - began + seconds > self._patience
        return None if attempt >= _ATTEMPTS or late else seconds

    def client(self, action: str, key: str) -> Any:
        """This process's client; `action` and `key` are for the error where it cannot be made."""
        held = self._client
        if held is not None and held[0] == os.getpid():
            return held[1]
        with _making:
            held = self._client
            if held is None or held[0] != os.getpid():
                held = self._client = os.getpid(), self._new_client(action, key)
        return held[1]

    def _new_client(self, action: str, key: str) -> Any:
        where = f"cannot {action} {self.root}/{key}"
        try:
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise StorageError(f"{where}: boto3 is not installed; pip install boto3") from error
        try:
            return prepare(self._make_client())
        except BotoCoreError as error:
            raise explain(error, Place(action, f"{self.root}/{key}", self.bucket, "the endpoint")) from error
        except ValueError as error:
            # What botocore raises for an endpoint that is not a URL.
            raise StorageError(f"{where}: no S3 client can be made ({error}); check the endpoint") from error

    def place(self, action: str, key: str) -> Place:
        """What a request is about, for its error message."""
        endpoint = self._client[1].meta.endpoint_url if self._client else "the endpoint"
        return Place(action, f"{self.root}/{key}", self.bucket, endpoint)
