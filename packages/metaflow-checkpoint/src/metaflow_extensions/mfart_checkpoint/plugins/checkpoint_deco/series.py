"""The numbering of a task's checkpoints, one for each task and process, whichever object saves."""

from __future__ import annotations

import os

from metaflow_artifacts.checkpoints import Series
from metaflow_artifacts.mf.task import TaskIdentity

__all__ = ["series_of"]

_known: dict[tuple[TaskIdentity, int], Series] = {}


def series_of(task: TaskIdentity, start: int | None = None) -> Series:
    """The series that this process saves into. `start` is its first number, where that is known.

    A process that was forked has its own: neither connections nor counters may be shared with the parent.
    """
    key = task, os.getpid()
    if key not in _known:
        _known[key] = Series(task.store(), task.checkpoint_place(), task.id, task.attempt, task.pathspec, start)
    return _known[key]
