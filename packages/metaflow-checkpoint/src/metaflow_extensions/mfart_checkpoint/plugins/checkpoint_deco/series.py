"""The numbering of a task's checkpoints, one for each task and process, whichever object saves."""

from __future__ import annotations

import os

from metaflow_artifacts.checkpoints import Series
from metaflow_artifacts.mf.task import TaskIdentity

from .journal import Journal

__all__ = ["series_of"]

_known: dict[tuple[TaskIdentity, int], Series] = {}


def series_of(task: TaskIdentity, journal: Journal) -> Series:
    """The series that this process saves into.

    Where there is a journal, it knows what the attempt has saved from this machine, and the store need not be asked.
    A process that was forked has its own: neither connections nor counters may be shared with the parent.
    """
    key = task, os.getpid()
    if key not in _known:
        mine = journal.another()
        _known[key] = Series(
            task.store(),
            task.checkpoint_place(),
            task.id,
            task.attempt,
            task.pathspec,
            start=0 if journal.is_there else None,
            others=lambda: [saved["version_id"] for saved in mine.new_saves()],
        )
    return _known[key]
