"""Saves in the background of a running step: the step waits for them, and fails where one of them failed."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._mf.errors import in_flow, shown
from metaflow_artifacts._mf.log import Log
from metaflow_artifacts._mf.preemption import running_preemption, watch_for_preemption
from metaflow_artifacts._store.background import OnBusy, SaveOptions, background_saves
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._text import count_text, duration_text
from metaflow_artifacts.errors import StorageError

__all__ = ["AFTER_FAILURE_S", "TaskSave", "save_options", "with_pending_saves"]

AFTER_FAILURE_S = 60.0
"""How long a step whose code has failed waits for what is pending, so that its retry finds it."""
_LOGGED_S = 1.0
"""A step that waits at least so long at its end has a line in the log."""


class TaskSave(PendingSave):
    """A save in the background of a task. In a pickle it is a plain dict, as any `PendingSave`."""

    @in_flow
    def result(self, timeout: float | None = None) -> ModelArtifact:
        """As `PendingSave.result`; Metaflow shows the message of an error, and no traceback."""
        return super().result(timeout)


def save_options(
    log: Log,
    consume: bool,
    on_busy: OnBusy,
    temp_root: str | os.PathLike[str] | None = None,
    note_unseen: Callable[[BaseException], None] = lambda error: None,
) -> SaveOptions:
    """The options of a save in the background of a task. From now on, SIGTERM does not cost what is pending."""
    watch_for_preemption(log)
    return SaveOptions(consume, on_busy, temp_root, log.warning, note_unseen)


def with_pending_saves(
    step_function: Callable[..., Any], flow: Any, log: Log, elsewhere: Callable[[], Sequence[str]] = tuple
) -> Callable[..., Any]:
    """The function of a step of `flow`, which ends when all that was handed over is stored. For `task_decorate`.

    A save that failed fails the step with its own error. Where the step's code has failed, what is pending is stored
    within `AFTER_FAILURE_S`. `elsewhere` returns the errors of saves of subprocesses that these have not seen.
    """

    @functools.wraps(step_function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            try:
                result = step_function(*args, **kwargs)
                try:
                    _store_all(log, elsewhere)
                except BaseException:
                    # The code has called self.next. After an error, Metaflow before 2.19 calls it again, and that this
                    # is twice would be the error.
                    flow._transition = None
                    raise
            except BaseException:
                _store_what_is_left(log)
                raise
        finally:
            preemption = running_preemption()
            if preemption is not None:
                preemption.end()
        return result

    return wrapper


def _store_all(log: Log, elsewhere: Callable[[], Sequence[str]]) -> None:
    saves = background_saves()
    count, begin = saves.pending, time.monotonic()
    saves.settle()
    waited = time.monotonic() - begin
    if waited >= _LOGGED_S:
        log(f"The step waited {duration_text(waited)} at its end for {count_text(count, 'save')} in the background")
    failures = saves.take_failures()
    failures += [StorageError(f"a save in the background of a subprocess failed: {text}") for text in elsewhere()]
    for error in failures[1:]:
        log.warning(f"another save in the background failed: {error}")
    if failures:
        with shown():
            raise failures[0]


def _store_what_is_left(log: Log) -> None:
    saves = background_saves()
    if saves.is_abandoned:
        # Another decorator's wrapper has waited.
        return
    try:
        if saves.pending:
            count = count_text(saves.pending, "save")
            log(f"The step failed; {count} in the background may take up to {AFTER_FAILURE_S:g} more seconds")
        if not saves.settle(AFTER_FAILURE_S):
            log.warning(f"{count_text(saves.pending, 'save')} in the background could not be stored in this time")
            saves.abandon()
        for error in saves.take_failures():
            log.warning(f"a save in the background failed: {error}")
    except BaseException:
        # Another interrupt, such as that of @timeout or Ctrl-C.
        saves.abandon()
        raise
