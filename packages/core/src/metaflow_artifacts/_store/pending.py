"""A save that runs in the background: its outcome, when there is one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts.errors import ArtifactError, SaveReplaced, SaveTimeout, UsageError

__all__ = ["PendingSave"]


class PendingSave:
    """What `save_async` returns. Its methods may be called from any thread.

    In a pickle or a copy it is the reference, a plain dict: pickling waits until the save is done, and never raises.
    That of a save that failed is a dict with the one member `error`, which no load takes.
    """

    is_pending_save = True
    """What tells it from other objects where this class is not known."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._finished = threading.Event()
        self._reference: ModelArtifact | None = None
        self._error: BaseException | None = None
        self._is_seen = False
        self._is_abandoned = False
        self.seconds_waited = 0.0
        """How long the call of `save_async` took."""
        self._began = 0.0
        self._note_waited: Callable[[float], None] = _ignore
        """Called with the seconds that `result` or `exception` has waited."""
        self.awaited = 0
        """How many threads wait for it now, or about as many."""

    def __repr__(self) -> str:
        if not self._is_done:
            return "<PendingSave: not stored yet>"
        return f"<PendingSave: {self._reference['key'] if self._reference else f'failed: {self._error}'}>"

    @property
    def _is_done(self) -> bool:
        # No lock: a forked child could have inherited it held.
        return self._reference is not None or self._error is not None

    def done(self) -> bool:
        """Whether the save has ended: stored, failed or replaced."""
        return self._is_done

    def result(self, timeout: float | None = None) -> ModelArtifact:
        """Wait until the artifact is stored, and return the reference to it.

        Raises the error of a save that failed, SaveReplaced where a later save has taken its place, SaveTimeout where
        it is not done after `timeout` seconds, and UsageError in a forked child, where it never will be.
        """
        self._wait(timeout)
        if self._error is not None:
            self._is_seen = True
            raise self._error
        assert self._reference is not None
        return self._reference

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait at most `timeout` seconds until the save is done, and return its error; None where it is stored.

        Raises as `result` where the wait itself fails.
        """
        self._wait(timeout)
        self._is_seen = True
        return self._error

    def _wait(self, timeout: float | None) -> None:
        if self._is_done:
            return
        if self._process != os.getpid():
            raise UsageError(
                "this save was begun by the process that this one was forked from, and it is stored there: ask for its "
                "result before the fork, or in that process"
            )
        self.awaited += 1
        start = time.monotonic()
        try:
            is_done = self._finished.wait(timeout)
        finally:
            self.awaited -= 1
            self._note_waited(time.monotonic() - start)
        if not is_done:
            raise SaveTimeout(f"the save is not done after {timeout} seconds; it goes on")

    def _abandon(self) -> None:
        """Do not wait for it where it is pickled."""
        self._is_abandoned = True

    def _begin(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds_storing(self) -> float:
        """How long the worker has stored it so far; asked for while it does."""
        return time.monotonic() - self._began

    def _finish(self, outcome: ModelArtifact | BaseException) -> None:
        """Set the outcome. Only the worker calls this, and once."""
        if isinstance(outcome, BaseException):
            self._is_seen = isinstance(outcome, SaveReplaced)
            self._error = outcome
        else:
            self._reference = outcome
        self._finished.set()

    @property
    def unseen_error(self) -> BaseException | None:
        """The error of a save that failed, if nobody has asked for it."""
        return None if self._is_seen else self._error

    def take_error(self) -> BaseException | None:
        """As `unseen_error`; it counts as seen from now on."""
        error = self.unseen_error
        self._is_seen = True
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_abandoned and not self._is_done:
            return dict, ({"error": "the save was not done when the step ended"},)
        try:
            self._wait(None)
        except ArtifactError as error:
            return dict, ({"error": str(error)},)
        if self._reference is None:
            return dict, ({"error": f"{type(self._error).__name__}: {self._error}"},)
        return dict, (dict(self._reference),)


def _ignore(seconds: float) -> None:
    """Nobody wants to know."""
