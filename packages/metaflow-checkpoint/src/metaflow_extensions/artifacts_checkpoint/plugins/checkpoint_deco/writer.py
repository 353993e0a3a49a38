"""The writer of a task's checkpoints. Each process has one for each task, whichever object saves."""

from __future__ import annotations

import os

from metaflow_artifacts.plugin import CheckpointWriter, TaskIdentity

from .journal import Journal

__all__ = ["writer_of"]

_writers: dict[tuple[TaskIdentity, int], CheckpointWriter] = {}


def writer_of(task: TaskIdentity, journal: Journal) -> CheckpointWriter:
    """The writer with which this process saves checkpoints of `task`.

    If there is a journal, the processes of this machine draw the numbers of their checkpoints from it, and the store
    is not asked. A forked process has another writer than its parent, because they must not share connections.
    """
    key = task, os.getpid()
    if key not in _writers:
        writer = CheckpointWriter(
            task.store(),
            task.checkpoint_place(),
            task.id,
            task.attempt,
            task.pathspec,
            start=0 if journal.is_there else None,
            draw=journal.draw_number,
            gang=task.gang,
        )
        # Another thread may have made one meanwhile.
        _writers.setdefault(key, writer)
    return _writers[key]
