"""`current.checkpoint`: the object that `@checkpoint` gives to the code of a step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from metaflow_artifacts.plugin import (
    CheckpointInfo,
    Log,
    ParsedReference,
    TaskIdentity,
    TemporaryDirectories,
    note_loaded,
    store_for,
    with_older_names,
)

# tasks and writer are imported when the task starts, so that its first save or list is not delayed.
from . import tasks, writer  # noqa: F401
from .checkpoint import PREFIX, Checkpoint
from .directory import replace_content
from .journal import Journal
from .report import Report
from .resume import resume

__all__ = ["CurrentCheckpoint"]


class CurrentCheckpoint(Checkpoint):
    """Saves, loads and lists checkpoints in a running task. Its methods may be called from any thread.

    A worker process may get it in a pickle: it then saves and loads for the same task, and deletes no directory of it.
    """

    def __init__(
        self, task: TaskIdentity, policy: str, log: Log, temp_dir_root: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(temp_dir_root, init_dir=True)
        self._identity = task
        self._policy = policy
        self._log: Log = log
        self._info: CheckpointInfo | None = None
        self._journal_directory = TemporaryDirectories()
        self._own_journal = Journal(self._journal_directory.new("metaflow_checkpoint_journal_"))
        self._own_journal.export(task, policy=policy)
        self.report = Report(
            task.pathspec, task.attempt, policy, self._own_journal.another().new_saves, self._in_the_background
        )

    def failures_elsewhere(self) -> list[str]:
        """The errors of saves in the background of subprocesses, which these have not seen."""
        return self._own_journal.failures()

    def _in_the_background(self) -> tuple[int, float]:
        return self.pending, self.seconds_waited

    def __getstate__(self) -> dict[str, Any]:
        # Another thread writes to the report, which is for the card of this process.
        task = self._identity
        return {**vars(self), "report": Report(task.pathspec, task.attempt, self._policy)}

    @property
    def directory(self) -> str:
        """A local directory with the checkpoint that the task resumes from; `save()` saves its content."""
        if self._directory is None:
            self.refresh_directory()
        assert self._directory is not None
        return self._directory

    @property
    def is_loaded(self) -> bool:
        """Whether a checkpoint was loaded into `directory` when the task started."""
        return self._info is not None

    @property
    def info(self) -> CheckpointInfo | None:
        """The reference to the checkpoint that was loaded when the task started; None if none was.

        The fields of the reference are attributes of it, too, also when it is kept as an artifact.
        """
        return self._info

    @property
    def task_identifier(self) -> str:
        """12 hex digits of the task's place in the flow, which is the same in every run."""
        return self._identity.place

    def refresh_directory(self) -> None:
        """Remove `directory`, and make a new, empty one."""
        self.cleanup()
        self._directory = self._temporary.new(PREFIX)

    def close(self) -> None:
        """Remove all temporary directories of the task."""
        self.cleanup()
        self._journal_directory.close()

    def load_first(self) -> None:
        """Load the checkpoint that the task resumes from into `directory`, if there is one.

        Raises as `resume`.
        """
        resumed = resume(self._identity, self._policy, self.directory, self._log)
        if resumed.artifact is not None:
            self._info = CheckpointInfo(with_older_names(resumed.artifact))
            key = resumed.artifact["key"]
            note_loaded(key)
            self._own_journal.note_parents()
            self._own_journal.export(self._identity, policy=self._policy, resumed=key)
        self.report.note_loaded(resumed.why, resumed.artifact, resumed.seconds, resumed.warnings, resumed.cached)

    def _load_into_own(self, reference: ParsedReference, directory: str, only: str | Sequence[str] | None) -> None:
        store = store_for(reference)
        with replace_content(directory) as stage:
            store.load(reference, stage, only=only)

    def _note_load(self, key: str) -> None:
        self.report.note_own_load(key)

    def _task(self, action: str) -> TaskIdentity:
        return self._identity

    def _journal(self) -> Journal:
        return self._own_journal
