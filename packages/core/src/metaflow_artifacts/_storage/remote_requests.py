"""Requests to one bucket: the client that makes them, and their retries."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, TypeVar

from metaflow_artifacts._storage import job
from metaflow_artifacts._storage.remote_errors import BadAnswer, RequestContext, error_for, not_understood, unusable
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, TransientStorageError

__all__ = ["Requests", "Service", "named"]

_T = TypeVar("_T")

_SDKS = frozenset({"azure", "botocore", "dateutil", "google", "http", "requests", "urllib3"})
"""The modules that read answers."""
_ATTEMPTS = 7
"""For a server that has not answered yet, whose address may be wrong. For others twice as many, which takes some 35 s
where each fails at once, as while a server is started anew."""
_DIGEST_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

# One lock for making clients, which imports an SDK. A fork waits for it: a module that another thread was importing
# when its process forked can never be imported in the child. A thread that holds it may fork.
_making = threading.RLock()


def _renew_lock() -> None:
    global _making
    _making = threading.RLock()


os.register_at_fork(
    before=lambda: _making.acquire(), after_in_parent=lambda: _making.release(), after_in_child=_renew_lock
)


class Service(ABC):
    """What differs between the clouds: how their clients are made, and what their errors mean."""

    place: ClassVar[str] = "bucket"
    """What the cloud calls a bucket."""

    @abstractmethod
    def make_client(self, context: RequestContext) -> Any:
        """A new client that makes each request once. Many threads will use it.

        Raises an ArtifactError if there can be none: the SDK is missing or too old, or the endpoint or the credentials
        are wrong. `context` is that of the request which needs the client.
        """

    @abstractmethod
    def endpoint(self, client: Any) -> str:
        """The server that the client talks to, for error messages."""

    @abstractmethod
    def faults(self) -> tuple[type[Exception], ...]:
        """The exceptions that a failed request raises."""

    @abstractmethod
    def explain(self, error: Exception, context: RequestContext) -> ArtifactError:
        """The error to raise for one of `faults`; a TransientStorageError if another attempt may succeed."""

    @abstractmethod
    def is_refusal(self, error: BaseException | None) -> bool:
        """Whether a condition of the request did not hold: the key exists, or it has another version."""

    @abstractmethod
    def is_beyond(self, error: BaseException | None) -> bool:
        """Whether the range that was asked for begins at or after the object's end."""

    def is_changed(self, error: BaseException | None) -> bool:
        """Whether the server says that the content is not that of its digest."""
        return False

    def asks_to_slow_down(self, error: BaseException | None) -> bool:
        """Whether the server wants fewer requests."""
        return False

    def was_retried(self, error: BaseException | None) -> bool:
        """Whether the client itself made the request more than once."""
        return False


class Requests:
    """Makes requests to the bucket of `root`, with one client in each process.

    `patience` is the number of seconds without any answer after which no new attempt of a failed request begins.
    """

    def __init__(self, root: str, bucket: str, service: Service, patience: float) -> None:
        self.root = root
        self.bucket = bucket
        self.service = service
        self.answered = False
        """Whether a request has succeeded, so that the bucket is known to exist."""
        self._answered_at = float("-inf")
        self.patience = patience
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
                result = self._once(action, key, request)
            except TransientStorageError:
                seconds = self.pause(attempt, began)
                if seconds is None:
                    raise
            except ArtifactError as error:
                # Before `faults`, which needs the SDK: it may be what is missing.
                self._note(error)
                raise
            except self.service.faults() as error:
                failure = self.service.explain(error, self.context(action, key))
                self._note(failure)
                seconds = self.pause(attempt, began, self.service.asks_to_slow_down(error))
                # A digest that is wrong again and again is rarely the network's fault: the buffer has changed.
                futile = attempt >= _DIGEST_ATTEMPTS and self.service.is_changed(error)
                if futile or seconds is None or not isinstance(failure, TransientStorageError):
                    try:
                        raise failure from error
                    finally:
                        # Break the reference cycle of error, traceback and frame, which would keep buffers alive.
                        del failure
            else:
                self.answered = True
                self._answered_at = time.monotonic()
                return result
            job.pause(seconds)
        raise AssertionError("unreachable")

    def _note(self, failure: ArtifactError) -> None:
        if isinstance(failure, ArtifactNotFound):
            # The server has answered.
            self._answered_at = time.monotonic()

    def _once(self, action: str, key: str, request: Callable[[Any], _T]) -> _T:
        client = self.client(action, key)
        try:
            return request(client)
        except BadAnswer as error:
            raise error_for(not_understood(error), self.context(action, key)) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # SDKs raise these for headers of an answer such as `Content-Length: abc`, older ones for any page of a
            # proxy; the caller's content may, too.
            if isinstance(error, self.service.faults()) or not _is_raised_by_sdk(error):
                raise
            text = f"{type(error).__name__}: {error}"
            raise error_for(not_understood(text), self.context(action, key)) from error
        except (OSError, RuntimeError) as error:
            # A file or a program that has the credentials, or credentials that have expired when they come.
            if isinstance(error, self.service.faults()) or not _is_raised_by_sdk(error):
                raise
            raise error_for(unusable(error), self.context(action, key)) from error

    def pause(self, attempt: int, began: float, is_asked: bool = False) -> float | None:
        """Seconds to wait before the next attempt, after `attempt` attempts; None where there is no next one.

        Fewer requests run at once from now on if the server asked for that (`is_asked`), or if it was not the first
        attempt: one connection may break at any time, but then a server or a network that has too many is likely.
        """
        if is_asked or attempt > 1:
            job.slow_down()
        # Random, so that tasks that failed at the same time do not retry at the same time.
        seconds = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
        # While a server answers other requests, it is slow, or has too many of them, and does not stall.
        late = time.monotonic() - max(began, self._answered_at) + seconds > self.patience
        most = _ATTEMPTS if self._answered_at == float("-inf") else 2 * _ATTEMPTS
        return None if attempt >= most or late else seconds

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
        try:
            return self.service.make_client(self.context(action, key))
        except ArtifactError:
            raise
        except (AttributeError, LookupError, OSError, RuntimeError, TypeError) as error:
            if not _is_raised_by_sdk(error):
                raise
            raise error_for(unusable(error), self.context(action, key)) from error

    def context(self, action: str, key: str) -> RequestContext:
        """What the error message of a request names."""
        endpoint = self.service.endpoint(self._client[1]) if self._client else "the endpoint"
        return RequestContext(action, f"{self.root}/{key}", self.bucket, endpoint, self.service.place)


def _is_raised_by_sdk(error: Exception) -> bool:
    package = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        # The standard library raises for whoever calls it.
        if name in _SDKS or name not in sys.stdlib_module_names:
            package = name
    return package in _SDKS


def named(function: Callable[..., _T] | None) -> Callable[..., _T] | None:
    """The function if it stands at the top of a module, so that a pickle has its name only, or if it is an object that
    says that its pickles have no credentials. Any other can hold some: None."""
    if getattr(function, "pickles_without_credentials", False):
        return function
    if isinstance(function, FunctionType):
        at_top: Callable[..., _T] | None = getattr(sys.modules.get(function.__module__), function.__qualname__, None)
        if at_top is function:
            return at_top
    return None
