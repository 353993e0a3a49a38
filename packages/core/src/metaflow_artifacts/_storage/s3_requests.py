"""Requests to one bucket: the client that makes them, and their retries."""

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
from metaflow_artifacts._storage.s3_errors import RequestContext, code_of, explain, faults
from metaflow_artifacts.errors import StorageError, TransientStorageError

__all__ = ["Requests"]

_T = TypeVar("_T")

_ATTEMPTS = 7
_DIGEST_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

# One lock for making clients. A forked child gets a new one: its parent's lock may be held for ever.
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
        self.patience = patience
        self.make_client = client or default_client
        self._client: tuple[int, Any] | None = None

    def connect(self) -> None:
        """Make the client now; where it cannot be made, the first request tries again and says why."""
        # Whatever the function that makes clients raises.
        with contextlib.suppress(Exception):
            self.client("reach", "")

    def make(self, action: str, key: str, request: Callable[[Any], _T], began: float | None = None) -> _T:
        """Make a request, and retry it where it failed for a reason that may pass. Raises an ArtifactError.

        `began` is the monotonic time from which `patience` counts; without it, now.
        """
        began = time.monotonic() if began is None else began
        for attempt in itertools.count(1):
            try:
                result = request(self.client(action, key))
            except faults() as error:
                failure = explain(error, self.context(action, key))
                seconds = self.pause(attempt, began)
                # A digest that is wrong again and again is rarely the network's fault: the buffer has changed.
                futile = attempt >= _DIGEST_ATTEMPTS and code_of(error) == "BadDigest"
                if futile or seconds is None or not isinstance(failure, TransientStorageError):
                    try:
                        raise failure from error
                    finally:
                        # Break the reference cycle of error, traceback and frame, which would keep buffers alive.
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
        """Seconds to wait before the next attempt, after `attempt` attempts; None where there is no next one."""
        # Random, so that tasks that failed at the same time do not retry at the same time.
        seconds = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
        late = time.monotonic() - began + seconds > self.patience
        return None if attempt >= _ATTEMPTS or late else seconds

    def client(self, action: str, key: str) -> Any:
        """The client of this process. The error for one that cannot be made names `action` and `key`."""
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
            return prepare(self.make_client())
        except BotoCoreError as error:
            raise explain(error, RequestContext(action, f"{self.root}/{key}", self.bucket, "the endpoint")) from error
        except ValueError as error:
            # What botocore raises for an endpoint that is not a URL.
            raise StorageError(f"{where}: no S3 client can be made ({error}); check the endpoint") from error

    def context(self, action: str, key: str) -> RequestContext:
        """What the error message of a request names."""
        endpoint = self._client[1].meta.endpoint_url if self._client else "the endpoint"
        return RequestContext(action, f"{self.root}/{key}", self.bucket, endpoint)
