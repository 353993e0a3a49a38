"""The writer of a task's checkpoints: one for each task and process, whichever object saves."""

from __future__ import annotations

import os

from metaflow_artifacts.plugin import CheckpointWriter, TaskIdentity

from .journal import Journal

__all__ = ["writer_of"]

_known: dict[tuple[TaskIdentity, int], CheckpointWriter] = {}


def writer_of(task: TaskIdentity, journal: Journal) -> CheckpointWriter:
    """The writer that this process saves with.

    Where there is a journal, the processes of this machine draw their numbers from it, and the store need not be
    asked. A process that was forked has a writer of its own: connections must not be shared with the parent.
    """
    key = task, os.getpid()
    if key not in _known:
        _known[key] = CheckpointWriter(
            task.store(),
            task.checkpoint_place(),
            task.id,
            task.attempt,
            task.pathspec,
            start=0 if journal.is_there else None,
            draw=journal.draw_number,
        )
    return _known[key]
